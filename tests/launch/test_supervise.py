"""Processes that live and die together: real ones, killed for real."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from jaxlm.launch import supervise
from jaxlm.launch.supervise import Processes

# Each says its number and what SIGTERM does to it, then lives for a minute.
CHILD = """
import os, signal, sys, time
number = os.environ["NUMBER"]
def end(*_):
    print("told to stop", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("DEAF") == number else end)
print("process", number, "is", os.getpid(), flush=True)
if os.environ.get("FAILS") == number:
    for line in range(30):
        print("line", line)
    sys.exit(7)
time.sleep(60)
"""


def environments(count, **settings):
    return [os.environ | {"NUMBER": str(k)} | settings for k in range(count)]


def pids(folder, count):
    """Return the processes' ids once all have said them."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        logs = [folder / f"process-{k}.log" for k in range(count)]
        said = [re.search(r"is (\d+)\n", log.read_text()) if log.exists() else None for log in logs]
        if all(said):
            return [int(found[1]) for found in said]
        time.sleep(0.02)
    raise AssertionError("the processes did not start")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(ids, seconds):
    deadline = time.monotonic() + seconds
    while any(map(alive, ids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, ids))


def test_one_that_fails_brings_the_others_down_and_is_reported(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(supervise, "PATIENCE", 0.3)
    began = time.monotonic()
    death = Processes([sys.executable, "-c", CHILD], environments(3, FAILS="1", DEAF="2"), tmp_path, grace=1.0).run()
    assert time.monotonic() - began < 15
    assert (death.number, death.status, death.how) == (1, 7, "ended with exit status 7")
    assert death.last_lines.splitlines() == [f"line {n}" for n in range(10, 30)]
    assert "told to stop" in (tmp_path / "process-0.log").read_text()  # SIGTERM was enough for one
    assert gone(pids(tmp_path, 3), 5)  # and SIGKILL for the one that would not hear
    assert "process 0 is" in capfd.readouterr().out


SUPERVISOR = """
import os, sys
from pathlib import Path
from jaxlm.launch.supervise import Processes
folder = Path(sys.argv[1])
processes = Processes([sys.executable, "-c", sys.argv[2]], [os.environ | {"NUMBER": str(k)} for k in range(2)], folder, 5.0)
death = processes.run()
print("death", death and (death.number, death.how), "stopped", processes.stopped, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, "a child"])
def test_nobody_is_left_behind(how, tmp_path):
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, tmp_path, CHILD], stdout=subprocess.PIPE, text=True)
    ids = pids(tmp_path, 2)
    if how == "a child":
        os.kill(ids[1], signal.SIGKILL)
        time.sleep(0.2)
        supervisor.send_signal(signal.SIGTERM)  # the user's patience is shorter than the supervisor's
    else:
        supervisor.send_signal(how)
    said, _ = supervisor.communicate(timeout=20)
    assert gone(ids, 5)
    if how == "a child":
        assert "death (1, 'was killed by SIGKILL') stopped True" in said
    elif how != signal.SIGKILL:
        assert "death None stopped True" in said
        assert all("told to stop" in (tmp_path / f"process-{k}.log").read_text() for k in range(2))
