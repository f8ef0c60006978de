"""What fuzzing found: a table on the terminal, docs/proof/fuzz.json and docs/proof/fuzz.md."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxlm.config import read_json
from jaxlm.data.storage import write_atomically

COLUMNS = ("target", "inputs", "accepted", "refused", "failures", "peak MiB", "inputs/s", "seconds", "seed")


@dataclasses.dataclass
class Result:
    """What came of a target's inputs, so far or in the end."""

    target: str
    about: str
    seed: int
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    failures: int = 0
    peak_mib: float = 0.0
    seconds: float = 0.0
    """Of wall time, as far as this machine had any to spare."""
    date: str = ""
    commit: str = ""
    found: list[str] = dataclasses.field(default_factory=list)
    """One line for each cause of a failure."""

    def cells(self) -> list[str]:
        """Return it as a row of `COLUMNS`."""
        rate = self.inputs / self.seconds if self.seconds else 0.0
        numbers = (self.inputs, self.accepted, self.refused, self.failures)
        return [
            self.target,
            *(f"{n:,}" for n in numbers),
            f"{self.peak_mib:.0f}",
            f"{rate:.0f}",
            f"{self.seconds:.0f}",
            str(self.seed),
        ]


def table(results: Iterable[Result]) -> Table:
    """Return the results as a table for a terminal."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in COLUMNS:
        made.add_column(column, justify="left" if column == "target" else "right")
    for result in results:
        made.add_row(*result.cells(), style="red" if result.failures else "")
    return made


def read(path: Path) -> dict[str, Any]:
    """Return what was written before; an empty record where there is none."""
    return read_json(path.read_bytes()) if path.exists() else {"targets": {}}


def merge(path: Path, results: Iterable[Result], about: dict[str, Any]) -> dict[str, Any]:
    """Put results in the place of earlier ones of the same targets, and write the record as JSON and, beside it, as a table."""
    record = read(path)
    record["targets"] |= {result.target: dataclasses.asdict(result) for result in results}
    record["targets"] = dict(sorted(record["targets"].items()))
    record |= about
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    write_atomically(path.with_suffix(".md"), page(record))
    return record


def page(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    results = [Result(**each) for each in record["targets"].values()]
    limits = record["limits"]
    lines = [
        "# Fuzzing",
        "",
        "Every file of a stranger that jaxlm reads, changed at random: bits, numbers, lengths, cut and doubled pieces; values "
        "of JSON of other types, nested, doubled and missing; texts of a grammar. Written by `python -m fuzz.run --json "
        "docs/proof/fuzz.json`: the same command with the same seed reads the same inputs.",
        "",
        "An input is a failure where anything but an error of jaxlm's own comes out, where it takes more than "
        f"{limits['seconds']:g} s of processor time, where the process grows by more than {limits['growth_mib']} MiB over it "
        f"or asks for more than {limits['spare_mib']} MiB of address space beyond what it has, where the process dies, and "
        "where what was accepted is not sane: shapes other than the header's, ids beyond the vocabulary, another value once "
        "written and read again.",
        "",
        f"{sum(result.inputs for result in results):,} inputs, {sum(result.failures for result in results):,} failures, "
        f"{len(results)} targets. {record['machine']}",
        "",
        "| " + " | ".join((*COLUMNS, "date", "commit", "what is read")) + " |",
        "|---" + "|---:" * (len(COLUMNS) - 1) + "|---" * 3 + "|",
    ]  # fmt: skip
    for result in results:
        lines.append("| " + " | ".join([*result.cells(), result.date, result.commit, result.about]) + " |")
    found = [f"- {result.target}: {cause}" for result in results for cause in result.found]
    return "\n".join([*lines, *(["", "Failures:", "", *found] if found else []), ""])
