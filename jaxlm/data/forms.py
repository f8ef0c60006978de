"""What a form of data makes of a document: how it is encoded, laid into rows, and read back as a batch."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxlm.data.encoding import encode_document
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.example_packing import (
    conversation_batch,
    conversation_row_type,
    pack_conversations,
    pack_pairs,
    pair_batch,
    pair_row_type,
)
from jaxlm.data.examples import Example, encode_example
from jaxlm.data.packing import Batch, batch_of, pack, row_type
from jaxlm.data.pairs import PairBatch
from jaxlm.data.tokenizer import Tokenizer

Form = Literal["text", "conversations", "preferences", "labels"]


@dataclass(frozen=True)
class Rows:
    """The rows of one form of data."""

    row: np.dtype
    encode: Callable[[Tokenizer, str], Any]
    """A document, or what is wrong with it."""
    pack: Callable[[Sequence[Any], Tokenizer], np.ndarray]
    """The rows of encoded documents."""
    size: Callable[[Any], int]
    """Tokens of an encoded document."""
    batch: Callable[[np.ndarray, np.ndarray | None], Batch | PairBatch]
    """The arrays of rows, and of a reference's log-probabilities of them [rows, 2] where there is one."""


def rows_of(form: Form, sequence_length: int, vocab_size: int, config: ExampleConfig, template: str | None = None) -> Rows:
    """Return how documents of a form become rows of `sequence_length` + 1 tokens; `template` is what config.template holds."""
    if form == "text":
        row = row_type(sequence_length, vocab_size)
        return Rows(
            row,
            encode_document,
            lambda texts, tokenizer: pack(texts, row, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id),
            lambda text: len(text) + 2,
            lambda rows, _: batch_of(rows),
        )
    encode = functools.partial(encode_example, form=form, config=config, room=sequence_length + 1, template=template)
    if form == "conversations":
        row = conversation_row_type(sequence_length, vocab_size)
        return Rows(
            row,
            encode,
            lambda examples, tokenizer: pack_conversations(examples, row, tokenizer.pad_id, config.packing),
            _size,
            lambda rows, _: conversation_batch(rows),
        )
    row = pair_row_type(sequence_length, vocab_size)
    return Rows(
        row,
        encode,
        lambda examples, tokenizer: pack_pairs(examples, row, tokenizer.pad_id),
        _size,
        lambda rows, reference: pair_batch(rows, form == "preferences", reference),
    )


def _size(example: Example) -> int:
    return sum(len(example.prompt) + len(response) for response in example.responses)
