"""Where the time of a run went, over all its starts: goodput is the share of wall time in steps that count.

Every second of a start is of one kind (`KINDS`). The record is rows of split "goodput" in metrics.jsonl: the seconds of this
start so far, of all starts, and their goodput, written after the first step, with every checkpoint and at the end. The last
row of a start says all of it; of a start that was killed, what came after its last row is known only from the training rows
behind it, and the time from the last of those to the kill, and from there to the next start, is not counted at all.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KINDS = (
    "starting",  # from the process's first moment to the run's first line
    "preparing",  # data: encoding and packing, or finding it done
    "restoring",  # reading a checkpoint, or drawing the first state
    "compiling",
    "stepping",  # steps that count: the loop dispatches them and waits for their results
    "waiting",  # for the next batch
    "evaluating",
    "saving",  # what the loop waits for; the rest is written in the background
    "redone",  # steps whose results were lost with a start that ended before its next checkpoint
    "other",  # curves, samples, summary, waiting for the last save
)

_MOST_SECONDS = 1e12  # a record may say anything


def process_age() -> float:
    """Return the seconds since this process began; 0 where the system does not say."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # field 22 of proc(5), in ticks
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


class Clock:
    """Gives every moment of a start to one kind."""

    def __init__(self, age: float = 0.0):
        """Begin with "starting", `age` seconds ago."""
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._kind, self._since = "starting", time.monotonic() - age

    def turn(self, kind: str) -> str:
        """Count what follows as `kind`; return what was counted until now."""
        now = time.monotonic()
        self.seconds[self._kind] += now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Count the block as `kind`, and then go on as before."""
        before = self.turn(kind)
        try:
            yield
        finally:
            self.turn(before)

    def read(self) -> dict[str, float]:
        """Return the seconds of each kind so far."""
        self.turn(self._kind)
        return dict(self.seconds)


def share(seconds: dict[str, float]) -> float:
    """Return goodput: seconds in steps that count over all seconds."""
    return seconds["stepping"] / max(sum(seconds.values()), 1e-9)


def by_kind(values: Any) -> dict[str, float]:
    """Return the seconds of every kind as a goodput row has them; 0 where it has no number."""
    known = values if isinstance(values, dict) else {}
    return {kind: _seconds(known.get(kind)) for kind in KINDS}


def _seconds(value: Any) -> float:
    return float(value) if type(value) in (int, float) and abs(value) < _MOST_SECONDS else 0.0


def by_start(rows: Iterable[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Return what each start's last row says of it, by the number of the start, oldest first."""
    found = {row["start"]: by_kind(row.get("seconds")) for row in rows if row["split"] == "goodput"}
    return dict(sorted(found.items()))


def total(starts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the seconds of each kind over several starts."""
    starts = list(starts)
    return {kind: sum(seconds[kind] for seconds in starts) for kind in KINDS}


def row_of(seconds: dict[str, float], start: int, earlier: Iterable[dict[str, float]]) -> dict[str, Any]:
    """Return the values of a row: this start's `seconds`, those of all starts, and their goodput."""
    everything = total([*earlier, seconds])

    def rounded(values: dict[str, float]) -> dict[str, float]:
        return {kind: round(value, 3) for kind, value in values.items()}

    return {"start": start, "seconds": rounded(seconds), "all_seconds": rounded(everything), "goodput": share(everything)}


def settle_earlier(rows: Sequence[dict[str, Any]], next_step: int, every: int = 1) -> dict[int, dict[str, float]]:
    """Return `by_start` of a record as it was found, corrected for a run that now goes on at `next_step`.

    Steps from there on were taken for nothing: their seconds go from "stepping" to "redone". Training rows behind a start's
    last goodput row are added to it. One in `every` steps has a row, which stands for the others.
    """
    starts = by_start(rows)
    if not starts:
        return {}
    last = max(place for place, row in enumerate(rows) if row["split"] == "goodput")
    counted = dict.fromkeys(starts, 0.0)  # seconds lost, of those in "stepping" already
    owner = None
    for row in reversed(rows[: last + 1]):  # a training row is of the start that the next goodput row is of
        if row["split"] == "goodput":
            owner = row["start"]
        elif row["split"] == "train" and row["step"] >= next_step:
            counted[owner] += every * _seconds(row.get("step_seconds"))
    newest = starts[max(starts)]
    for row in rows[last + 1 :]:
        if row["split"] == "train":
            newest["redone" if row["step"] >= next_step else "stepping"] += every * _seconds(row.get("step_seconds"))
    for start, lost in counted.items():
        lost = min(lost, starts[start]["stepping"])
        starts[start]["stepping"] -= lost
        starts[start]["redone"] += lost
    return starts
