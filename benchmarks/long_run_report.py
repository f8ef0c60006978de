"""What a long run has shown: a table, its record, and a picture of it."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import commit, machine, versions
from jaxlm.data.storage import write_atomically

PANELS = (
    ("resident", "resident memory, MB", 1e-6), ("allocated", "bytes given out by malloc, MB", 1e-6), ("threads", "threads", 1),
    ("files", "open files", 1), ("arrays", "live JAX arrays", 1), ("compilations", "compilations", 1),
)  # fmt: skip


def show(found: Sequence[dict[str, Any]], wrong: Sequence[str]) -> None:
    """Print a line for each measure, and what is wrong."""
    table = Table("measure", "before, or a step", "after, or +-", "growth or ratio", "", box=None, pad_edge=False)
    for entry in found:
        if "slope" in entry:
            cells = f"{entry['slope']:+.2f} B", f"{entry['error']:.2f}", f"{entry['growth']:+.3%}"
        else:
            ratio = f"{entry['ratio']:.3f}" if "ratio" in entry else ""
            cells = f"{entry['before']:.6g}", f"{entry['after']:.6g}", ratio
        table.add_row(entry["name"], *cells, "" if entry["ok"] else "GROWS")
    out = Console(highlight=False)
    out.print(table)
    for line in wrong:
        out.print(line, style="red", markup=False, soft_wrap=True)


def write(path: Path, samples: Sequence[Any], found: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the record, and draw it."""
    looks = [dataclasses.asdict(sample) for sample in samples]
    record = {"machine": machine(), "versions": versions(), "threads": len(samples) and samples[-1].threads, "commit": commit()}
    path.parent.mkdir(parents=True, exist_ok=True)
    thin = looks[:: max(1, len(looks) // 100)]
    write_atomically(path, json.dumps(record | facts | {"results": list(found), "looks": thin}, indent=1) + "\n")
    draw(samples, path.with_suffix(".png"), facts)


def draw(samples: Sequence[Any], path: Path, facts: dict[str, Any]) -> None:
    """Draw every measure against the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(14, 5.2), layout="constrained")
    steps = [s.step for s in samples]
    for ax, (name, title, scale) in zip(axes.flat, PANELS, strict=False):
        ax.plot(steps, [getattr(s, name) * scale for s in samples], lw=1)
        ax.set_title(title, fontsize=10)
        ax.set_ylim(0, None)
    for ax, name, title in zip(axes.flat[6:], ("cpu_seconds", "seconds"), ("processor's", "wall"), strict=True):
        pairs = list(itertools.pairwise(samples))
        rates = [1e3 * (getattr(b, name) - getattr(a, name)) / (b.step - a.step) for a, b in pairs]
        ax.plot(steps[1:], rates, lw=0.8)
        ax.set_title(f"{title} time a step, ms", fontsize=10)
        ax.set_ylim(0, 2 * sorted(rates)[len(rates) // 2])
    for ax in axes.flat:
        ax.set_xlabel("step")
        ax.grid(alpha=0.25)
    figure.suptitle(f"{facts['steps']:,} steps of {facts['what']} in one process")
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    temporary.rename(path)
