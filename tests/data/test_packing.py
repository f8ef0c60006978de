"""Packing loses no token, and every predictable token is a target exactly once."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.packing import batch_of, decode_rows, encode_rows, pack, row_type, starts_of
from jaxlm.errors import DataError

PAD, BOS, EOS = 0, 1, 2
TEXTS = st.lists(st.lists(st.integers(3, 258), max_size=40).map(lambda ids: np.array(ids, np.int32)), min_size=1, max_size=12)


def packed(texts, length, vocab_size=259):
    return pack(texts, row_type(length, vocab_size), BOS, EOS, PAD)


@given(TEXTS, st.integers(2, 33), st.sampled_from([259, 100_000]))
def test_documents_come_back_from_rows(texts, length, vocab_size):
    rows = packed(texts, length, vocab_size)
    rows = decode_rows(encode_rows(rows), row_type(length, vocab_size))
    real = [row["tokens"][: row["count"]] for row in rows]
    assert all(before[-1] == after[0] for before, after in itertools.pairwise(real))
    stream = np.concatenate([real[0], *(tokens[1:] for tokens in real[1:])])
    documents = np.split(stream, np.flatnonzero(stream == BOS)[1:])
    assert [document[1:-1].tolist() for document in documents] == [text.tolist() for text in texts]
    assert all(document[-1] == EOS for document in documents)


@given(TEXTS, st.integers(2, 33))
def test_each_predictable_token_is_a_target_once(texts, length):
    batch = batch_of(packed(texts, length))
    weighted = batch.targets[batch.weights == 1]
    assert weighted.tolist() == [token for text in texts for token in (*text, EOS)]
    assert batch.weights.sum() == sum(len(text) + 1 for text in texts)
    same = batch.segments[:, 1:] == batch.segments[:, :-1]
    real = batch.segments[:, 1:] > 0
    assert np.array_equal((batch.weights[:, :-1] == 1)[real], same[real])


@given(TEXTS, st.integers(2, 33))
def test_segments_and_positions(texts, length):
    rows = packed(texts, length)
    batch, starts = batch_of(rows), starts_of(rows)
    for row in range(len(rows)):
        segment, position = 0, 0
        for column in range(length):
            fresh = column == 0 or starts[row, column]
            segment, position = segment + fresh, 0 if fresh else position + 1
            real = column < rows["count"][row]
            assert batch.segments[row, column] == (segment if real else 0)
            assert batch.positions[row, column] == (position if real else 0)


def test_a_worked_example():
    batch = batch_of(packed([np.array([11, 12, 13]), np.array([21])], 4))
    assert batch.tokens.tolist() == [[1, 11, 12, 13], [2, 1, 21, 2]]
    assert batch.targets.tolist() == [[11, 12, 13, 2], [1, 21, 2, 0]]
    assert batch.weights.tolist() == [[1, 1, 1, 1], [0, 1, 1, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 1], [1, 2, 2, 2]]
    assert batch.positions.tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]
    assert [array.dtype for array in batch] == [np.int32, np.int32, np.float32, np.int32, np.int32]


def test_no_documents_no_rows():
    assert len(packed([], 4)) == 0


def test_large_vocabularies_take_four_bytes_a_token():
    assert row_type(8, 1 << 16)["tokens"].base == np.dtype("<u2")
    rows = packed([np.array([1 << 16])], 4, vocab_size=(1 << 16) + 1)
    assert batch_of(rows).tokens[0, 1] == 1 << 16


def test_records_that_are_no_rows():
    row = row_type(4, 259)
    with pytest.raises(DataError, match="a row takes"):
        decode_rows([b"short"], row)
    with pytest.raises(DataError, match="claims to hold"):
        decode_rows([b"\xff" * row.itemsize], row)
