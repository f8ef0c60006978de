"""Examples in rows: nothing lost, doubled or split, and weight on nothing but what counts."""

import collections

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.example_packing import (
    conversation_batch,
    conversation_row_type,
    pack_conversations,
    pack_pairs,
    pair_batch,
    pair_row_type,
)
from jaxlm.data.examples import Example
from jaxlm.data.packing import decode_rows, encode_rows

PAD = 0


def example(prompt, *responses, counted=None, label=True):
    arrays = [np.array(ids, np.int32) for ids in (prompt, *responses)]
    counted = [[True] * len(ids) for ids in responses] if counted is None else counted
    return Example(arrays[0], tuple(arrays[1:]), tuple(np.array(c, bool) for c in counted), label, False, False)


@st.composite
def conversations(draw):
    """Examples of up to 17 ids (of which 0 may be one), each with a prompt that counts for nothing."""
    ids = st.lists(st.integers(0, 300), min_size=1, max_size=8)
    made = []
    for prompt, response in draw(st.lists(st.tuples(st.one_of(st.just([]), ids), ids), min_size=1, max_size=30)):
        counted = draw(st.lists(st.booleans(), min_size=len(response), max_size=len(response)))
        made.append(example(prompt, response, counted=[counted]))
    return made


@given(conversations(), st.integers(16, 24), st.booleans())
def test_packing_loses_doubles_and_splits_nothing(examples, length, together):
    row = conversation_row_type(length, 301)
    rows = pack_conversations(examples, row, PAD, together)
    batch = conversation_batch(decode_rows(encode_rows(rows), row))
    found = collections.Counter()
    for number, (tokens, targets, weights, segments, positions) in enumerate(zip(*batch, strict=True)):
        count = rows["count"][number]
        ids = np.append(tokens[: min(count, length)], targets[length - 1 :] if count > length else [])
        weighted = np.append(0, weights)[:count]
        if count > length:  # the last target's segment is that of the token before, unless it is an example by itself
            alone = np.unpackbits(rows["starts"][number])[length]
            segments = np.append(segments, segments[-1] + alone)
        assert not np.any(weights[count - 1 :]) and not np.any(segments[count:])
        for segment in range(1, int(segments.max()) + 1):
            here = np.flatnonzero(segments[:count] == segment)
            assert np.array_equal(here, np.arange(here[0], here[-1] + 1))  # in one piece
            inside = here[here < length]
            assert np.array_equal(positions[inside], np.arange(len(inside)))
            found[tuple(ids[here]), tuple(weighted[here] > 0)] += 1
    expected = collections.Counter()
    for each in examples:
        counts = np.concatenate([np.zeros(len(each.prompt), bool), *each.counted])
        counts[0] = False  # nothing foretells it
        expected[tuple(np.concatenate([each.prompt, *each.responses])), tuple(counts)] += 1
    assert found == expected
    half_empty = np.sum(rows["count"] * 2 <= length + 1)
    assert half_empty <= 1 if together else len(rows) == len(examples)


def test_pairs_lie_side_by_side():
    row = pair_row_type(6, 301)
    packed = pack_pairs([example([1, 5], [7, 2], [8, 9, 2]), example([1, 5, 6], [7, 8, 9, 2], [3])], row, PAD)
    rows = np.concatenate([decode_rows(encode_rows(packed), row), np.zeros(1, row)])
    batch = pair_batch(rows, True, np.arange(6).reshape(3, 2))
    assert batch.tokens.tolist()[:4] == [[1, 5, 7, 2, 0, 0], [1, 5, 8, 9, 2, 0], [1, 5, 6, 7, 8, 9], [1, 5, 6, 3, 0, 0]]
    assert batch.targets[2].tolist() == [5, 6, 7, 8, 9, 2]
    assert batch.weights.tolist() == [
        [0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0], [0] * 6, [0] * 6
    ]  # fmt: skip
    assert batch.segments.tolist()[:2] == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]] and not np.any(batch.segments[4:])
    assert batch.positions[1].tolist() == [0, 1, 2, 3, 4, 0]
    assert batch.labels.tolist() == [1, 0, 1, 0, 1, 0] and batch.reference.tolist() == [0, 1, 2, 3, 4, 5]
    assert {array.dtype for array in batch[:2]} == {
        np.dtype(np.int32)
    } and batch.weights.dtype == batch.labels.dtype == np.float32


def test_each_response_of_a_pair_has_weights_of_its_own():
    row, counts = pair_row_type(6, 301), [[True, False, True], [True, True]]
    pair = pair_batch(
        decode_rows(encode_rows(pack_pairs([example([1, 5], [7, 8, 2], [9, 2], counted=counts)], row, PAD)), row), True
    )
    assert pair.weights.tolist() == [[0, 1, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0]]
    said = [example([1, 5], [7, 8, 2], counted=counts[:1]), example([1], [9, 2], counted=[[False, True]])]
    pairs = pair_batch(pack_pairs(said, pair_row_type(3, 301), PAD), False)  # a row has room for 4 ids
    assert pairs.weights.tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_a_labelled_response_is_paired_with_one_to_another_prompt():
    rows = pack_pairs(
        [example([1], [5, 2]), example([1], [6, 2], label=False), example([3], [5, 2]), example([4], [7, 8, 9, 2])],
        pair_row_type(3, 301),
        PAD,
    )
    batch = pair_batch(rows, False)
    assert batch.labels.tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
    # The next with another response and another prompt, cut where it does not fit; each is one of these.
    assert batch.tokens[1::2].tolist() == [[1, 7, 8], [1, 5, 2], [3, 7, 8], [4, 5, 2]]
    assert batch.tokens[::2].tolist() == [[1, 5, 2], [1, 6, 2], [3, 5, 2], [4, 7, 8]]
    # Of one prompt alone another response will do; of one response alone its own.
    assert pair_batch(pack_pairs([example([1], [5]), example([1], [6])], pair_row_type(3, 301), PAD), False).tokens[
        1
    ].tolist() == [1, 6, 0]
    assert pair_batch(pack_pairs([example([1], [5])], pair_row_type(3, 301), PAD), False).tokens[1].tolist() == [1, 5, 0]


def test_thousands_of_equal_responses_take_no_time():
    examples = [example([number], [5, 2]) for number in range(5_000)]
    rows = pack_pairs(examples, pair_row_type(3, 1 << 17), PAD)
    assert np.array_equal(rows["tokens"][:, 0], rows["tokens"][:, 1])
