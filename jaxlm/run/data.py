"""`jaxlm data`: preparing and looking at what a model reads."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlm.data.example_fields import printable
from jaxlm.data.mixture import Batches, show_rows
from jaxlm.data.pairs import PairBatch
from jaxlm.data.prepare import Prepared, prepare
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import ConfigError, DataError
from jaxlm.experiment import Experiment
from jaxlm.run import display

COUNTED, READ = "bold green", "dim"
NEWLINE_AND_TAB = "\n\t"


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
    say_faults(prepared, out)
    print(prepared.folder)


def say_faults(prepared: Prepared, out: Any) -> None:
    """Print what was left out of the data and why, with the first places, and what was cut; nothing where all is well."""
    for faults in prepared.faults:
        if faults.kinds:
            counts = ", ".join(f"{count} x {kind}" for kind, count in faults.kinds.items())
            out.print(f"[yellow]warning:[/] left out of {faults.source}: {counts}", soft_wrap=True)
            for line in faults.first:
                out.print(f"  {line}", markup=False, soft_wrap=True)
        cut = [
            f"{count} {what}(s)"
            for count, what in ((faults.cut_prompts, "prompt"), (faults.cut_responses, "response"))
            if count
        ]
        if cut:
            out.print(f"[yellow]warning:[/] {' and '.join(cut)} of {faults.source} were cut to fit their rows", soft_wrap=True)


def show_data(experiment: Experiment, split: str, first: int, count: int) -> None:
    """Print decoded rows, every document of a row under its own rule; of other forms than text, what the loss sees of them."""
    if count < 1 or first < 0:
        wrong = f"--rows {count}: give 1 or more" if count < 1 else f"--first {first}: rows are counted from 0"
        raise ConfigError(f"there is nothing to show with {wrong}")
    out = display.console()
    with display.preparation(out) as progress:
        prepared = prepare(experiment.data, report=progress)
    say_faults(prepared, out)
    if split == "validation" and not prepared.split(split).rows:
        raise DataError("nothing is held out: set --data.validation-fraction 0.1, or name --data.validation-sources")
    stop = min(first + count, prepared.split(split).rows)
    if first >= stop:
        raise DataError(f"the {split} split has {prepared.split(split).rows} rows: --first {first} lies beyond them")
    if experiment.data.form != "text":
        show_examples(prepared, split, range(first, stop))
        return
    for number, documents in zip(range(first, stop), show_rows(prepared, split, range(first, stop)), strict=True):
        print(f"=== {split} row {number}: {len(documents)} document{'s' if len(documents) > 1 else ''}")
        for segment, text in documents:
            print(f"--- document {segment}\n{printable(text, keep=NEWLINE_AND_TAB)}")


def show_examples(prepared: Prepared, split: str, rows: range) -> None:
    """Print rows token by token, as the loss sees them: what counts is green and stands between double brackets.

    Tokens are told apart by underlining every second, where there is no terminal by bars between them.
    """
    out = Console(highlight=False)
    legend = ("⟦like this⟧", COUNTED), ", what is only read ", ("like this", READ), "; ↵ → are a line's end and a tab"
    out.print(Text.assemble("what counts in the loss stands ", *legend), soft_wrap=True)
    batches = Batches(prepared, split, 1, 0, shuffle=False)
    for number in rows:
        batch = batches.batch(number)
        names = [f"{split} row {number}"]
        if isinstance(batch, PairBatch):
            desirable = "desirable" if batch.labels[0] else "undesirable"
            kinds = ("chosen", "rejected") if prepared.config.form == "preferences" else (desirable, "for the baseline alone")
            names = [f"{split} pair {number}: {kind}" for kind in kinds]
        for name, tokens, targets, weights, segments in zip(names, *batch[:4], strict=True):
            real = int(np.sum(segments != 0))
            # The last target is no input; one that is neither counted nor read by what is counted is left out.
            ids = np.append(tokens[:real], targets[real - 1 : real] if weights[real - 1] else [])
            counted = np.append(False, weights[: len(ids) - 1] > 0)
            begins = [place for place in range(1, real) if segments[place] != segments[place - 1]]
            out.print(Text(f"--- {name}: {np.sum(counted)} of {len(ids)} tokens count", style="bold"), soft_wrap=True)
            out.print(coloured(ids, counted, begins, prepared.tokenizer, bars=not out.is_terminal), soft_wrap=True)


def coloured(ids: np.ndarray, counted: np.ndarray, begins: list[int], tokenizer: Tokenizer, *, bars: bool) -> Text:
    """Return tokens as text, those that count between brackets; what `begins` another example begins another line."""
    text, pieces = Text(), _pieces(ids, tokenizer)
    cuts = [place for place in range(1, len(ids)) if counted[place] != counted[place - 1] or place in begins]
    for start, end in itertools.pairwise([0, *cuts, len(ids)]):
        if start in begins:
            text.append(f"{'' if text.plain.endswith(chr(10)) else chr(10)}--- another example of the row\n", style="bold")
        style = COUNTED if counted[start] else READ
        text.append("⟦" if counted[start] else "", style=style)
        for place in range(start, end):
            text.append("│" if bars and place > start else "", style=READ)
            text.append(pieces[place], style=f"{style} underline" if place % 2 else style)
        text.append("⟧" if counted[start] else "", style=style)
    return text


def _pieces(ids: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """Return the text of each token: a special one by its name; by their escapes bytes that make no character alone, and
    characters with which data could write elsewhere on a terminal."""
    names = {tokenizer.pad_id: "<pad>", tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    names |= {number: spelling for spelling, number in tokenizer.special_spellings.items()}

    def piece(number: int) -> str:
        text = names.get(number) or tokenizer.decode_bytes([number]).decode(errors="backslashreplace")
        text = printable(text, keep=NEWLINE_AND_TAB)
        return text.replace("\n", "↵\n").replace("\t", "→") or f"<{number}>"

    return [piece(int(number)) for number in ids]


def save_tokenizer(experiment: Experiment, output: Path) -> None:
    """Write the experiment's tokenizer to a file of its own, training it first where it is missing."""
    with display.preparation(display.console()) as progress:
        prepared = prepare(experiment.data, report=progress)
    try:
        prepared.tokenizer.save(output)
    except OSError as fault:
        raise DataError(f"{output} cannot be written: {fault.strerror}") from fault
    print(f"{output}: {prepared.tokenizer.vocab_size} tokens, {prepared.tokenizer.digest}")
