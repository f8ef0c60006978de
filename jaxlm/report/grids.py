"""Grids of numbers or texts with named axes, and how those of several checkpoints are laid over one another: by name."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Names = tuple[str, ...] | None
"""Of the places along an axis; None where they are only counted."""


class Grid(NamedTuple):
    """What a probe measured at one checkpoint."""

    values: np.ndarray
    """Numbers and NaN, or texts (dtype object)."""
    names: tuple[Names, ...]
    """One for each axis."""

    @property
    def texts(self) -> bool:
        """Whether it holds texts."""
        return self.values.dtype == object


class Series(NamedTuple):
    """A measure of one run over checkpoints, all of one shape."""

    names: tuple[Names, ...]
    steps: dict[int, np.ndarray]
    left_out: list[int]
    """Steps whose places cannot be told to be those of the newest."""


def grid_of(values: Any, axes: Sequence[str], labels: Any) -> Grid | None:
    """Return a measure as a grid; None where it is no full grid of numbers or texts with as many axes as it says.

    Labels that are no list of as many names as there are places are no labels.
    """
    array = array_of(values)
    if array is None or array.ndim != len(axes) or not array.size:
        return None
    given = labels if isinstance(labels, Mapping) else {}
    return Grid(array, tuple(_names(given.get(axis), size) for axis, size in zip(axes, array.shape, strict=True)))


def _names(given: Any, size: int) -> Names:
    if not isinstance(given, (list, tuple)) or len(given) != size or not all(isinstance(v, (str, int, float)) for v in given):
        return None
    return tuple(map(str, given))


def array_of(values: Any) -> np.ndarray | None:
    """Return a grid of finite numbers and NaN, or of texts (dtype object); None for anything else."""
    if isinstance(values, str):
        return np.array(values, dtype=object)
    try:
        raw = np.array(values, dtype=object)
        flat = raw.ravel().tolist()
        if flat and any(isinstance(v, str) for v in flat):
            return raw if all(v is None or isinstance(v, str) for v in flat) else None
        return raw.astype(np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        return None


def aligned(grids: Mapping[int, Grid]) -> Series:
    """Lay the grids of a run's checkpoints over one another, by the names of their places, with gaps where one has no such.

    Places that are only counted are the same where they are equally many, and those of a name that stands twice where all
    names are the same; a checkpoint that fits the newest in neither way is left out.
    """
    newest = grids[max(grids)]
    fitting = {step: grid for step, grid in sorted(grids.items()) if _fits(grid, newest)}
    names = tuple(_union([grid.names[axis] for grid in reversed(fitting.values())]) for axis in range(newest.values.ndim))
    shape = [size if each is None else len(each) for size, each in zip(newest.values.shape, names, strict=True)]
    steps = {}
    for step, grid in fitting.items():
        if grid.names == names:
            steps[step] = grid.values
            continue
        steps[step] = np.full(shape, None if grid.texts else np.nan, grid.values.dtype)
        places = [
            range(size) if all_names is None or own == all_names else _places(own or (), all_names)
            for size, own, all_names in zip(grid.values.shape, grid.names, names, strict=True)
        ]
        steps[step][np.ix_(*places)] = grid.values
    return Series(names, steps, [step for step in sorted(grids) if step not in fitting])


def _places(own: Sequence[str], names: Sequence[str]) -> list[int]:
    numbers = {name: place for place, name in enumerate(names)}
    return [numbers[name] for name in own]


def _fits(grid: Grid, newest: Grid) -> bool:
    for mine, theirs, size, other in zip(grid.names, newest.names, grid.values.shape, newest.values.shape, strict=True):
        if mine is None or theirs is None:
            if mine is not theirs or size != other:
                return False
        elif mine != theirs and (len(set(mine)) < len(mine) or len(set(theirs)) < len(theirs)):
            return False
    return True


def _union(named: Sequence[Names]) -> Names:
    if named[0] is None or all(each == named[0] for each in named):
        return named[0]
    return tuple(dict.fromkeys(name for each in named for name in each or ()))
