"""Measures with axes as pictures that a page can hold: fewer checkpoints, means of neighbours, and notes that say so."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.report.grids import Grid, Names, Series, aligned, array_of
from jaxlm.report.lines import number
from jaxlm.report.material import Material

# Numbers of all pictures together that a page holds, about; places along an axis of one, at most and where room is short.
MOST_NUMBERS, MOST_PLACES, FEWEST_PLACES = 150_000, 128, 16
# Places with names are not averaged: of so many at least the first are shown.
FEWEST_NAMED = 64

Measured = dict[int, Series]
"""place of a run -> what it measured."""


def router_loads(material: Material) -> dict[str, Any] | None:
    """Return the share of assignments of every expert at every validation, over an even share, layer by layer."""
    found: Measured = {}
    for run in material.runs:
        loads = {row["step"]: array_of(row["router_load"]) for row in run.by_split["validation"] if "router_load" in row}
        grids = {}
        for step, load in loads.items():
            if load is not None and load.ndim == 2 and load.dtype != object and load.size:
                layers = run.layers(len(load))
                names = tuple(map(str, layers)) if layers else tuple(f"mixture {place}" for place in range(len(load)))
                grids[step] = Grid(load * load.shape[1], (names, None))
        if grids:
            found[run.place] = aligned(grids)
    if not found:
        return None
    made = picture("router-load", "Load of every expert", ("layer", "expert"), found, "1 is an even share", MOST_NUMBERS // 4)
    return made | {
        "about": "Share of assignments of every expert at each validation, over an even share.",
        "mid": 1,
        "over_steps": True,
    }


def shares(sizes: Mapping[Any, int], total: int) -> dict[Any, int]:
    """Return how much of `total` each gets: what it asks for, where that is no more than its fair share of what is left."""
    given, left = {}, total
    for place, (key, size) in enumerate(sorted(sizes.items(), key=lambda entry: entry[1])):
        given[key] = min(size, left // (len(sizes) - place))
        left -= given[key]
    return given


def size_of(measured: Measured, places: int = MOST_PLACES) -> int:
    """Return how many numbers a measure has with so many places along an axis, when none of its checkpoints is left out."""
    return sum(
        len(series.steps)
        * math.prod(_most(names, size, places) for names, size in zip(series.names, _shape(series), strict=True))
        for series in measured.values()
    )


def _shape(series: Series) -> tuple[int, ...]:
    return next(iter(series.steps.values())).shape


def _most(names: Names, size: int, places: int) -> int:
    return min(size, places if names is None else max(places, FEWEST_NAMED))


def picture(key: str, title: str, axes: Sequence[str], measured: Measured, unit: str, room: int) -> dict[str, Any]:
    """Return frames over checkpoints of every run within `room` numbers."""
    notes: dict[str, None] = {}
    frames = sum(len(series.steps) for series in measured.values())
    most, places = max(len(series.steps) for series in measured.values()), MOST_PLACES
    while (
        places > FEWEST_PLACES and min(2, most) * size_of(measured, places) > room * most
    ):  # not even two checkpoints would fit
        places //= 2
    each = max(2, room * most // max(1, size_of(measured, places)))
    if most > each:
        notes[f"{each} of up to {most} checkpoints of each run are shown, evenly spaced ({frames} were measured)"] = None
    runs = []
    for place, series in measured.items():
        kept = even(sorted(series.steps), each)
        shape = _shape(series)
        ways = [math.ceil(size / places) if names is None else 1 for names, size in zip(series.names, shape, strict=True)]
        sizes = [_most(names, size, places) for names, size in zip(series.names, shape, strict=True)]
        for axis, names, size, many, shown in zip(axes, series.names, shape, ways, sizes, strict=True):
            if many > 1:
                notes[f"along {axis}, each place is the mean of {many}"] = None
            if names is not None and shown < size:
                notes[f"along {axis}, the first {shown} of {size} are shown"] = None
        whole = tuple(slice(None) if names is None else slice(n) for names, n in zip(series.names, sizes, strict=True))
        arrays = [_coarse(series.steps[step][whole], ways) for step in kept]
        runs.append(
            {
                "run": place,
                "steps": kept,
                "shape": list(arrays[0].shape),
                "labels": {
                    axis: _named(names, size, many)[:shown]
                    for axis, names, size, many, shown in zip(axes, series.names, shape, ways, arrays[0].shape, strict=True)
                },
                "values": [[number(v, 5) for v in array.ravel().tolist()] for array in arrays],
            }
        )
    return {"id": key, "title": title, "axes": list(axes), "unit": unit, "runs": runs, "notes": list(notes), "mid": _mid(runs)}


def _mid(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Return 0 where numbers of both signs ask for a scale with a middle."""
    flat = [v for run in runs for frame in run["values"] for v in frame if v is not None]
    return 0 if flat and min(flat) < 0 < max(flat) and min(flat) < -0.05 * max(flat) else None


def even(steps: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the steps, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[i] for i in dict.fromkeys(np.linspace(0, len(steps) - 1, most).round().astype(int).tolist())]


def _coarse(array: np.ndarray, ways: Sequence[int]) -> np.ndarray:
    """Return means over so many neighbours along each axis; the last mean may be of fewer."""
    for axis, many in enumerate(ways):
        if many > 1:
            pieces = np.array_split(array, range(many, array.shape[axis], many), axis=axis)
            array = np.stack([_mean(piece, axis) for piece in pieces], axis=axis)
    return array


def _mean(piece: np.ndarray, axis: int) -> np.ndarray:
    known = ~np.isnan(piece)
    with np.errstate(invalid="ignore"):
        return np.where(known, piece, 0.0).sum(axis=axis) / known.sum(axis=axis)


def _named(names: Names, size: int, many: int) -> list[str]:
    """Return what an axis's places are called, neighbours by the first and the last."""
    if names is not None:
        return list(names)
    if many == 1:
        return [str(i) for i in range(size)]
    return [f"{i}–{min(i + many, size) - 1}" if i + 1 < size else f"{i}" for i in range(0, size, many)]
