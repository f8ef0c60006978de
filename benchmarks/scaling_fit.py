"""How a cost grows: the exponent of a power law, its standard error, and the most that it may be."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# A run of so many times the least seconds is timed once.
LONG = 10
# Through two points a line always goes: it shows no law.
LEAST_POINTS = 3


@dataclasses.dataclass(frozen=True)
class Fit:
    """An exponent, and its standard error: NaN of two points, for they leave nothing to judge the line by."""

    exponent: float
    error: float


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Return the slope of log y against log x by least squares; ValueError of fewer than two different x, or of y <= 0."""
    if len(x) != len(y) or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise ValueError(f"a power law needs two different points or more, all positive: x = {x}, y = {y}")
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    centred = log_x - log_x.mean()
    spread = float(centred @ centred)
    exponent = float(centred @ log_y) / spread
    rest = log_y - log_y.mean() - exponent * centred
    free = len(x) - 2
    return Fit(exponent, math.sqrt(float(rest @ rest) / free / spread) if free else math.nan)


@dataclasses.dataclass(frozen=True)
class Bar:
    """The greatest exponents that a law may have (None: said, not judged), and why those."""

    why: str
    seconds: float | None = None
    bytes: float | None = None
    start: float = 0.0
    """The least x that a line is fitted to: below it what does not grow hides what does."""

    def last(self, what: str) -> float | None:
        """Return the greatest slope between the last two points, which a line through all hides where it turns up late.

        Twice the exponent and 0.3, for two points are noisier than a line; but never more than one above the exponent.
        """
        most = getattr(self, what)
        return None if most is None else min(2 * most + 0.3, most + 1)


@dataclasses.dataclass
class Measured:
    """What one law was measured to be."""

    x: list[int]
    rounds: list[list[float]]
    """Seconds of every point, a list a round."""
    bytes: list[int | None]
    """Of every point; None where there are too few to be told from what the process takes anyway."""
    bytes_of: str = "the program's intermediate results"
    note: str = ""
    most_bytes: int | None = None
    """What the last point's bytes must stay below, where more than an exponent is asked of them."""
    wanted: int | None = None
    """The last x that was asked for; None where every point was reached."""

    @property
    def seconds(self) -> list[float]:
        """The median of every point over the rounds."""
        return [statistics.median(values) for values in zip(*self.rounds, strict=True)]


def judge(name: str, x_label: str, measured: Measured, bar: Bar) -> dict[str, Any]:
    """Return a law as benchmarks/scaling.py writes it: its points, its exponents, and whether they are within the bar.

    An exponent that cannot be fitted is None and does not pass a bar; nor does one that is fitted to fewer than three points.
    A law whose last point was not reached is not shown, which is no pass either.
    """
    found: dict[str, Any] = {
        "name": name, "x_label": x_label, "x": measured.x, "seconds": measured.seconds, "bytes": measured.bytes,
        "bytes_of": measured.bytes_of, "rounds": measured.rounds, "note": measured.note, "most_bytes": measured.most_bytes,
        "wanted": measured.wanted, "bar": {"seconds": bar.seconds, "bytes": bar.bytes}, "why": bar.why,
        "fitted_from": bar.start,
    }  # fmt: skip
    for what in ("seconds", "bytes"):
        points = [(x, y) for x, y in zip(measured.x, found[what], strict=True) if x >= bar.start and y is not None]
        try:
            line = fit(*zip(*points, strict=True)) if points else None
            last = fit(*zip(*points[-2:], strict=True)).exponent if points else None
        except ValueError:
            line = last = None
        found[f"exponent_{what}"] = line and line.exponent
        found[f"exponent_{what}_error"] = line and (line.error if math.isfinite(line.error) else None)
        found[f"last_{what}"], found[f"points_{what}"] = last, len(points)
    found["faults"] = {what: faults(found, what, bar) for what in ("seconds", "bytes")}
    if measured.most_bytes is not None and not measured.bytes[-1] <= measured.most_bytes:
        most = f"{measured.bytes[-1]:,} bytes at the last point, at most {measured.most_bytes:,} wanted"
        found["faults"]["bytes"].append(f"{name}: {most}")
    found["shown"] = measured.wanted is None or measured.x[-1] >= measured.wanted
    end = [] if found["shown"] else [f"{name}: not shown beyond {measured.x[-1]:,}, {measured.wanted:,} was asked for"]
    found["missed"] = [*found["faults"]["seconds"], *found["faults"]["bytes"], *end]
    return found | {"passed": not found["missed"]}


def faults(law: Mapping[str, Any], what: str, bar: Bar) -> list[str]:
    """Return in words how the seconds or bytes of a law do not keep its bar."""
    most, steepest, exponent = getattr(bar, what), bar.last(what), law[f"exponent_{what}"]
    if most is None:
        return []
    if exponent is None or law[f"points_{what}"] < LEAST_POINTS:
        points = f"too few points ({law[f'points_{what}']}, at least {LEAST_POINTS} wanted)"
        return [f"{law['name']}: {what} cannot be fitted: {points}"]
    said, last = [], law[f"last_{what}"]
    if not exponent <= most:
        said.append(f"{law['name']}: {what} grow with exponent {exponent:.2f}, at most {most:g} wanted")
    if not last <= steepest:
        said.append(f"{law['name']}: {what} grow with exponent {last:.2f} at the end, at most {steepest:g} wanted there")
    return said


def take_turns(
    points: Mapping[int, Callable[[], object]], *, rounds: int, bound: float, steepest: float, least: float = 0.2
) -> tuple[list[int], list[list[float]]]:
    """Run all points once a round, from the smallest on, and return those reached and their seconds, a list a round.

    A point's seconds are the median of as many runs as `least` seconds hold, one at least, after a first that does not count.
    `bound` is of the whole: a point that would pass it if the cost grew from the last one with exponent `steepest` is left out
    with all after it, and no round begins that would.
    """
    began, reached, first = time.perf_counter(), [], []
    for x in sorted(points):
        expected = first[-1] * (x / reached[-1]) ** steepest if reached else 0.0
        if time.perf_counter() - began + expected > bound:
            break
        start = time.perf_counter()
        points[x]()
        took = time.perf_counter() - start
        if time.perf_counter() - began > bound and reached:
            break
        reached.append(x)
        # The first run of a program is not like the others, unless it is a long one.
        first.append(took if took > LONG * least else _median_run(points[x], least))
    found = [first]
    while len(found) < rounds and time.perf_counter() - began + sum(max(least, each) for each in first) < bound:
        found.append([_median_run(points[x], least) for x in reached])
    return reached, found


def _median_run(run: Callable[[], object], least: float) -> float:
    times, end = [], time.perf_counter() + least
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
