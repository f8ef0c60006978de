"""What a checkpoint says of every token of texts, or of rows of its own validation split."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.mixture import Batches
from jaxlm.data.packing import Batch
from jaxlm.data.prepare import prepare
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import CheckpointError, DataError
from jaxlm.eval.language_model import summarize
from jaxlm.eval.reach import check_reach
from jaxlm.eval.token_table import TokenTable, token_table
from jaxlm.model.extension import Extension
from jaxlm.report import token_rows
from jaxlm.report.token_rows import Rows, Texts
from jaxlm.report.token_text import visible
from jaxlm.run import display
from jaxlm.run.directory import imported_from, load_config
from jaxlm.run.open import OpenRun, opened
from jaxlm.run.own_data import data_of


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
    """Of the experiment, and how it was extended if it was."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own:
    """Rows of a run's own validation split, or of sources as it would read them."""

    first: int = 0
    count: int = 1
    sources: tuple[str, ...] = ()


def check_own(folder: Path, own: Own) -> None:
    """Raise DataError where a run has no such rows, as far as its configuration tells."""
    data = load_config(folder).data
    if own.sources:
        return
    if imported_from(folder):
        raise DataError(f"{folder} was imported and has no text of its own: give --text, --file or --source")
    if not data.validation_sources and not data.validation_fraction:
        raise DataError(f"{folder} was trained without validation text: give --text, --file or --source")


def read_run(
    folder: Path,
    step: int | None,
    material: Texts | Batch | Own,
    *,
    top: int = 5,
    experts: bool = False,
    as_texts: str = "",
    longest: float = math.inf,
    extension: Extension = Extension(),
) -> tuple[Reading, Texts | Batch]:
    """Return what a run's model, read as `extension` has it, says of texts, packed rows, or rows of its own; and those.

    For a reader to whom such rows are none, they are made into texts first; `as_texts` is then the reason. No window of a text
    has more than `longest` targets. `top` is how many of the likeliest tokens to tell, `experts` whether to tell where tokens
    went. Raises DataError where the model cannot read them, CheckpointError where it has diverged.
    """
    out = display.console()
    with opened(folder, step, extension=extension) as run:
        tokenizer, notes = run.needs_tokenizer(), []
        first = material.first if isinstance(material, Own) else 0
        if isinstance(material, Own):
            material = _own_rows(run, material, out)
            if as_texts:
                material = token_rows.texts_of(material, tokenizer)
                notes.append(f"{as_texts}: each document of a row is read as a text of its own, from its beginning")
        if isinstance(material, Batch):
            rows = token_rows.of_rows(material, first)
        else:
            rows, more = token_rows.of_texts(material, tokenizer, int(min(longest, run.model.max_length)))
            notes += more
        notes += _check_rows(rows, run)
        with display.measuring(out, len(rows.batch.tokens)) as advance:
            table = token_table(
                run.params, rows.batch, run.model, run.experiment.layout, top=top, experts=experts,
                report=lambda done: advance(done, str(folder)),
            )  # fmt: skip
        _check_finite(table, rows.batch, run)
        names = special_names(tokenizer)
        documents = [_document(document, rows, table, document.contents(tokenizer), names) for document in rows.documents]
        summary, layers = _summary(rows.batch, table, tokenizer), tuple(run.model.moe_layers) if experts else ()
        name = run.experiment.name + (f" ({extension.label})" if extension.changes else "")
        return Reading(folder, name, run.step, documents, tokenizer, names, summary, tuple(notes), layers), material


def _own_rows(run: OpenRun, own: Own, out: Any) -> Batch:
    """Return rows as the run was trained on: of its own validation split, or all that sources make."""
    data, split = data_of(run.folder, run.experiment, own.sources), "train" if own.sources else "validation"
    with display.preparation(out) as progress:
        prepared = prepare(data, report=progress)
    if run.tokenizer is None or prepared.tokenizer.digest != run.tokenizer.digest:
        raise DataError(
            f"the data of {run.folder} is tokenised differently now: its sources have changed. Give --text or --file"
        )
    read = Batches(prepared, split, 1, 0, shuffle=False)
    what = "the source" if own.sources else "the validation split"
    if own.first >= read.num_rows:
        raise DataError(f"{what} has {read.num_rows} rows: --first {own.first} lies beyond them")
    batches = [Batch(*read.batch(number)[:5]) for number in range(own.first, min(own.first + own.count, read.num_rows))]
    return Batch(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))


def _check_finite(table: TokenTable, batch: Batch, run: OpenRun) -> None:
    """Raise CheckpointError where what a model says is no probability: neither means nor colours could be made of it."""
    finite = np.isfinite(table.log_probs) & np.isfinite(table.entropy) & np.isfinite(table.top_log_probs).all(-1)
    counted = batch.weights > 0
    if lost := int((counted & ~finite).sum()):
        raise CheckpointError(
            f"the model of {run.folder} at step {run.step} gives no finite log-probability for {lost:,} of "
            f"{int(counted.sum()):,} tokens: its training diverged. Read an earlier checkpoint with --step, or --against-step"
        )


def _check_rows(rows: Rows, run: OpenRun) -> list[str]:
    if not rows.batch.weights.any():
        raise DataError("there is no token to foretell: the first of a text has nothing before it, give more text")
    greatest = max(rows.batch.tokens.max(), rows.batch.targets.max())
    if greatest >= run.model.vocab_size:
        raise DataError(
            f"the text has token {greatest}, and the model of {run.folder} knows 0 to {run.model.vocab_size - 1}: its "
            "tokenizer has tokens that the model was not made for; leave out the text that spells them"
        )
    warning = check_reach(rows.batch.tokens.shape[1], run.model, "rows", run.trained)
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
