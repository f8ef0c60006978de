"""Whether anything grows in a long run: memory, threads, open files, arrays, compilations, time a step, or the disk.

    python -m benchmarks.long_run --steps 20000 --json docs/proof/long_run.json        # writes a picture beside it, too
    python -m benchmarks.long_run --what generation --steps 2000                      # a loop of generations instead

One process takes so many tiny steps with checkpoints, validations, the record and TensorBoard on. A thread looks every now and
then at resident memory, the bytes that malloc has given out, threads, open files, JAX's live arrays and compilations, the
processor's seconds and the folder. After the first half of the run (a fifth for counts and times) a line is fitted to each.

What is known to grow is not ours: tensorstore 0.1.86 keeps about 1 KB each time that it tells in JSON where an array lies,
which Orbax asks twice an array and save (here some 130 bytes a step); the bounds leave room for that.

It fails where resident memory grows by 1 % or more over the second half, where it or malloc's bytes grow by significantly more
than 256 bytes a step (a slope less three standard errors, of means of tenths), where threads, open files, live arrays or
compilations of the second half are more than before it, where a step of the last tenth takes more than 1.1 times the work of
one in the second tenth, plain or all in all, or saves and validations more than 1.5 times (work: the processor's seconds over
those of a fixed piece of work done beside it, for with others on the machine both take longer; wall time is told, too), and
where the folder holds more than the checkpoints that are kept, all of one size, and a line of the record a step. Memory and
times of fewer than 2,000 steps, which are still settling, are told and not judged.
"""

import ctypes
import dataclasses
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.long_run_judge import Sample, judge


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How long."""

    steps: int = 20_000
    """Training steps, or generations."""
    what: Literal["training", "preferences", "generation"] = "training"
    """What is done so often."""
    json: Path | None = None
    """Write what was measured there, and a picture beside it."""
    looks: int = 400
    """Samples, about."""


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def _malloc_told() -> Callable[[], tuple[int, int]]:
    """Return a function that gives the bytes allocated and the bytes of the arenas."""
    if platform.libc_ver()[0] != "glibc" or not hasattr(library := ctypes.CDLL(None), "mallinfo2"):
        return lambda: (-1, -1)
    library.mallinfo2.restype = _Mallinfo

    def told() -> tuple[int, int]:
        found = library.mallinfo2()
        return found.uordblks + found.hblkhd, found.arena

    return told


class Looks:
    """Looks at this process from a thread of its own, whenever the work has come some steps further."""

    def __init__(self, step: Callable[[], int], every: int):
        """`step()` tells how far the work is."""
        import jax

        self.samples: list[Sample] = []
        self._step, self._every, self._compilations = step, every, 0
        self._malloc, self._ended = _malloc_told(), threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._look_on, name="looks", daemon=True)
        self._page = os.sysconf("SC_PAGE_SIZE")

        def count(event: str, seconds: float, **_: Any) -> None:
            self._compilations += event.endswith("backend_compile_duration")

        jax.monitoring.register_event_duration_secs_listener(count)

    def __enter__(self) -> "Looks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def _look_on(self) -> None:
        began, due = time.monotonic(), 1
        try:
            while not self._ended.wait(0.02):
                step = self._step()
                if step >= due:
                    due = step + self._every
                    self.samples.append(self._look(step, time.monotonic() - began))
        except BaseException as fault:  # raised where the looks end: without them nothing is proven
            self._fault = fault

    def _look(self, step: int, seconds: float) -> Sample:
        import jax

        resident = int(Path("/proc/self/statm").read_text().split()[1]) * self._page
        threads, files = (len(os.listdir(f"/proc/self/{what}")) for what in ("task", "fd"))
        cpu, yard = time.process_time(), _yard()
        return Sample(
            step, seconds, cpu, yard, resident, *self._malloc(), threads, files, len(jax.live_arrays()),
            self._compilations,
        )  # fmt: skip


def _yard() -> float:
    """Return the processor's seconds that this thread needs for some Python and some NumPy."""
    import numpy as np

    began = time.thread_time()
    sum(number * number for number in range(10_000))
    np.sort(np.random.default_rng(0).random(20_000))
    return time.thread_time() - began


def lines_of(path: Path) -> Callable[[], int]:
    """Return a function that counts the training rows of a record that grows, reading what is new alone."""
    place, count = 0, 0

    def counted() -> int:
        nonlocal place, count
        if path.exists():
            with path.open("rb") as file:
                file.seek(place)
                new = file.read()
            place += len(new)
            count += new.count(b'"split": "train"')
        return count

    return counted


def main(arguments: Arguments) -> int:
    """Run, look, and judge."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from benchmarks import long_run_report, long_run_work
    from jaxlm.commands.start import start_jax

    start_jax(2)
    every = max(1, arguments.steps // arguments.looks)
    with tempfile.TemporaryDirectory() as home:
        os.environ["JAXLM_CACHE"] = f"{home}/cache"
        work = long_run_work.WORKS[arguments.what](Path(home), arguments.steps)
        with Looks(work.step, every) as looks:
            work.run()
        found, wrong = judge(looks.samples)
        wrong += work.check()
        disk = sum(path.stat().st_size for path in Path(home).rglob("*") if path.is_file())
    long_run_report.show(found, wrong)
    if arguments.json:
        facts = {"what": arguments.what, "steps": arguments.steps, "disk_bytes": disk, "wrong": wrong}
        long_run_report.write(arguments.json, looks.samples, found, facts)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
