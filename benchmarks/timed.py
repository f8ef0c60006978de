"""Run a command as a user does, in a process of its own, and say what it took."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Taken:
    """What a process took, those that it started and waited for included."""

    seconds: float
    core_seconds: float
    peak_bytes: int  # of the largest of its processes
    status: int


# A process inherits the peak of the one that starts it (until exec it runs on its memory), so a small one stands between.
BETWEEN = """
import json, os, sys, time
report = int(sys.argv[1])
os.set_inheritable(report, False)
began = time.monotonic()
_, status, usage = os.wait4(os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ), 0)
seconds = time.monotonic() - began
taken = seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, os.waitstatus_to_exitcode(status)
os.write(report, json.dumps(taken).encode())
"""


def timed(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Taken:
    """Run a command to its end, its standard output thrown away; `environment` is added to this process's.

    Raises FileNotFoundError where there is no such program.
    """
    ours, theirs = os.pipe()
    with open(ours, "rb") as answer:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BETWEEN, str(theirs), *map(str, command)],
                stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})}, pass_fds=(theirs,),
            )  # fmt: skip
        finally:
            os.close(theirs)
        report = answer.read()
    if process.wait():
        raise FileNotFoundError(f"{command[0]} could not be started")
    seconds, core_seconds, memory, status = json.loads(report)
    return Taken(seconds, core_seconds, memory * (1 if sys.platform == "darwin" else 1024), status)


def jaxlm(*arguments: str | Path, environment: Mapping[str, str] | None = None, may_fail: bool = False) -> Taken:
    """Run a command of jaxlm; SystemExit where it fails, unless it may."""
    taken = timed([sys.executable, "-m", "jaxlm", *arguments], environment)
    if taken.status and not may_fail:
        raise SystemExit(f"jaxlm {arguments[0]} ended with status {taken.status}")
    return taken
