"""What `jaxlm runs` prints: the table, cut to the terminal's width, and what could not be read."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from jaxlm.data.storage import write_atomically
from jaxlm.errors import ConfigError
from jaxlm.run.display import console
from jaxlm.run.standing import Standing
from jaxlm.sweep.index import find_runs
from jaxlm.sweep.listing import STANDARD, Columns, Row, cell, differing, keep_where, rows_of, sort_by, to_csv, to_json

ON_A_TERMINAL = 100
FAULTS = 20
_COLORS = {"finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "broken": "red", "imported": "blue"}


def show_runs(
    folder: Path, *, where: Sequence[str] = (), sort: str = "age", columns: Sequence[str] = (), limit: int | None = None,
    json: bool = False, csv: Path | None = None, rebuild: bool = False,
) -> None:  # fmt: skip
    """Print the runs under a folder as a table, or as JSON, or write them as CSV.

    Runs that cannot be read, and folders that only look like runs, are told of below it; the former have a row where something
    is known of them. Raises ConfigError for a column or condition that is none, CheckpointError where there is no such folder.
    """
    if json and (csv is not None or columns):
        raise ConfigError("--json prints all that is known of the runs: leave out --csv and --columns")
    out = Console(highlight=False)
    with console().status("looking for runs") as waiting:
        stands = find_runs(folder, rebuild=rebuild, tell=lambda read: waiting.update(f"read {read:,} runs"))
    everything = rows_of(stands, folder)
    known = Columns(everything)
    wanted = [known.find(name) for name in columns]
    chosen = sort_by(keep_where(everything, where, known), known.find(sort.removeprefix("-")), down=sort.startswith("-"))
    if limit is not None and limit < 0:
        raise ConfigError(f"--limit {limit} is out of range: it must be 0 (all) or more")
    if limit is None:
        limit = ON_A_TERMINAL if out.is_terminal and not (json or csv) else 0
    if json:
        out.file.write(to_json(chosen[: limit or None]))
        return
    tabled = [
        row for row in chosen if row.stand.kind != "foreign" and (row.stand.kind != "broken" or _says_something(row.stand))
    ]
    shown = tabled[: limit or None]
    differ = [] if wanted else differing(shown)
    columns = wanted or [name for name in STANDARD if name not in ("name", "steps") or _tells(shown, name)]
    if csv is not None:
        try:
            write_atomically(csv, to_csv(shown, [*columns, *differ]))
        except OSError as fault:
            raise ConfigError(f"--csv {csv} cannot be written: {fault.strerror}. Name a file in another folder") from fault
        out.print(f"{len(shown):,} runs in {csv}", markup=False, soft_wrap=True)
    else:
        _print_table(out, shown, columns, differ)
    if len(tabled) > len(shown):
        out.print(f"{len(tabled) - len(shown):,} more: --limit 0 shows all, --where some of them", markup=False, soft_wrap=True)
    if not everything:
        out.print(f"no runs in {folder}", markup=False, soft_wrap=True)
    elif not chosen:
        out.print(f"none of {len(everything):,} runs fulfils {' and '.join(where)}", markup=False, soft_wrap=True)
    _print_faults(out, "failed", [row for row in shown if row.stand.kind == "failed"])
    _print_faults(out, "not read", [row for row in chosen if row.stand.kind in ("broken", "foreign")])


def _says_something(stand: Standing) -> bool:
    return stand.kind == "broken" and bool(stand.step or stand.last or stand.train)


def _tells(rows: Sequence[Row], name: str) -> bool:
    """Whether a column says more than others do: a name that is not the folder's, steps that some have not taken."""
    other = {"name": "run", "steps": "step"}[name]
    return any(row[name] != (Path(row[other]).name if name == "name" else row[other]) for row in rows)


def _print_table(out: Console, rows: Sequence[Row], columns: Sequence[str], differ: Sequence[str]) -> None:
    """Print one line a run. Where a terminal is too narrow for all fields that differ, the last are only named."""
    if not rows:
        return
    ends = [name.rpartition(".")[2] for name in differ]
    short = {name: end if ends.count(end) == 1 and end not in columns else name for name, end in zip(differ, ends, strict=True)}
    values = {name: [row[name] for row in rows] for name in [*columns, *differ]}
    table = {name: [short.get(name, name), *(cell(value, name) for value in values[name])] for name in values}
    widths = {name: max(map(cell_len, cells)) for name, cells in table.items()}
    left_out: list[str] = []
    while out.is_terminal and len(table) > len(columns) and sum(widths[name] + 2 for name in table) - 2 > out.width:
        left_out.insert(0, table.popitem()[0])
    for name, cells in table.items():
        right = all(
            value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values[name]
        )
        for line, text in enumerate(cells):
            space = " " * (widths[name] - cell_len(text))
            cells[line] = space + text if right else text + space
    lines = ["  ".join(cells) for cells in zip(*table.values(), strict=True)]
    text = Text("\n".join(lines), no_wrap=True)
    text.stylize("bold", 0, len(lines[0]))
    if out.is_terminal and "kind" in table:
        before, offset = list(itertools.takewhile(lambda name: name != "kind", table)), 0
        for number, line in enumerate(lines):
            start = offset + sum(len(table[name][number]) + 2 for name in before)
            offset += len(line) + 1
            if number:
                text.stylize(_COLORS.get(rows[number - 1].stand.kind, ""), start, start + len(table["kind"][number]))
    out.print(text, soft_wrap=True)
    if left_out:
        out.print(f"they differ, too, in {', '.join(left_out)}: --columns shows them, --json all", markup=False, soft_wrap=True)


def _print_faults(out: Console, words: str, rows: Sequence[Row]) -> None:
    for row in rows[:FAULTS]:
        out.print(f"{words}: {row['run']}: {' '.join(row.stand.why.split())}", markup=False, soft_wrap=True)
    if len(rows) > FAULTS:
        kind = rows[0].stand.kind
        left = f"{len(rows) - FAULTS:,} more: {words}; --where kind={kind} --json lists them"
        out.print(left, markup=False, soft_wrap=True)
