"""Documents laid end to end and cut into rows of one length, and rows made into the arrays that a model trains on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.errors import DataError


class Batch(NamedTuple):
    """Rows for one step; all [B, L], int32 except `weights`, which is float32.

    Documents share a row. `segments` counts them 1, 2, ... within the row (0: padding), and `positions` starts again at 0 with
    each; a document that began in an earlier row has its positions counted from the start of this one. `weights` is 1 where
    `targets` holds a token to predict: any but padding and bos, which nothing before it foretells.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


def row_type(sequence_length: int, vocab_size: int) -> np.dtype:
    """Return the fixed-size record of a row: `sequence_length` + 1 tokens, which begin a document, how many are real."""
    return np.dtype(
        [
            ("count", "<u4"),
            ("starts", "u1", ((sequence_length + 8) // 8,)),
            ("tokens", "<u2" if vocab_size <= 1 << 16 else "<u4", (sequence_length + 1,)),
        ]
    )


def pack(documents: Sequence[np.ndarray], row: np.dtype, bos_id: int, eos_id: int, pad_id: int) -> np.ndarray:
    """Return the rows of `documents`, each laid out as bos, its tokens, eos.

    Rows overlap by one token, so that every token but the very first is a target exactly once; the last is padded.
    """
    if not documents:
        return np.zeros(0, row)
    width = row["tokens"].shape[0]
    lengths = np.array([len(document) + 2 for document in documents])
    total, begins = int(lengths.sum()), np.cumsum(lengths) - lengths
    num_rows = -(-(total - 1) // (width - 1))
    stream = np.full(num_rows * (width - 1) + 1, pad_id, row["tokens"].base)
    starts = np.zeros(stream.shape, bool)
    starts[begins], stream[begins], stream[begins + lengths - 1] = True, bos_id, eos_id
    for document, begin in zip(documents, begins, strict=True):
        stream[begin + 1 : begin + 1 + len(document)] = document
    rows = np.zeros(num_rows, row)
    rows["tokens"] = np.lib.stride_tricks.sliding_window_view(stream, width)[:: width - 1]
    rows["starts"] = np.packbits(np.lib.stride_tricks.sliding_window_view(starts, width)[:: width - 1], axis=1)
    rows["count"] = np.minimum(total - np.arange(num_rows) * (width - 1), width)
    return rows


def encode_rows(rows: np.ndarray) -> list[bytes]:
    """Return the bytes of each row, all of one size."""
    content, size = rows.tobytes(), rows.itemsize
    return [content[start : start + size] for start in range(0, len(content), size)]


def decode_rows(records: Sequence[bytes], row: np.dtype) -> np.ndarray:
    """Return the rows that `encode_rows` wrote; DataError where a record has another size or an impossible count."""
    content = b"".join(records)
    if len(content) != len(records) * row.itemsize:
        raise DataError(f"a row takes {row.itemsize} bytes, but one of {sorted({len(record) for record in records})} was read")
    rows = np.frombuffer(content, row)
    if np.any(rows["count"] > row["tokens"].shape[-1]):
        raise DataError(f"a row of {row['tokens'].shape[-1]} tokens claims to hold {rows['count'].max()}")
    return rows


def starts_of(rows: np.ndarray) -> np.ndarray:
    """Return bool [B, L+1]: where a document begins."""
    return np.unpackbits(rows["starts"], axis=1, count=rows["tokens"].shape[1]).astype(bool)


def batch_of(rows: np.ndarray) -> Batch:
    """Return the arrays that a model trains on."""
    tokens, starts = rows["tokens"].astype(np.int32), starts_of(rows)
    place = np.arange(tokens.shape[1], dtype=np.int32)
    real = place < rows["count"][:, None]
    segments = np.cumsum(starts, axis=1, dtype=np.int32) + ~starts[:, :1]
    positions = place - np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=(real & ~starts)[:, 1:].astype(np.float32),
        segments=np.where(real, segments, 0)[:, :-1],
        positions=np.where(real, positions, 0)[:, :-1],
    )
