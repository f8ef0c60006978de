"""What probes found, as a table: plain numbers at the first, the middle and the last checkpoint."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxlm.analysis.store import Result, left_out, read_all
from jaxlm.run.tail import finite


def findings(run: Path, probes: Sequence[str]) -> Table | None:
    """Return a line for each plain number that these probes found in a run; None where there is none.

    What has axes is in the files, for a report to draw.
    """
    found = {name: results for name, results in read_all(run).items() if name in probes}
    steps = sorted({step for results in found.values() for step in results})
    numbers = [(probe, *number) for probe in probes if probe in found for number in _numbers(found[probe])]
    if not numbers:
        return None
    shown = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("probe", "measure", "unit"):
        table.add_column(column, overflow="fold")
    for step in shown:
        table.add_column(f"step {step}", justify="right")
    for name, measure, unit in numbers:
        values = [_number(found[name].get(step), measure) for step in shown]
        table.add_row(*map(escape, (name, measure, unit)), *values)
    return table


def show_findings(run: Path, probes: Sequence[str]) -> None:
    """Print what probes found in a run, and at which steps what they found does not belong with it."""
    table, out = findings(run, probes), Console(highlight=False)
    if table is not None:
        out.width = max(out.width, 100)
        out.print(escape(str(run)), style="bold", soft_wrap=True)
        out.print(table)
    left = left_out(run)
    for probe in [name for name in probes if name in left]:
        for why, steps in itertools.groupby(left[probe].items(), key=lambda each: each[1]):
            named = ", ".join(str(step) for step, _ in steps)
            out.print(f"{probe} at step {named}: left out, as it is of {why}", style="dim", markup=False, soft_wrap=True)


def _numbers(results: dict[int, Result]) -> dict[tuple[str, str], None]:
    """Return the names and units of all measures that are a single number, in order."""
    return {
        (name, str(measure.get("unit", ""))): None
        for result in results.values()
        for name, measure in result["measures"].items()
        if isinstance(measure, dict) and not measure.get("axes") and not isinstance(measure.get("values"), str)
    }


def _number(result: Result | None, measure: str) -> str:
    found = (result or {"measures": {}})["measures"].get(measure)
    value = finite(found.get("values")) if isinstance(found, dict) else math.nan
    return "-" if math.isnan(value) else f"{value:.4g}"
