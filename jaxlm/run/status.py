"""`jaxlm show RUN`: how a run stands, from its directory alone."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxlm.run import goodput
from jaxlm.run.directory import METRICS, load_config, read_starts
from jaxlm.run.display import describe
from jaxlm.run.metrics import read_rows
from jaxlm.run.standing import sentence, standing


def show_run(folder: Path) -> None:
    """Print a run's state, its newest results and checkpoints, its starts, and where their time went.

    Raises CheckpointError where the folder is no run.
    """
    experiment = load_config(folder)
    found, rows, starts = standing(folder), read_rows(folder / METRICS), read_starts(folder)
    out = Console(highlight=False)
    out.width = max(out.width, 128)
    out.print(f"[bold]{escape(experiment.name)}[/] in {escape(str(folder))}: {escape(sentence(found))}", soft_wrap=True)
    for split, newest in (("train", found.train), ("validation", found.last)):
        if newest:
            out.print(f"{split}: {describe(newest)} {_after(newest)}", soft_wrap=True)
    out.print(f"checkpoints: {', '.join(map(str, found.checkpoints)) or 'none yet'}\n", soft_wrap=True)
    if starts:
        out.print(_starts(starts))
    spent = goodput.by_start(rows)
    if spent:
        out.print()
        out.print(_seconds(spent))


def _after(row: dict[str, Any]) -> str:
    return f"(after step {row['step'] + (row['split'] == 'train')})"


def _starts(starts: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("start", "time", "processes", "devices", "mesh", "commit"):
        table.add_column(column, justify="right" if column in ("start", "processes") else "left")
    for number, start in enumerate(starts):
        axes = start["mesh"] if isinstance(start.get("mesh"), dict) else {}
        mesh = " x ".join(f"{axis} {size}" for axis, size in axes.items() if size != 1) or "one device"
        commit = f"{str(start.get('git_commit') or '-')[:10]}{' + changes' if start.get('git_dirty') else ''}"
        cells = (number, start.get("time", "-"), start.get("processes", 1), start.get("devices", "-"), mesh, commit)
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table


def _seconds(spent: dict[int, dict[str, float]]) -> Table:
    everything = goodput.total(spent.values())
    kinds = [kind for kind in goodput.KINDS if everything[kind]]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("seconds of start", *kinds, "all", "goodput"):
        table.add_column(column, justify="right")
    rows = {str(start): seconds for start, seconds in spent.items()}
    for name, seconds in (rows | ({"all": everything} if len(spent) > 1 else {})).items():
        numbers = [f"{seconds[kind]:,.1f}" for kind in kinds]
        table.add_row(name, *numbers, f"{sum(seconds.values()):,.1f}", f"{100 * goodput.share(seconds):.1f} %")
    return table
