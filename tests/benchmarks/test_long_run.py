"""The long run in small, and that what grows is seen to grow."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.long_run import Looks
from benchmarks.long_run_judge import A_ROW, Sample, check_disk, judge, slope

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="the long run reads /proc")
def test_nothing_gathers_in_three_hundred_steps(tmp_path):
    command = [sys.executable, "-m", "benchmarks.long_run", "--steps", "300", "--json", str(tmp_path / "long.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "long.json").read_text())
    found = {entry["name"]: entry for entry in record["results"]}
    assert found["threads"]["after"] > 1 and found["files"]["after"] > 3 and found["compilations"]["after"] > 1
    assert len(record["looks"]) > 20 and (tmp_path / "long.png").stat().st_size > 10_000


def samples(count=200, **grows):
    """Return looks at a run of which nothing grows but what is named, by so much a step."""
    made = []
    for k in range(1, count + 1):
        step = 100 * k
        wave = (k * 7919) % 13 - 6  # what a look sees goes up and down
        memory = {"resident": 500_000_000 + 4096 * wave, "allocated": 300_000_000 + 100 * wave, "arenas": 400_000_000}
        counts = {"threads": 30 + k % 2, "files": 20, "arrays": 200 + k % 3, "compilations": 40}
        for name, rate in grows.items():
            part = memory if name in memory else counts
            part[name] += int(rate * step)
        made.append(Sample(step=step, seconds=0.01 * step, cpu_seconds=0.02 * step, yard_seconds=0.002, **memory, **counts))
    return made


@pytest.mark.parametrize(
    ("name", "rate"),
    [("resident", 600), ("allocated", 600), ("arenas", 2000), ("threads", 1e-3), ("files", 1e-3), ("arrays", 1e-3),
     ("compilations", 1e-4)],
)  # fmt: skip
def test_what_grows_is_named(name, rate):
    assert judge(samples())[1] == []
    assert [line.partition(" ")[0] for line in judge(samples(**{name: rate}))[1]] == [name]


def test_a_step_that_takes_longer_and_longer_is_named():
    slower = [dataclasses.replace(s, cpu_seconds=s.cpu_seconds + 1e-6 * s.step**2) for s in samples()]
    plain, whole = judge(slower)[1]
    assert plain.startswith("work of a plain step grows") and whole.startswith("work of a step, all in all grows")
    busy = [dataclasses.replace(s, yard_seconds=s.yard_seconds * (1 + s.step / 7000)) for s in slower]
    assert judge(busy)[1] == []  # all took longer: others were at work


def test_validations_that_take_longer_and_longer_are_named():
    """A fifth of the looks see one; the first take half a second, the last a whole one."""
    cpu, made = 0.0, []
    for k, sample in enumerate(samples()):
        cpu += 2.0 + (k % 5 == 0) * (0.5 + k / 400)
        made.append(dataclasses.replace(sample, cpu_seconds=cpu))
    (line,) = judge(made)[1]
    assert line.startswith("work of saves and validations, a step grows")


def test_looks_that_end_early_are_a_fault():
    def step():
        raise RuntimeError("cannot look")

    with pytest.raises(RuntimeError, match="cannot look"), Looks(step, 1) as looks:
        looks._thread.join(30)


def test_the_error_of_a_slope_covers_it():
    steps = list(range(0, 10_000, 10))
    rate, error = slope(steps, [3.0 * step + 500 * ((step * 31) % 7) for step in steps])
    assert abs(rate - 3.0) < 3 * error and error < 0.1


def test_what_lies_on_the_disk_is_counted(tmp_path):
    for step in (20, 30):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    rows = [{"step": step, "split": "train"} for step in range(30)] + [{"step": 30, "split": "validation"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check_disk(tmp_path, 30, 10, 2, 1) == []
    (tmp_path / "checkpoints" / "10").mkdir()
    (tmp_path / "config.json.tmp").touch()
    (tmp_path / "checkpoints" / "30" / "weights").write_bytes(bytes(100))
    (tmp_path / "tensorboard").write_bytes(bytes(31 * A_ROW + 1))
    (tmp_path / "log").write_bytes(bytes(2 << 20))
    wrong = check_disk(tmp_path, 30, 10, 2, 2)
    assert [" ".join(line.split()[:2]) for line in wrong[:3]] == ["checkpoints [10,", "temporary files", "the record"]
    assert (
        "they grow" in wrong[3] and wrong[4].startswith("tensorboard has") and "of other files" in wrong[5] and len(wrong) == 6
    )
