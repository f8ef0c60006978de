"""A real sweep, killed at a random moment with all that it had started, ends with the very table of one left in peace."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

TRIALS = 'trials(experiment(), grid({"model.intermediate_size": (64, 96, 128)}), control="intermediate_size=96")'


def start(file, runs):
    """Start the sweep, three at a time, in a session of its own."""
    command = [sys.executable, "-m", "jaxlm", "sweep", str(file), "--runs", str(runs), "--max-parallel", "3"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def children(pid):
    """Return the processes that a process has started, by /proc."""
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry))
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_killed_and_restarted_it_ends_with_the_same_table(sweep_file, tmp_path):
    file = sweep_file(TRIALS)
    whole = start(file, tmp_path / "whole")
    said, _ = whole.communicate(timeout=400)
    assert whole.returncode == 0, said

    seed = int(os.environ.get("JAXLM_KILL_SEED", time.time_ns() % 10_000))
    killed, target = start(file, tmp_path / "killed"), random.Random(seed).randrange(1, 30)
    runs = tmp_path / "killed" / "trials"
    while killed.poll() is None and sum(p.read_text().count("\n") for p in runs.glob("*/metrics.jsonl")) < target:
        time.sleep(0.005)
    trained_by = children(killed.pid)
    killed.send_signal(signal.SIGKILL)  # the sweep alone: its trials must not go on without it
    killed.communicate()
    deadline = time.monotonic() + 10
    while any(map(alive, trained_by)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert trained_by and not any(map(alive, trained_by)), f"seed {seed}: trials outlived their sweep"

    again = start(file, tmp_path / "killed")
    said, _ = again.communicate(timeout=400)
    assert again.returncode == 0, said
    for form in ("json", "md", "csv"):
        tables = [(tmp_path / name / "width" / f"table.{form}").read_bytes() for name in ("whole", "killed")]
        assert tables[0] == tables[1], f"differs after a kill with JAXLM_KILL_SEED={seed}"
    arms = json.loads((tmp_path / "whole" / "width" / "table.json").read_text())["arms"]
    losses = [arm["metrics"]["loss"]["values"]["0"] for arm in arms]
    assert len(set(losses)) == 3
