"""What a soak has shown: a table, docs/proof/soak.json and a page made of it."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, versions
from jaxlm.data.storage import write_atomically

KINDS = {"kill": "SIGKILL", "terminate": "SIGTERM", "disk": "disk full"}


def digest(code: Path) -> str:
    """Return ten digits that change with any file of the code."""
    whole = hashlib.sha256()
    for path in sorted(code.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            whole.update(str(path.relative_to(code)).encode() + path.read_bytes())
    return whole.hexdigest()[:10]


def summary(rounds: Sequence[Any]) -> list[dict[str, Any]]:
    """Return an entry for each job and kind of fault."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    counted = defaultdict(set)
    for done in rounds:
        for fault in done.faults:
            key = done.job, fault["kind"]
            entry = found.setdefault(
                key, {"job": done.job, "fault": KINDS[fault["kind"]], "faults": 0, "rounds": 0, "redone": 0, "statuses": {}}
            )
            counted[key].add(done.number)
            entry["faults"] += 1
            entry["rounds"] = len(counted[key])
            entry["redone"] += fault.get("redone", 0)
            status = str(fault["status"])
            entry["statuses"][status] = entry["statuses"].get(status, 0) + 1
    return sorted(found.values(), key=lambda entry: (entry["job"], entry["fault"]))


HEADER = ("job", "fault", "faults", "rounds", "steps redone", "exit statuses")


def _cells(rounds: Sequence[Any]) -> list[tuple[str, ...]]:
    cells = []
    for entry in summary(rounds):
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(entry["statuses"].items()))
        counts = entry["faults"], entry["rounds"], entry["redone"]
        cells.append((entry["job"], entry["fault"], *map(str, counts), statuses))
    return cells


def show(rounds: Sequence[Any], out: Console) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False)
    for name in HEADER:
        table.add_column(name)
    for row in _cells(rounds):
        table.add_row(*row)
    out.print(table)


def write(path: Path, rounds: Sequence[Any], facts: dict[str, Any]) -> None:
    """Write the record, and a page of it beside."""
    faults = [fault for done in rounds for fault in done.faults]
    record = {
        "machine": machine(), "versions": versions(), "threads": 1, **facts,
        "faults": len(faults), "starts": sum(done.starts for done in rounds), "code": sorted({done.code for done in rounds}),
        "summary": summary(rounds),
        "rounds": [{"number": done.number, "job": done.job, "starts": done.starts, "faults": done.faults} for done in rounds],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    kinds = ", ".join(f"{sum(fault['kind'] == kind for fault in faults)} {name}" for kind, name in KINDS.items())
    lines = [
        "# The soak", "",
        f"{len(faults)} faults ({kinds}) over {len({done.job for done in rounds})} jobs in {len(rounds)} rounds, seed "
        f"{facts['seed']}, {facts['seconds'] / 60:.0f} minutes; {record['starts']} starts of a command. After every fault no "
        "process was left, every file could be read and the exit status was a documented one; at the end of every round what "
        "had come out was what comes out in peace: rows, prepared data and tables to the bit. "
        + (f"It was stopped before the {facts['asked']} faults that were asked for. " if facts["asked"] > len(faults) else "")
        + ("All with one version of the code." if len(record["code"]) == 1 else f"{len(record['code'])} versions of the code."),
        "", "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER),
        *("| " + " | ".join(row) + " |" for row in _cells(rounds)), "",
        "Made by `python -m benchmarks.soak`; its docstring says what is promised.", "",
    ]  # fmt: skip
    write_atomically(path.with_suffix(".md"), "\n".join(lines))
