"""What is told of a sweep: its trials, how each stands, what would be run, and the comparison."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from jaxlm.errors import ConfigError, JaxlmError
from jaxlm.run.display import console
from jaxlm.run.standing import sentence, standing
from jaxlm.sweep.asked import Asked, open_sweep
from jaxlm.sweep.elsewhere import job_of
from jaxlm.sweep.read import Entry, Record, folder_of, read_record
from jaxlm.sweep.table import Table, tabulate_record


def list_trials(file: Path, asked: Asked) -> None:
    """Print every trial with its changed fields and the name of its run."""
    _, record, _ = open_sweep(file, asked)
    grid = _grid("arm", "seed", "changes", "run")
    for entry in _chosen(record, asked):
        changes = ", ".join(f"{name}={json.dumps(value)}" for name, value in entry.changes.items()) or "-"
        name = f"{entry.arm} (control)" if entry.control else entry.arm
        grid.add_row(*map(_cell, (name, str(entry.seed), changes, entry.run.name)))
    _print(grid)


def show_status(file: Path, asked: Asked) -> None:
    """Print how every trial stands, and the comparison of those that are finished.

    `file` may be the folder of a sweep. Where a file's trials cannot be told from what is here, for their data lie elsewhere,
    the sweep is shown as it was recorded.
    """
    record = _as_recorded(file, asked)
    grid = _grid("arm", "seed", "stands", "step", "run")
    for entry in _chosen(record, asked):
        stand = standing(entry.run)
        words = "waiting" if stand.kind in ("empty", "foreign") else sentence(stand)
        job = job_of(entry.run) if stand.kind not in ("finished", "running") else ""
        step = f"{stand.step}/{stand.steps}" if stand.steps else "-"
        grid.add_row(*map(_cell, (entry.arm, str(entry.seed), words + job, step, entry.run.name)))
    _print(grid)
    print()
    show_table(tabulate_record(record, asked.metrics))


def _as_recorded(file: Path, asked: Asked) -> Record:
    if file.is_dir():
        record = read_record(file)
        asked.check_only(record)
        return record
    try:
        return open_sweep(file, asked)[1]
    except JaxlmError as fault:
        try:
            record = read_record(folder_of(asked.runs, asked.name or file.name.replace(".py", "", 1)))
        except ConfigError:
            raise fault from None
        asked.check_only(record)
        console().print(f"as it was recorded at {record.time}, for {fault}", markup=False, soft_wrap=True)
        return record


def _chosen(record: Record, asked: Asked) -> Sequence[Entry]:
    return [entry for entry in record.trials if not asked.only or entry.arm == asked.only]


def show_table(table: Table) -> None:
    """Print a sweep's comparison, with what it cost in hours."""
    grid = _grid(*table.heading, "hours")
    for row in table.rows:
        grid.add_row(*map(_cell, [*row, f"{table.hours[row[0]]:,.2f}"]))
    _print(grid)
    for note in table.numbers["notes"]:
        print(note)


def _grid(*columns: str) -> Grid:
    grid = Grid(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        grid.add_column(name, overflow="fold")
    return grid


def _cell(text: Any) -> str:
    return text.replace("[", "\\[")


def _print(grid: Grid) -> None:
    out = Console(highlight=False)
    out.width = max(out.width, 160) if not os.isatty(1) else out.width
    out.print(grid)
