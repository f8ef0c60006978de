"""What the table of all runs costs the host: `jaxlm runs` over 10 to 10,000 folders."""

import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.scaling_fit import Measured
from jaxlm.sweep.index import INDEX

sys.path.append(str(Path(__file__).parent))  # scripts beside one another import each other flatly

from runs_index import listed, make_runs
from timed import timed

COUNTS, QUICK_COUNTS = (10, 100, 1000, 3000, 10_000), (10, 100, 400)
PEAK = "the command's peak over what it takes for the fewest runs"
TOLD = 4 * 2**20  # bytes: by less than this the peak of one and the same process differs from time to time


def index(quick: bool) -> Measured:
    """Every run read and listed; see benchmarks/runs_index.py for what a run is made of."""
    return measure(quick, unchanged=False)


def index_unchanged(quick: bool) -> Measured:
    """The same again, when nothing has changed since."""
    return measure(quick, unchanged=True)


def measure(quick: bool, *, unchanged: bool) -> Measured:
    """List more and more runs in this process, for the time, and once in another, for its peak of memory."""
    counts = QUICK_COUNTS if quick else COUNTS
    folder = Path(tempfile.mkdtemp(prefix="scaling-"))
    seconds: list[list[float]] = []
    peaks: list[int] = []
    try:
        for count in counts:
            make_runs(folder, count)
            if not seconds:
                listed(folder, count)  # the first reading in a process imports JAX
            times = []
            for _ in range(1 if quick else 3 if unchanged else 2):
                if not unchanged:
                    (folder / INDEX).unlink(missing_ok=True)
                times.append(listed(folder, count)[0])
            seconds.append(times[1:] if unchanged and len(times) > 1 else times)
            if not unchanged:
                (folder / INDEX).unlink(missing_ok=True)
            peaks.append(peak_of([sys.executable, "-m", "jaxlm", "runs", str(folder), "--limit", "0"]))
    finally:
        shutil.rmtree(folder)
    rounds = [list(values) for values in zip(*seconds, strict=True)]
    # What Python and JAX take does not grow; what few runs add to it cannot be told from chance, and is no point of a line.
    grown = [peak - peaks[0] if peak - peaks[0] >= TOLD else None for peak in peaks]
    return Measured(list(counts), rounds, grown, bytes_of=PEAK)


def peak_of(command: list[str]) -> int:
    """Run a command and return the most memory that its process held."""
    taken = timed(command)
    if taken.status:
        raise RuntimeError(f"{' '.join(command[1:4])} ended with status {taken.status}")
    return taken.peak_bytes
