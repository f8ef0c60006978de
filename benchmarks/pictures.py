"""Pictures of docs/benchmarks.md: every result against its bar, and the laws of our own cost."""

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.bars import value_of
from benchmarks.scaling import number

GOOD, BAD, AIM = "#2a6f97", "#c1121f", "#b08900"


def draw(parts: dict[str, dict[str, Any]], folder: Path) -> list[str]:
    """Draw what there is to draw; return the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    judged = [
        (name, each) for name, part in parts.items() for each in part.get("results", []) if each.get("passed") is not None
    ]
    if judged:
        draw_bars(judged, folder / "bars.png")
        drawn.append("bars.png")
    laws = parts.get("scaling", {}).get("laws", [])
    if laws:
        draw_laws(laws, folder / "scaling.png")
        drawn.append("scaling.png")
    return drawn


def margin(value: float | None, limit: float, better: str) -> float:
    """Return by what factor a result is on the right side of a limit: below 1 it is on the wrong one."""
    if value is None or not value > 0:
        return math.nan
    return value / limit if better == "higher" else limit / value


def draw_bars(judged: list[tuple[str, dict[str, Any]]], file: Path) -> None:
    """Draw, for each result, by what factor it keeps its bar, its spread over rounds, and where its aim is."""
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.24 * len(judged)), layout="constrained")
    for place, (_, result) in enumerate(judged):
        bar, better = result["bar"], result["better"]
        ends = [margin(result[end], bar, better) for end in ("low", "high")]
        axes.plot(ends, [place, place], color=GOOD if result["passed"] else BAD, linewidth=2, alpha=0.5)
        axes.plot(margin(value_of(result), bar, better), place, "o", color=GOOD if result["passed"] else BAD, markersize=5)
        if result.get("aim") is not None:
            axes.plot(margin(result["aim"], bar, better), place, "|", color=AIM, markersize=11, markeredgewidth=2)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(judged)), [f"{part}: {result['name']}" for part, result in judged], fontsize=7)
    axes.set_ylim(len(judged) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("times better than the bar\n(dot: median; line: least to greatest over rounds; yellow: the aim)")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def draw_laws(laws: list[dict[str, Any]], file: Path) -> None:
    """Draw seconds and bytes of each law over its size, both axes logarithmic, relative to the smallest size."""
    columns = 3
    rows = math.ceil(len(laws) / columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(4 * columns, 3 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat[len(laws) :]:
        axes.axis("off")
    for axes, law in zip(grid.flat, laws, strict=False):
        for what, color in (("seconds", GOOD), ("bytes", AIM)):
            points = [(x, y) for x, y in zip(law["x"], law.get(what) or [], strict=False) if y]
            if points:
                exponent = law.get(f"exponent_{what}")
                label = what if exponent is None else f"{what}: exponent {exponent:.2f}"
                axes.plot(
                    [x for x, _ in points], [y / points[0][1] for _, y in points], "o-", color=color, markersize=3, label=label
                )
        axes.set(xscale="log", yscale="log", title=law["name"], xlabel=law["x_label"])
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.5), max(high, 10))  # what hardly grows is to look so
        axes.set_xticks(law["x"], [number(x) for x in law["x"]], fontsize=7)
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.supylabel("times the cost of the smallest")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
