"""Run a part of the benchmarks in a process of its own, for a limited time, and leave nothing of it behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

MARK = "JAXLM_BENCHMARK_PART"
CACHES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


def run_apart(command: Sequence[str], folder: Path, log: Path, limit: float, beat: Callable[[], None]) -> int | None:
    """Run a command to its end; return its status, None where it took more than `limit` seconds and was stopped.

    Its output goes to `log`, its caches and temporary files into `folder`. `beat` is called twice a second. However it ends,
    and where this function is left by an exception as well, everything that it started is gone afterwards.
    """
    temporary = folder / "tmp"
    temporary.mkdir()
    # What somebody compiled before must not make a start look quick; parts that want a cache have one of their own.
    inherited = {name: value for name, value in os.environ.items() if name not in CACHES}
    environment = inherited | {
        "JAX_PLATFORMS": "cpu", "JAXLM_CACHE": str(folder / "cache"), "TMPDIR": str(temporary), "TF_CPP_MIN_LOG_LEVEL": "2",
        MARK: str(folder),
    }  # fmt: skip
    end = time.monotonic() + limit
    # Asked to end, this process must still end what it started.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
        try:
            while time.monotonic() < end:
                try:
                    return process.wait(0.5)
                except subprocess.TimeoutExpired:
                    beat()
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            end_marked(str(folder))
            signal.signal(signal.SIGTERM, before)


def end_marked(mark: str, patience: float = 10.0) -> None:
    """Kill every process that was started with this mark in its environment, sessions of their own included (Linux only)."""
    end = time.monotonic() + patience
    while (left := marked(mark)) and time.monotonic() < end:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def marked(mark: str) -> list[int]:
    """Return the processes with this mark in their environment; none where the system does not tell."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found
