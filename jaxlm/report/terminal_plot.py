"""Curves in a terminal: braille characters, each of them two by four dots.

A library for this (plotext) would draw no better what is needed here, and be one more dependency for two functions.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"
# The bit of each dot of a braille character, by row from the top and column.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_LABEL = 8


class Curve(NamedTuple):
    """Numbers over steps: a line of their means, or marks."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    """What is not finite is left out, but its step is on the axis."""
    style: str
    mark: str = ""
    """The character that stands for a value; empty: a line."""


def plot(curves: Sequence[Curve], width: int, height: int, *, logarithmic: bool | None = None) -> Text:
    """Return curves over a common axis of steps in `height` lines of `width` characters, axes and legend included.

    A line shows means over about a fiftieth of the steps, one for each half of a character: a run of millions of steps is drawn
    from as many numbers as there is room for. The axis of values is `logarithmic` (None: where they are
    positive and the greatest is more than three times the least). Later curves lie over earlier ones.
    """
    width, height = max(width, _LABEL + 12), max(height, 4)
    columns, lines = width - _LABEL - 1, height - 2
    there = [curve for curve in curves if len(curve.steps)]
    drawn = [curve for curve in map(_finite, there) if len(curve.steps)]
    if not drawn:
        said = "no finite values" if there else "no values yet"
        return Text("\n".join([said, *[""] * (height - 1)]), style="dim")
    first, last = (float(pick([pick(curve.steps) for curve in there])) for pick in (np.min, np.max))
    last = max(last, first + 1)
    means = [curve if curve.mark else _smoothed(curve, first, last, 2 * columns) for curve in drawn]
    low, high = (float(pick([pick(curve.values) for curve in means])) for pick in (np.min, np.max))
    if logarithmic is None:
        logarithmic = low > 0 and high > 3 * low
    scale = math.log if logarithmic else float
    bottom, top = scale(low), scale(high)
    if top - bottom < 1e-12:
        bottom, top = bottom - 0.5 * (abs(bottom) or 1), top + 0.5 * (abs(top) or 1)
    cells = [[(" ", "")] * columns for _ in range(lines)]
    for curve in means:
        x = (curve.steps - first) / (last - first) * (2 * columns - 1)
        heights = np.log(curve.values) if logarithmic else curve.values
        y = (top - heights) / (top - bottom) * (4 * lines - 1)
        (_draw_marks if curve.mark else _draw_line)(cells, np.round(x).astype(int), np.round(y).astype(int), curve)
    labels = {0: top, lines - 1: bottom} | (
        {lines // 2: top - (top - bottom) * (lines // 2) / (lines - 1)} if lines > 4 else {}
    )
    text = Text()
    for number, line in enumerate(cells):
        value = labels.get(number)
        text.append(f"{'' if value is None else _short(math.exp(value) if logarithmic else value):>{_LABEL}}", style="dim")
        text.append("│", style="dim")
        for char, style in line:
            text.append(char, style=style)
        text.append("\n")
    ends = f"{first:,.0f}", f"{last:,.0f}"
    text.append(" " * _LABEL + "└" + ends[0] + f"{ends[1]:>{max(1, columns - len(ends[0]))}}" + "\n", style="dim")
    text.append(" " * (_LABEL + 1))
    for curve in drawn:
        text.append(f"{curve.mark or '⠒⠒'} {curve.name}   ", style=curve.style)
    return text.append("logarithmic" if logarithmic else "", style="dim")


def sparkline(values: np.ndarray, width: int) -> str:
    """Return the course of some numbers in at most `width` characters, the greatest of their means the highest."""
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    means = np.array([part.mean() for part in np.array_split(values, min(width, len(values)))])
    return "".join(BLOCKS[level] for level in _levels(means, means.min(), means.max()))


def bars(values: Sequence[float], greatest: float) -> str:
    """Return a bar for each number, from 0 to `greatest` and above; a dot for 0, a question mark for what is not finite."""
    levels = _levels(np.nan_to_num(np.asarray(values, float)), 0.0, greatest)
    marks = (BLOCKS[level] if value > 0 else "·" for value, level in zip(values, levels, strict=True))
    return "".join(mark if math.isfinite(value) else "?" for value, mark in zip(values, marks, strict=True))


def _levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.clip((share * len(BLOCKS)).astype(int), 0, len(BLOCKS) - 1)


def _finite(curve: Curve) -> Curve:
    kept = np.isfinite(curve.values)
    return curve._replace(steps=curve.steps[kept], values=curve.values[kept])


def _smoothed(curve: Curve, first: float, last: float, places: int) -> Curve:
    """Return a curve of the means of what falls into each of so many places, and of those over a fiftieth of the axis."""
    at = np.minimum(((curve.steps - first) / (last - first) * places).astype(int), places - 1)
    sums, counts = np.bincount(at, weights=curve.values, minlength=places), np.bincount(at, minlength=places)
    there = np.flatnonzero(counts)
    sums, counts = (np.concatenate([[0.0], np.cumsum(of)]) for of in (sums, counts.astype(float)))
    half = places // 100
    low, high = np.maximum(there - half, 0), np.minimum(there + half + 1, places)
    means = (sums[high] - sums[low]) / (counts[high] - counts[low])
    return curve._replace(steps=first + (there + 0.5) / places * (last - first), values=means)


def _draw_line(cells: list[list[tuple[str, str]]], x: np.ndarray, y: np.ndarray, curve: Curve) -> None:
    """Draw dots at (x, y), and between neighbours; later curves take a character over."""
    dots: dict[tuple[int, int], int] = {}
    for place in range(len(x)):
        before = max(place - 1, 0)
        count = int(max(abs(x[place] - x[before]), abs(y[place] - y[before]), 1))
        xs = np.round(np.linspace(x[before], x[place], count + 1)).astype(int)
        ys = np.round(np.linspace(y[before], y[place], count + 1)).astype(int)
        for column, row in zip(xs.tolist(), ys.tolist(), strict=True):
            cell = row // 4, column // 2
            dots[cell] = dots.get(cell, 0) | int(_DOTS[row % 4, column % 2])
    for (row, column), bits in dots.items():
        cells[row][min(column, len(cells[row]) - 1)] = chr(0x2800 + bits), curve.style


def _draw_marks(cells: list[list[tuple[str, str]]], x: np.ndarray, y: np.ndarray, curve: Curve) -> None:
    for column, row in zip(x.tolist(), y.tolist(), strict=True):
        cells[row // 4][min(column // 2, len(cells[0]) - 1)] = curve.mark, curve.style


def _short(value: float) -> str:
    """Return a number in at most seven characters."""
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1000 else f"{value:.1e}"
