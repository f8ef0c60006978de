"""What a checkpoint says of every token of texts, or of rows of its own validation split."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.mixture import Batches
from jaxlm.data.packing import Batch
from jaxlm.data.prepare import prepare
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import DataError
from jaxlm.eval.language_model import summarize
from jaxlm.eval.reach import check_reach
from jaxlm.eval.token_table import TokenTable, token_table
from jaxlm.report import token_rows
from jaxlm.report.token_rows import Rows, Texts
from jaxlm.report.token_text import visible
from jaxlm.run import display
from jaxlm.run.directory import imported_from
from jaxlm.run.evaluate import own_tokenizer
from jaxlm.run.open import OpenRun, opened


class Token(NamedTuple):
    """A token of a text, and what the model said of it before it came."""

    id: int
    content: bytes
    """Empty for a special token."""
    name: str
    """Of a special token; empty for others."""
    log_prob: float | None
    """Nats; None where nothing stands before it, or where the loss leaves it out."""
    rank: int
    entropy: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens instead, and their log-probabilities."""
    experts: tuple[tuple[int, ...], ...] | None
    """Which experts the token itself visited, by mixture layer; None where that was not asked for or not read."""


class Document(NamedTuple):
    """A text as tokens."""

    name: str
    tokens: list[Token]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a checkpoint says of every token of some documents."""

    folder: Path
    name: str
    step: int
    documents: list[Document]
    tokenizer: Tokenizer
    names: dict[int, str]
    """Of special tokens, by id."""
    summary: dict[str, float]
    """loss (nats a token), perplexity, bits_per_byte, accuracy and tokens, as `jaxlm eval` has them."""
    notes: tuple[str, ...]
    moe_layers: tuple[int, ...]
    """Those whose experts were asked for."""

    def spelling(self, number: int) -> str:
        """Return how a token is shown: a special one by its name, others so that every byte can be seen."""
        content = self.tokenizer.decode_bytes([number])
        return visible(content) if content else self.names.get(number, f"<{number}>")


def read_run(
    folder: Path,
    step: int | None,
    material: Texts | Batch | range,
    *,
    top: int = 5,
    experts: bool = False,
    as_texts: bool = False,
) -> tuple[Reading, Texts | Batch]:
    """Return what a run's model says of texts, of packed rows, or of the rows so numbered of its validation split; and those.

    With `as_texts` such rows are made into texts first, for a reader with another tokenizer. `top` is how many of the likeliest
    tokens to tell, `experts` whether to tell where tokens went. Raises DataError where the model cannot read them.
    """
    out = display.console()
    with opened(folder, step) as run:
        tokenizer, notes = run.needs_tokenizer(), []
        first = material.start if isinstance(material, range) else 0
        if isinstance(material, range):
            material = _validation_rows(run, material, out)
            if as_texts:
                material = token_rows.texts_of(material, tokenizer)
                notes.append("the tokenizers differ: each document of a row is read as a text of its own, from its beginning")
        if isinstance(material, Batch):
            rows = token_rows.of_rows(material, first)
        else:
            rows, more = token_rows.of_texts(material, tokenizer, run.model.max_length)
            notes += more
        notes += _check_rows(rows, run)
        with display.measuring(out, len(rows.batch.tokens)) as advance:
            table = token_table(
                run.params, rows.batch, run.model, run.experiment.layout, top=top, experts=experts,
                report=lambda done: advance(done, str(folder)),
            )  # fmt: skip
        names = special_names(tokenizer)
        documents = [_document(document, rows, table, document.contents(tokenizer), names) for document in rows.documents]
        summary, layers = _summary(rows.batch, table, tokenizer), tuple(run.model.moe_layers) if experts else ()
        return Reading(
            folder, run.experiment.name, run.step, documents, tokenizer, names, summary, tuple(notes), layers
        ), material


def _validation_rows(run: OpenRun, numbers: range, out: Any) -> Batch:
    """Return rows of the run's own validation split, as it was trained on."""
    if imported_from(run.folder):
        raise DataError(f"{run.folder} was imported and has no text of its own: give --text or --file")
    data = run.experiment.data
    if data.tokenizer.path:
        data = dataclasses.replace(data, tokenizer=own_tokenizer(run.experiment, run.folder))
    with display.preparation(out) as progress:
        prepared = prepare(data, report=progress)
    if run.tokenizer is None or prepared.tokenizer.digest != run.tokenizer.digest:
        raise DataError(
            f"the data of {run.folder} is tokenised differently now: its sources have changed. Give --text or --file"
        )
    read = Batches(prepared, "validation", 1, 0, shuffle=False)
    if numbers.start >= read.num_rows:
        raise DataError(f"the validation split has {read.num_rows} rows: --first {numbers.start} lies beyond them")
    batches = [Batch(*read.batch(number)[:5]) for number in numbers[: read.num_rows - numbers.start]]
    return Batch(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))


def _check_rows(rows: Rows, run: OpenRun) -> list[str]:
    if not rows.batch.weights.any():
        raise DataError("there is no token to foretell: the first of a text has nothing before it, give more text")
    greatest = max(rows.batch.tokens.max(), rows.batch.targets.max())
    if greatest >= run.model.vocab_size:
        raise DataError(
            f"the text has token {greatest}, and the model of {run.folder} knows 0 to {run.model.vocab_size - 1}: its "
            "tokenizer has tokens that the model was not made for; leave out the text that spells them"
        )
    warning = check_reach(rows.batch.tokens.shape[1], run.model)
    return [warning] if warning else []


def _document(
    document: token_rows.Place, rows: Rows, table: TokenTable, contents: list[bytes], names: dict[int, str]
) -> Document:
    """Return a document's tokens with what the table says of them."""
    length, tokens = rows.batch.tokens.shape[1], []
    for number, row, column, content in zip(document.ids, document.rows, document.columns, contents, strict=True):
        name = "" if content else names.get(int(number), f"<{number}>")
        if column < 0:
            tokens.append(Token(int(number), content, name, None, 0, 0.0, (), None))
            continue
        at = row, column
        likeliest = zip(table.top_ids[at].tolist(), table.top_log_probs[at].tolist(), strict=True)
        experts = None
        if table.experts is not None and column + 1 < length:  # a row's last target is not read
            experts = tuple(map(tuple, table.experts[:, row, column + 1].tolist()))
        said = float(table.log_probs[at]), int(table.ranks[at]), float(table.entropy[at])
        tokens.append(Token(int(number), content, name, *said, tuple(likeliest), experts))
    return Document(document.name, tokens)


def special_names(tokenizer: Tokenizer) -> dict[int, str]:
    """Return how special tokens are called, by id."""
    names = {tokenizer.pad_id: "<pad>", tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    return names | {number: spelling for spelling, number in tokenizer.special_spellings.items()}


def _summary(batch: Batch, table: TokenTable, tokenizer: Tokenizer) -> dict[str, float]:
    counted = batch.weights > 0
    size = int(tokenizer.token_bytes()[batch.targets[counted]].sum())
    nats = -float(table.log_probs[counted].sum(dtype=np.float64))
    return summarize(nats, float((table.ranks[counted] == 1).sum()), float(counted.sum()), size)
