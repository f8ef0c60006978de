"""`jaxlm sweep`: what it prints, what it leaves alone, and how it ends."""

import dataclasses
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from jaxlm.cli import main
from jaxlm.errors import ConfigError
from jaxlm.launch.tpu_vm import TpuVm
from jaxlm.sweep import queue as queues
from jaxlm.sweep import start
from jaxlm.sweep.elsewhere import options_of


@pytest.fixture
def sweep(sweep_file, trainer, tmp_path, monkeypatch, capfd):
    """Return a function that runs the command and returns its status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(queues, "LOOK", 0.1)
    monkeypatch.setenv("COLUMNS", "300")
    file = sweep_file()

    def run(*arguments):
        try:
            status = main(["sweep", str(file), *arguments])
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()

    run.file = file
    return run


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_list_and_dry_run_and_status_touch_nothing(sweep, tmp_path, trainer):
    status, out, _ = sweep("--list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["arm", *["intermediate_size=64", "intermediate_size=96"] * 2]
    assert "(control)" in out and "model.intermediate_size=96" in out and len(out.splitlines()[1].split()[-1]) == 16
    status, out, _ = sweep("--dry-run", "--on", "local", "--processes", "2")
    assert status == 0 and "--run-dir runs/sweeps/trials/" in out and "--processes 2" in out and "4 to do" in out
    status, out, _ = sweep("--status")
    assert status == 0 and out.count("waiting") == 4 and "4 of 4 trials are not finished" in out
    assert not (tmp_path / "runs").exists() and trainer.starts == []


def test_again_it_does_nothing_and_prints_the_same(sweep, tmp_path, trainer):
    status, first, said = sweep("--max-parallel", "4")
    assert status == 0 and len(trainer.starts) == 4 and "0 of 4 trials finished, 4 to do, 4 at a time" in said
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/sweeps/trials").rglob("*")}
    content = (tmp_path / "runs/sweeps/width/table.json").read_bytes()
    status, second, said = sweep()
    assert (status, second) == (0, first) and "all of width is finished" in said and trainer.starts == []
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/sweeps/trials").rglob("*")}
    assert (tmp_path / "runs/sweeps/width/table.json").read_bytes() == content
    assert "intermediate_size=96  2" in first and "-0.0320" in first  # the stand-in's loss falls by 1/1000 of the width


def test_what_fails_is_told_of_and_tried_again(sweep, trainer):
    trainer.order(**{"intermediate_size=96, seed 0": {"at": 3, "status": 2}})
    status, out, said = sweep()
    assert status == 1 and "1 of 4 trials failed; the same command tries them again" in said
    assert "exit status 2: out of ideas" in said and "1 of 2 seeds failed and are not counted: 0: exit" in out
    status, out, _ = sweep("--status")
    assert status == 0 and "failed after 3 of 20 steps: exit status 2: out of ideas" in out
    trainer.order()
    trainer.starts  # noqa: B018
    status, _, said = sweep()
    assert status == 0 and len(trainer.starts) == 1 and "trying again: intermediate_size=96, seed 0" in said


def test_told_to_stop_it_lets_them_save_and_goes_on_later(sweep, trainer, tmp_path):
    trainer.order(**{"intermediate_size=64, seed 0": {"pace": 0.1}})
    timer = threading.Timer(0.2, lambda: None)

    def ask():
        if list((tmp_path / "runs/sweeps/trials").glob("*/metrics.jsonl")):
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            again()

    def again():
        nonlocal timer
        timer = threading.Timer(0.05, ask)
        timer.start()

    again()
    status, out, said = sweep()
    assert status == 130 and "telling 1 to save and stop" in said and "stopped: run the same command to continue" in said
    assert "stopped intermediate_size=64, seed 0: stopped at step" in said and "4 of 4 trials are not finished" in out
    trainer.order()
    status, _, said = sweep()
    assert status == 0 and "intermediate_size=64, seed 0: continues at step" in said


def test_one_arm_alone(sweep, trainer):
    status, _, _ = sweep("--only", "intermediate_size=96")
    assert status == 0 and [line.split(" on")[0] for line in trainer.starts] == [
        "intermediate_size=96, seed 0", "intermediate_size=96, seed 1",
    ]  # fmt: skip
    status, _, said = sweep("--only", "intermediate_size=95")
    assert status == 2 and "Did you mean 'intermediate_size=96'" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-parallel", "0"), "must be 1 or more"),
        (("--on", "slurm", "--max-parallel", "2"), "its scheduler decides"),
        (("--on", "slum"), "Did you mean 'slurm'"),
        (("--list", "--status"), "give one of them"),
        (("--status", "--retry"), "leave it out with --list and --status"),
        (("--metrics", "acuracy"), "no validation has it. Did you mean 'accuracy'? It has accuracy, bits_per_byte, loss"),
        (("--name", "../x"), "--name ../x names no folder"),
    ],
)
def test_faults_end_with_status_2(sweep, arguments, words):
    status, _, said = sweep(*arguments)
    assert status == 2 and words in said.replace("\n", " ")


def test_without_a_file_it_says_what_it_takes(capsys):
    with pytest.raises(SystemExit):
        main(["sweep"])
    assert "SWEEP.py" in capsys.readouterr().err


def test_a_trial_that_diverged_is_left_as_it_is(sweep, trainer, tmp_path):
    """The same code, data and seed would diverge again, at every call."""
    assert sweep("--max-parallel", "4")[0] == 0
    run = next((tmp_path / "runs/sweeps/trials").glob("*"))
    (run / "checkpoints" / "20").rename(run / "checkpoints" / "8")
    failure = {"time": "2100-01-01T00:00:00+00:00", "kind": "DivergedError", "message": "10 steps in a row", "step": 9}
    (run / "failure.json").write_text(json.dumps(failure))
    trainer.starts  # noqa: B018
    status, out, said = sweep()
    assert status == 0 and trainer.starts == [] and "diverged after 20 of 20 steps; --retry tries it again" in said
    assert "nothing of width is left to do" in said and "not finite, 2 seeds" in out
    status, out, said = sweep("--retry")
    assert status == 0 and len(trainer.starts) == 1 and "not finite" not in out


@pytest.mark.parametrize("what", ["code", "data"])
def test_what_changes_meanwhile_ends_it(what, sweep, trainer, tmp_path, monkeypatch):
    """What begins later would be made of something else than its folder's name says."""
    text, real = next((tmp_path / "text").iterdir()), start.training_files

    def files():
        if not list((tmp_path / "runs/sweeps/trials").glob("*/metrics.jsonl")):
            return real()
        if what == "data":
            text.write_text("other words")
        return real() | ({"train/step.py": "changed"} if what == "code" else {})

    monkeypatch.setattr(start, "training_files", files)
    status, _, said = sweep()
    assert status == 1 and len(trainer.starts) == 1 and "nothing more was begun. Run the same command for the rest" in said
    words = {"code": "the code has changed since this sweep began (train/step.py)", "data": "seed 0 reads has changed since"}
    assert words[what] in said


def test_status_needs_neither_data_nor_file(sweep, tmp_path, trainer):
    assert sweep("--max-parallel", "4")[0] == 0
    whole = sweep("--status")[1]
    for path in (tmp_path / "text").iterdir():
        path.unlink()
    status, out, said = sweep("--status")
    assert (status, out) == (0, whole) and "as it was recorded at" in said
    assert sweep("--list")[0] == 2
    sweep.file.unlink()
    assert main(["sweep", "runs/sweeps/width", "--status"]) == 0
    assert main(["sweep", "runs/sweeps/width", "--status", "--only", "x"]) == 2
    assert main(["sweep", "runs/sweeps/width"]) == 2


def test_runs_of_another_version_are_pointed_to(sweep, trainer, tmp_path):
    assert sweep("--max-parallel", "4")[0] == 0
    for run in (tmp_path / "runs/sweeps/trials").iterdir():
        run.rename(run.with_name(run.name[:10] + "0" * 6))
    status, _, said = sweep("--dry-run")
    assert status == 0 and "4 trials were finished by another version of the code: --any-code counts them" in said
    assert "0 to do, 4 finished" in sweep("--dry-run", "--any-code")[1]


# Gives numbers to jobs, and says of each that it runs.
SBATCH = """n=$(cat "$FAKE/n" 2>/dev/null || echo 0)
echo $((n + 1)) >"$FAKE/n"
[ "$n" = 2 ] && { echo full >&2; exit 1; }
echo "10$n"
"""


def test_a_scheduler_gets_one_job_a_trial_and_no_second(sweep, tmp_path, trainer, monkeypatch):
    fake = tmp_path / "fake"
    fake.mkdir()
    for name, answer in {"sbatch": SBATCH, "squeue": 'echo "RUNNING None"'}.items():
        (fake / name).write_text(f"#!/usr/bin/env bash\n{answer}\n")
        (fake / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(fake))
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    status, _, said = sweep("--on", "slurm")
    assert status == 1 and said.count("submitted Slurm job") == 3 and "not submitted: intermediate_size=64, seed 1: " in said
    jobs = [json.loads(path.read_text()) for path in (tmp_path / "runs/sweeps/trials").glob("*/launch/job.json")]
    assert sorted(job["id"] for job in jobs) == ["100", "101", "103"]
    status, _, said = sweep("--on", "slurm")
    assert status == 0 and said.count("skipped: ") == 3 and said.count("submitted Slurm job") == 1
    assert "slurm job 100: RUNNING" in sweep("--status")[1]
    status, _, said = sweep()  # here, while they run there
    assert status == 0 and said.count("skipped: ") == 4 and trainer.starts == []


def test_trials_on_slices_have_folders_of_their_own_and_nobody_waits_for_one():
    options = TpuVm(accelerator_type="v5litepod-16", runtime_version="x", zone="us-west4-a", remote_run_dir="/mnt/runs/")
    assert options_of(options, Path("runs/abc")).remote_run_dir == "/mnt/runs/abc"
    with pytest.raises(ConfigError, match="leave it out of a sweep"):
        options_of(dataclasses.replace(options, watch=True), Path("runs/abc"))
