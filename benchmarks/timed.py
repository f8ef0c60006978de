"""Run a command as a user does, in a process of its own, and say what it took."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Taken:
    """What a process took, those that it started and waited for included."""

    seconds: float
    core_seconds: float
    peak_bytes: int  # of the largest of its processes
    status: int


def timed(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Taken:
    """Run a command to its end, its standard output thrown away; `environment` is added to this process's."""
    began = time.monotonic()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Taken(seconds, usage.ru_utime + usage.ru_stime, memory, process.returncode)


def jaxlm(*arguments: str | Path, environment: Mapping[str, str] | None = None, may_fail: bool = False) -> Taken:
    """Run a command of jaxlm; SystemExit where it fails, unless it may."""
    taken = timed([sys.executable, "-m", "jaxlm", *arguments], environment)
    if taken.status and not may_fail:
        raise SystemExit(f"jaxlm {arguments[0]} ended with status {taken.status}")
    return taken
