"""Lines as a page draws them: the steps of several runs together, thinned so that no peak is lost, smoothed where noisy."""

import itertools
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

DIGITS = 6

Points = Mapping[int, float | None]
"""step -> value, None or nan where the record has a row and no finite number."""


def number(value: float | None, digits: int = DIGITS) -> float | None:
    """Return a number as it is drawn and exported, with so many significant digits; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def joined(
    runs: Sequence[int], values: Sequence[Points], max_points: int, smooth: bool = False, lost: Container[int] = ()
) -> dict[str, Any] | None:
    """Return the curves of an arm's seeds over the same steps, at most `max_points` of them; None where there is nothing.

    Of each stretch of steps those two are kept where any seed is lowest and where any is highest, so that no peak is lost.
    A seed's "gaps" are the stretches of steps, first and last, at which its record has no finite number; its "end" is where
    it ended (of smoothed lines, smoothed), nan where that is not finite. Runs in `lost` diverged where they end.
    """
    pairs = [(run, points) for run, points in zip(runs, values, strict=True) if points]
    if not pairs:
        return None
    steps = sorted(set(itertools.chain.from_iterable(points for _, points in pairs)))
    table = np.array([[_float(points.get(step)) for step in steps] for _, points in pairs])
    kept = thinned(table, max_points)
    seeds = []
    for (run, points), line in zip(pairs, table, strict=True):
        seed: dict[str, Any] = {"run": run, "y": [number(v) for v in line[kept].tolist()]}
        means = running_mean(line) if smooth else line
        if smooth:
            seed["smooth"] = [number(v) for v in means[kept].tolist()]
        own = max(points)
        if gaps := _gaps(points) + ([[own + 1, steps[-1]]] if run in lost and own < steps[-1] else []):
            seed["gaps"] = gaps
        seed["end"] = float(means[steps.index(own)]) if run not in lost and math.isfinite(_float(points[own])) else math.nan
        seeds.append(seed)
    return {"steps": [steps[i] for i in kept], "seeds": seeds}


def _gaps(points: Points) -> list[list[int]]:
    """Return the first and last step of each stretch in which no value is finite."""
    if all(value is not None and math.isfinite(value) for value in points.values()):
        return []
    stretches = itertools.groupby(sorted(points), lambda step: math.isnan(_float(points[step])))
    found = [list(steps) for lost, steps in stretches if lost]
    return [[steps[0], steps[-1]] for steps in found]


def _float(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else float(value)


def thinned(table: np.ndarray, most: int) -> np.ndarray:
    """Return which columns of [lines, steps] to draw: the first, the last, and of each stretch its lowest and its highest."""
    size = table.shape[1]
    if size <= most:
        return np.arange(size)
    stretches = max(1, (most - 2) // 2)
    edges = np.linspace(1, size - 1, stretches + 1).round().astype(int)
    low = np.where(np.isnan(table), np.inf, table).min(axis=0)
    high = np.where(np.isnan(table), -np.inf, table).max(axis=0)
    kept = {0, size - 1}
    for begin, end in itertools.pairwise(edges):
        if end > begin:
            kept |= {begin + int(low[begin:end].argmin()), begin + int(high[begin:end].argmax())}
    return np.array(sorted(kept))


def running_mean(line: np.ndarray) -> np.ndarray:
    """Return means over about a fiftieth of the line around each point, shorter at its ends; what is not known is left out."""
    half = len(line) // 100
    known = ~np.isnan(line)
    sums = np.concatenate([[0.0], np.where(known, line, 0.0).cumsum()])
    counts = np.concatenate([[0], known.cumsum()])
    places = np.arange(len(line))
    begin, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(line))
    with np.errstate(invalid="ignore"):
        means = (sums[end] - sums[begin]) / (counts[end] - counts[begin])
    return np.where(known, means, np.nan)
