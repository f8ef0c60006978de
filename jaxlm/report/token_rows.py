"""Rows for a model to read, of texts or as they were packed, and where in them each token of a document is predicted."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.data.packing import Batch
from jaxlm.data.tokenizer import Tokenizer

Texts = list[tuple[str, str]]
"""Texts to read, each with its name."""


class Place(NamedTuple):
    """A document: its tokens, and where each is the target."""

    name: str
    ids: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    """-1 where a token is no target: the first of a document, or what the loss leaves out."""
    text: bytes | None
    """What the ids were made of, where that is known."""

    def contents(self, tokenizer: Tokenizer) -> list[bytes]:
        """Return the bytes of each token; of a text without the space that some tokenizers put before every one."""
        contents = [tokenizer.decode_bytes([number]) for number in self.ids.tolist()]
        first = next((place for place, content in enumerate(contents) if content), None)
        if self.text is not None and first is not None and b"".join(contents) == b" " + self.text:
            contents[first] = contents[first][1:]
        return contents


class Rows(NamedTuple):
    """Rows [R, L], and the documents in them."""

    batch: Batch
    documents: list[Place]


def shortened(texts: Texts, tokenizer: Tokenizer, limit: int) -> tuple[Texts, list[str]]:
    """Return texts of about `limit` tokens in all, the last of them cut at a character, and what there is to say of that."""
    kept, notes = [], []
    for name, text in texts:
        if limit <= 0:
            notes.append(f"{name}: left out, for --limit has been reached")
            continue
        head = text[: 32 * limit]  # far more than so many tokens: the rest of a long text need not be encoded
        ids = tokenizer.encode(head)
        if len(ids) > limit:
            size = sum(len(tokenizer.decode_bytes([number])) for number in ids[:limit])
            head = head.encode()[:size].decode("utf-8", "ignore")
        if len(head) < len(text):
            notes.append(f"{name}: the first {len(head):,} of {len(text):,} characters; --limit says how many tokens to read")
        kept.append((name, head))
        limit -= len(ids)
    return kept, notes


def of_texts(texts: Texts, tokenizer: Tokenizer, longest: int) -> tuple[Rows, list[str]]:
    """Return rows of texts, each begun as a prompt is, and what there is to say of them.

    Of a text with more tokens than a row of `longest` windows are read, which move by half of that: a target counts in the
    first that has it, so that all but those of the first window have half a row before them.
    """
    notes = []
    documents = [
        (name, np.array([*tokenizer.prefix_ids, *tokenizer.encode(text)], np.int32), text.encode()) for name, text in texts
    ]
    width = max(1, min(longest, max(len(ids) for _, ids, _ in documents) - 1))
    if any(len(ids) - 1 > width for _, ids, _ in documents):
        notes.append(f"a text longer than {width:,} tokens is read in windows of as many, moved by half of that")
    rows: list[tuple[np.ndarray, int]] = []
    places = []
    for name, ids, text in documents:
        row, column = np.zeros(len(ids), np.int64), np.full(len(ids), -1)
        before = 0
        for start in _starts(len(ids) - 1, width):
            end = min(start + width, len(ids) - 1)
            row[before + 1 : end + 1], column[before + 1 : end + 1] = len(rows), np.arange(before, end) - start
            rows.append((ids[start : end + 1], before - start))
            before = end
        places.append(Place(name, ids, row, column, text))
    return Rows(_batch(rows, width, tokenizer.pad_id), places), notes


def _starts(targets: int, width: int) -> list[int]:
    """Return where windows of `width` targets begin; the last ends with the text."""
    if targets <= width:
        return [0]
    return [*range(0, targets - width, max(1, width // 2)), targets - width]


def _batch(rows: Sequence[tuple[np.ndarray, int]], width: int, pad_id: int) -> Batch:
    """Return the arrays of rows of ids, of which targets count from a place on."""
    tokens = np.full((len(rows), width + 1), pad_id, np.int32)
    weights, segments = np.zeros((len(rows), width), np.float32), np.zeros((len(rows), width), np.int32)
    for number, (ids, first) in enumerate(rows):
        tokens[number, : len(ids)] = ids
        weights[number, first : len(ids) - 1] = 1
        segments[number, : len(ids)] = 1
    positions = np.where(segments > 0, np.arange(width, dtype=np.int32)[None], 0)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, segments, positions)


def of_rows(batch: Batch, first: int = 0) -> Rows:
    """Return packed rows, numbered from `first`, and the documents in them; padding is left out."""
    places = []
    for row in range(len(batch.tokens)):
        ids = np.append(batch.tokens[row], batch.targets[row, -1:])
        counted = batch.weights[row] > 0
        # The last target belongs to the row where it counts.
        segments = np.append(batch.segments[row], batch.segments[row, -1] if counted[-1] else 0)
        column = np.append(-1, np.where(counted, np.arange(len(counted)), -1))
        cuts = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(ids)]
        for number, (start, end) in enumerate(itertools.pairwise(cuts), start=1):
            if segments[start]:
                name = f"row {first + row}, document {number}"
                here = slice(start, end)
                places.append(Place(name, ids[here], np.full(end - start, row), column[here], None))
    return Rows(batch, places)


def texts_of(batch: Batch, tokenizer: Tokenizer) -> Texts:
    """Return the text of each document of packed rows, without the part of a character where one was cut."""
    texts = [(place.name, tokenizer.decode_bytes(place.ids).decode("utf-8", "ignore")) for place in of_rows(batch).documents]
    return [(name, text) for name, text in texts if text]
