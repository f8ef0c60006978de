"""Examples laid into rows, none of them across two, and rows made into the arrays that a model trains on."""

import bisect
from collections.abc import Sequence

import numpy as np

from jaxlm.data.examples import Example
from jaxlm.data.packing import Batch, batch_of, row_type
from jaxlm.data.pairs import PairBatch

ROW_FORMAT = 2  # part of the keys of prepared rows with fields: raise it when the same input is to give other rows
_MOST_TRIED = 128  # examples looked at for one with another prompt: rows of one prompt often stand together


def conversation_row_type(sequence_length: int, vocab_size: int) -> np.dtype:
    """Return the record of a row of text, with a bit for every token that says whether it counts in the loss."""
    plain = row_type(sequence_length, vocab_size)
    return np.dtype([*((name, plain[name]) for name in plain.names), ("counted", plain["starts"])])


def pack_conversations(examples: Sequence[Example], row: np.dtype, pad_id: int, together: bool) -> np.ndarray:
    """Return the rows of conversations, each in one piece: the longest first, into the fullest row that has room for it.

    Not `together`, each has a row to itself.
    """
    width, lengths = row["tokens"].shape[0], [len(example.prompt) + len(example.responses[0]) for example in examples]
    places = _best_fit(lengths, width) if together else [[index] for index in range(len(examples))]
    rows = np.zeros(len(places), row)
    rows["tokens"] = pad_id
    starts, counted = np.zeros((len(places), width), bool), np.zeros((len(places), width), bool)
    for number, inside in enumerate(places):
        begin = 0
        for index in inside:
            example = examples[index]
            ids = np.concatenate([example.prompt, example.responses[0]])
            end = begin + len(ids)
            rows["tokens"][number, begin:end] = ids
            counted[number, begin + len(example.prompt) : end] = example.counted[0]
            starts[number, begin] = True
            begin = end
        rows["count"][number] = begin
    rows["starts"], rows["counted"] = np.packbits(starts, axis=1), np.packbits(counted, axis=1)
    return rows


def _best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return which items lie in each bin of `width`: best-fit decreasing, ties in the order given."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (what is left, bin), rising
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(rooms, (lengths[index], -1))
        left, number = rooms.pop(at) if at < len(rooms) else (width, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(index)
        bisect.insort(rooms, (left - lengths[index], number))
    return bins


def conversation_batch(rows: np.ndarray) -> Batch:
    """Return the arrays that a model trains on: as those of text, but with weight on counted targets alone."""
    batch = batch_of(rows)
    counted = np.unpackbits(rows["counted"], axis=1, count=rows["tokens"].shape[1])
    return batch._replace(weights=counted[:, 1:].astype(np.float32) * batch.weights)


def pair_row_type(sequence_length: int, vocab_size: int) -> np.dtype:
    """Return the record of a pair: two rows that begin alike, how long each is and which of its tokens count, and a label."""
    plain = row_type(sequence_length, vocab_size)
    fields = [("counted", plain["starts"]), ("tokens", plain["tokens"])]
    return np.dtype(
        [("label", "u1"), ("count", "<u4", (2,)), *((name, field.base, (2, *field.shape)) for name, field in fields)]
    )


def pack_pairs(examples: Sequence[Example], row: np.dtype, pad_id: int) -> np.ndarray:
    """Return a row for each pair of responses: two to one prompt, or a labelled example's and that of another example."""
    rows = np.zeros(len(examples), row)
    rows["tokens"] = pad_id
    counted = np.zeros(rows["tokens"].shape, bool)
    others = _others(examples) if examples and len(examples[0].responses) == 1 else []
    for number, example in enumerate(examples):
        rows["label"][number] = example.label
        said = [*zip(example.responses, example.counted, strict=True)]
        said += [(examples[other].responses[0], examples[other].counted[0]) for other in others[number : number + 1]]
        for which, (response, counts) in enumerate(said):
            ids = np.concatenate([example.prompt, response])[: counted.shape[2]]
            rows["tokens"][number, which, : len(ids)], rows["count"][number, which] = ids, len(ids)
            counted[number, which, len(example.prompt) : len(ids)] = counts[: len(ids) - len(example.prompt)]
    rows["counted"] = np.packbits(counted, axis=2)
    return rows


def _others(examples: Sequence[Example]) -> list[int]:
    """Return for each example one with another response: of another prompt, where one is near; where none is, itself."""
    said = [(example.prompt.tobytes(), example.responses[0].tobytes()) for example in examples]
    others = []
    for number, (prompt, response) in enumerate(said):
        found = number
        for step in range(1, min(len(said), _MOST_TRIED)):
            other = (number + step) % len(said)
            if said[other][1] != response:
                found = other
                if said[other][0] != prompt:
                    break
        others.append(found)
    return others


def pair_batch(rows: np.ndarray, preferences: bool, reference: np.ndarray | None = None) -> PairBatch:
    """Return the arrays of pairs: chosen and rejected, or the labelled response and another. `reference` is [pairs, 2]."""
    tokens = rows["tokens"].astype(np.int32).reshape(-1, rows["tokens"].shape[2])
    place = np.arange(tokens.shape[1], dtype=np.int32)
    real = place < rows["count"].reshape(-1, 1)
    counted = np.unpackbits(rows["counted"], axis=2, count=tokens.shape[1]).reshape(tokens.shape)
    labels = np.tile(np.float32([1, 0]), len(rows)) if preferences else np.repeat(rows["label"], 2).astype(np.float32)
    return PairBatch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=counted[:, 1:].astype(np.float32),
        segments=real[:, :-1].astype(np.int32),
        positions=np.where(real, place, 0)[:, :-1],
        labels=labels,
        reference=np.zeros(len(tokens), np.float32) if reference is None else reference.astype(np.float32).ravel(),
    )
