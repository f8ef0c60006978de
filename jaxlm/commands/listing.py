"""The command that lists runs."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg


def runs(
    folder: Positional[Annotated[Path, arg(metavar="FOLDER", help="Where to look, at any depth.")]] = Path("runs"),
    where: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(
            metavar="CONDITION",
            help="Only runs for which it holds: 'loss < 3.2', 'model.num_layers = 4', kind=failed, 'name ~ switch' (a part of "
            "it), 'age < 2h'; may be given several times. Numbers of the last validation go by their names, of the last "
            "training row by train.NAME, fields by their dotted names or the end of one.",
        ),
    ] = (),
    sort: Annotated[str, arg(metavar="COLUMN", help="What to sort by; -COLUMN begins with the greatest.")] = "age",
    columns: Annotated[
        tuple[str, ...], arg(help="What to show instead of the usual columns and the fields in which the runs differ.")
    ] = (),
    limit: Annotated[int | None, arg(help="Runs to show; 0: all. By default 100 on a terminal, all elsewhere.")] = None,
    json: Annotated[bool, arg(help="Print all that is known of the runs as a JSON array.")] = False,
    csv: Annotated[Path | None, arg(metavar="FILE", help="Write the table's columns there, numbers in full.")] = None,
    rebuild: Annotated[bool, arg(help="Read every run anew: the index is not believed.")] = False,
) -> None:
    """List the runs under a folder: how they stand, what they found, and the fields in which they differ."""
    from jaxlm.sweep.show_runs import show_runs

    show_runs(
        folder, where=where, sort=sort, columns=columns, limit=limit, json=json, csv=csv, rebuild=rebuild
    )  # fmt: skip
