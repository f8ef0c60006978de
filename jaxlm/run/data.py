"""`jaxlm data`: preparing and looking at what a model reads."""

from pathlib import Path

from rich.table import Table

from jaxlm.data.mixture import show_rows
from jaxlm.data.prepare import prepare
from jaxlm.errors import DataError
from jaxlm.experiment import Experiment
from jaxlm.run import display


def prepare_data(experiment: Experiment, workers: int | None) -> None:
    """Make what is missing of the experiment's data and show what there is."""
    out = display.console()
    with display.preparation(out) as progress:
        prepared = prepare(experiment.data, workers=workers, report=progress)
    table = Table(box=None, header_style="bold")
    for column in ("split", "source", "documents", "rows", "tokens", "bytes", "bytes/token"):
        table.add_column(column, justify="left" if column in ("split", "source") else "right")
    for name in ("train", "validation"):
        for part in prepared.split(name).sources:
            counts = (f"{part.documents:,}", f"{part.rows:,}", f"{part.tokens:,}", f"{part.bytes:,}")
            table.add_row(name, part.source, *counts, f"{part.bytes / max(part.tokens, 1):.2f}")
    out.print(table)
    for source, count in prepared.bad_documents.items():
        if count:
            out.print(f"[yellow]warning:[/] {count} bad documents of {source} were skipped")
    print(prepared.folder)


def show_data(experiment: Experiment, split: str, first: int, count: int) -> None:
    """Print decoded rows, every document of a row under its own rule."""
    out = display.console()
    with display.preparation(out) as progress:
        prepared = prepare(experiment.data, report=progress)
    stop = min(first + count, prepared.split(split).rows)
    if first >= stop:
        raise DataError(f"the {split} split has {prepared.split(split).rows} rows: --first {first} lies beyond them")
    for number, documents in zip(range(first, stop), show_rows(prepared, split, range(first, stop)), strict=True):
        print(f"=== {split} row {number}: {len(documents)} document{'s' if len(documents) > 1 else ''}")
        for segment, text in documents:
            print(f"--- document {segment}\n{text}")


def save_tokenizer(experiment: Experiment, output: Path) -> None:
    """Write the experiment's tokenizer to a file of its own, training it first where it is missing."""
    with display.preparation(display.console()) as progress:
        prepared = prepare(experiment.data, report=progress)
    try:
        prepared.tokenizer.save(output)
    except OSError as fault:
        raise DataError(f"{output} cannot be written: {fault.strerror}") from fault
    print(f"{output}: {prepared.tokenizer.vocab_size} tokens, {prepared.tokenizer.digest}")
