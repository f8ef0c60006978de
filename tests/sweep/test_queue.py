"""Trials in processes of their own: what ends one ends no other, and nobody trains what another trains."""

import dataclasses
import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from jaxlm.errors import ConfigError
from jaxlm.launch.local import Local
from jaxlm.run.standing import Standing, sentence, standing
from jaxlm.sweep import display as displays
from jaxlm.sweep import queue as queues
from jaxlm.sweep import share as sharing
from jaxlm.sweep.display import SweepDisplay
from jaxlm.sweep.queue import Queue
from jaxlm.sweep.read import load_sweep, settle, write_record
from jaxlm.sweep.share import Share, shares
from jaxlm.sweep.start import _work


@pytest.fixture
def works(sweep_file, trainer, tmp_path, monkeypatch):
    """Four trials of the stand-in."""
    monkeypatch.setattr(queues, "LOOK", 0.1)
    sweep = load_sweep(sweep_file())
    record = write_record(settle(sweep, tmp_path / "runs"))
    return [_work(record, e, t.experiment, Local()) for e, t in zip(record.trials, sweep.trials, strict=True)]


def run(works, parallel=2, stop=lambda: False):
    display = SweepDisplay(Console(stderr=True, width=400), len(works), sum(work.steps for work in works), 0)
    try:
        return list(Queue(works, [Share() for _ in range(parallel)], display).run(stop).values())
    finally:
        display.close()


def test_all_are_trained_and_what_is_finished_is_not_trained_again(works, trainer, capfd):
    assert run(works) == ["finished"] * 4
    assert len(trainer.starts) == 4
    assert "done" in (works[0].run / "output.log").read_text()
    assert run(works) == ["finished"] * 4
    assert trainer.starts == []
    assert "intermediate_size=64, seed 0: finished by another process (1 of 4 trials finished)" in capfd.readouterr().err
    (works[2].run / "summary.md").unlink()  # as where a process was killed after its last save
    assert standing(works[2].run).kind == "finished"
    assert run(works) == ["finished"] * 4
    assert len(trainer.starts) == 1 and (works[2].run / "summary.md").exists()


def test_one_that_fails_ends_no_other_and_is_tried_again_from_where_it_was(works, trainer, capfd):
    trainer.order(**{works[1].label: {"at": 12, "status": 2}, works[2].label: {"at": 3, "signal": int(signal.SIGKILL)}})
    assert run(works) == ["finished", "failed", "failed", "finished"]
    said = capfd.readouterr().err
    assert f"failed {works[1].label}: exit status 2: out of ideas" in said
    assert "SIGKILL: its process was killed by SIGKILL, as the system does when memory runs out" in said
    left = json.loads((works[1].run / "failure.json").read_text())
    assert (left["kind"], left["message"], left["traceback"], left["step"]) == (
        "exit status 2", "out of ideas", ["error: out of ideas"], 12,
    )  # fmt: skip
    assert standing(works[1].run).kind == "failed"
    trainer.order()
    assert run(works) == ["finished"] * 4
    assert not (works[1].run / "failure.json").exists()


def test_a_process_that_says_nothing_of_an_error_is_told_of_by_its_last_words(works, trainer, capfd):
    program = trainer.orders.with_name("dying")
    program.write_text("#!/bin/sh\necho ModuleNotFoundError: no such thing\necho\nexit 3\n")
    program.chmod(0o755)
    assert run([dataclasses.replace(works[0], command=(str(program),))]) == ["failed"]
    assert "exit status 3: ModuleNotFoundError: no such thing" in capfd.readouterr().err
    assert sentence(standing(works[0].run)).startswith("failed after 0 of 20 steps: exit status 3")


def test_a_running_trial_is_read_anew_only_where_it_changed(works, trainer, monkeypatch):
    reads = []
    monkeypatch.setattr(queues, "standing", lambda run, known=None: reads.append(known) or standing(run, known))
    child = queues._Child(works[0], None, None, None, 0)
    works[0].run.mkdir(parents=True)
    assert [child.look().step for _ in range(3)] == [0] * 3 and len(reads) == 1
    (works[0].run / "metrics.jsonl").write_text('{"step": 3, "split": "train"}\n')
    assert [child.look().step for _ in range(2)] == [4, 4] and len(reads) == 2


def test_no_time_is_estimated_before_all_have_taken_some_steps(capsys, monkeypatch):
    shown = SweepDisplay(Console(width=200), 2, 40, 0)
    monkeypatch.setattr(displays, "QUIET_INTERVAL", 0.0)
    shown.begin("a", 0, 20)
    shown.begin("b", 10, 20)
    for steps, estimates in (((9, 10), False), ((9, 14), False), ((9, 15), True)):
        shown.look({label: Standing(Path(), "running", step=step) for label, step in zip("ab", steps, strict=True)})
        assert ("left" in capsys.readouterr().out) == estimates, steps
    shown.close()


def test_told_to_stop_they_save_and_the_rest_is_not_begun(works, trainer):
    trainer.order(**{works[0].label: {"pace": 0.2}})
    assert run(works, 1, stop=lambda: len(list(works[0].run.glob("metrics.jsonl"))) > 0) == ["stopped"] + ["unbegun"] * 3
    stand = standing(works[0].run)
    assert stand.kind == "stopped" and stand.checkpoints == (stand.step,) and 0 < stand.step < 20
    trainer.order()
    assert run(works, 4) == ["finished"] * 4
    assert standing(works[0].run).checkpoints == (stand.step, 20)


def test_an_interrupted_queue_leaves_no_process(works, trainer):
    trainer.order(**{work.label: {"pace": 5} for work in works})

    def interrupt():
        if all((work.run / "metrics.jsonl").exists() for work in works[:2]):
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(works, 2, interrupt)
    assert standing(works[0].run).kind != "running" and standing(works[1].run).kind != "running"


@pytest.mark.parametrize("lock", ["sweep.lock", "lock"])  # another sweep's claim; a training that somebody began by hand
def test_what_another_process_trains_is_left_to_it(lock, works, trainer, capfd):
    works[0].run.mkdir(parents=True)
    held = (works[0].run / lock).open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    release = threading.Timer(1.5, held.close)
    release.start()
    began = time.monotonic()
    assert run(works, 1) == ["finished"] * 4
    assert time.monotonic() - began >= 1.4
    assert [line.partition(" on")[0] for line in trainer.starts] == [work.label for work in (*works[1:], works[0])]
    assert capfd.readouterr().err.count(f"{works[0].label}: another process is training it") == 1


def test_a_folder_that_cannot_be_written_is_named(works):
    works[0].run.parent.mkdir(parents=True)
    works[0].run.write_text("a file in the way")
    with pytest.raises(ConfigError, match="cannot be written: File exists. Choose another place with --runs"):
        run(works)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells cores")
def test_cores_are_shared_out(works, trainer, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sharing, "visible_gpus", lambda: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert [s.cores for s in shares(2)] == [(0, 1, 2), (3, 4, 5)] and shares(2)[1].environment == {"OMP_NUM_THREADS": "3"}
    assert [s.cores for s in shares(4)] == [(0,), (1,), (2,), (3,)], "as many for each, or the last bits would differ"
    assert [s.cores for s in shares(8)] == [(0,), (1,), (2,), (3,), (4,), (5,), (0,), (1,)]
    assert shares(1)[0].cores == ()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells cores")
def test_a_process_runs_on_its_share_alone(works, trainer):
    before = os.sched_getaffinity(0)
    display = SweepDisplay(Console(quiet=True), 1, 20, 0)
    Queue(works[:1], [Share(cores=(min(before),))], display).run(lambda: False)
    assert trainer.starts == [f"{works[0].label} on 1\n".strip()]
    assert os.sched_getaffinity(0) == before


def test_gpus_go_round_or_are_refused(monkeypatch):
    monkeypatch.setattr(sharing, "visible_gpus", lambda: ["0", "1", "2", "3"])
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in shares(2)] == ["0,1", "2,3"]
    assert "CUDA_VISIBLE_DEVICES" not in shares(3, on_processor=True)[0].environment
    with pytest.raises(ConfigError, match="4 GPUs of this machine evenly: take 2"):
        shares(3)
