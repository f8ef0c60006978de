"""Batches as a pure function of (seed, step): no iterator to save, and any step costs the same."""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from jaxlm.data.forms import rows_of
from jaxlm.data.order import interleaved, shuffled
from jaxlm.data.packing import Batch, row_type, starts_of
from jaxlm.data.pairs import PairBatch
from jaxlm.data.prepare import Prepared
from jaxlm.data.shards import RowReader
from jaxlm.errors import ConfigError, DataError

T = TypeVar("T")

_ROWS_AT_ONCE = 256  # a read of ArrayRecord costs as much as 40 rows, so small batches are read several at once


class Batches:
    """The batches of a split.

    Training rows come without end, in an order shuffled anew each epoch and mixed by `weights`, one a source (none: those of
    the configuration; none there either: all rows alike, and an epoch shows each once). Validation rows come in order, and
    the last batch is filled up with rows of weight 0. `shuffle` says otherwise: False reads training rows in order, once.

    Of preferences and labels a row is a pair, and `reference` [pairs of the split, 2] holds what a reference says of each.

    `rows` are the numbers, within every batch, of the rows to read, in rising order (none: all): a process reads those that
    its devices take. Raises ConfigError where weights do not fit the sources, DataError where there are no rows.
    """

    def __init__(
        self,
        prepared: Prepared,
        split: str,
        batch_size: int,
        seed: int,
        *,
        weights: Sequence[float] = (),
        rows: Sequence[int] | None = None,
        shuffle: bool | None = None,
        reference: np.ndarray | None = None,
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size} is less than a row: make it 1 or more")
        parts = prepared.split(split).sources
        if not sum(part.rows for part in parts):
            raise DataError(f"{prepared.folder} has no {split} rows: set data.validation_fraction or data.validation_sources")
        self._shuffle = split == "train" if shuffle is None else shuffle
        parts = parts[: len(prepared.config.sources)] if split == "train" else parts  # those of validation_sources come after
        self._weights = tuple(weights or prepared.config.weights) if self._shuffle else ()
        if self._weights and len(self._weights) != len(parts):
            raise ConfigError(f"{len(self._weights)} weights for {len(parts)} sources: give one each, or none")
        for part in parts:
            if self._weights and not part.rows:
                raise DataError(f"source {part.source!r} has a weight but no {split} rows: leave it out, or give it more text")
        config = prepared.config
        self._form = rows_of(config.form, config.sequence_length, prepared.tokenizer.vocab_size, config.examples)
        self._row, self._reference = self._form.row, reference
        self._reader = RowReader([shard for part in parts for shard in part.shards], self._row)
        self._sizes = np.array([part.rows for part in parts])
        self._batch_size, self._seed, self._pad_id = batch_size, seed, prepared.tokenizer.pad_id
        self._mine = np.arange(batch_size) if rows is None else np.asarray(rows)
        self._steps_at_once = max(1, _ROWS_AT_ONCE // len(self._mine))
        self._window: tuple[int, np.ndarray, np.ndarray | None] | None = None
        self.num_rows = self._reader.num_rows

    @property
    def num_batches(self) -> int:
        """Batches that show every row: all there are of the validation split, an epoch of training rows."""
        return -(-self.num_rows // self._batch_size)

    def at(self, step: int) -> tuple[Batch | PairBatch, str]:
        """Return batch `step`, counted from 0, and the hash of its content; of both, the rows that are read here."""
        batch = self.batch(step)
        return batch, combine_hashes(hash_rows(batch))

    def batch(self, step: int) -> Batch | PairBatch:
        """Return the rows of batch `step` that are read here."""
        if not self._shuffle and not 0 <= step < self.num_batches:
            raise IndexError(f"there are {self.num_batches} batches; there is none at {step}")
        window, offset = divmod(step, self._steps_at_once)
        if self._window is None or window != self._window[0]:
            self._window = window, *self._read(window * self._steps_at_once)
        _, rows, reference = self._window
        here = slice(offset * len(self._mine), (offset + 1) * len(self._mine))
        return self._form.batch(rows[here], None if reference is None else reference[here])

    def _read(self, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the rows, of those read here, of the window of steps that begins with `step`, and their reference's."""
        steps = np.arange(step, step + self._steps_at_once)
        places = (steps[:, None] * self._batch_size + self._mine).ravel()
        if self._shuffle:
            numbers = self._numbers(places)
            return self._reader.read(numbers), None if self._reference is None else self._reference[numbers]
        rows, there = np.zeros(len(places), self._row), places < self.num_rows
        rows["tokens"] = self._pad_id
        rows[there] = self._reader.read(places[there])
        if self._reference is None:
            return rows, None
        reference = np.zeros((len(places), 2), np.float32)
        reference[there] = self._reference[places[there]]
        return rows, reference

    def _numbers(self, places: np.ndarray) -> np.ndarray:
        if not self._weights:
            return shuffled(places, self.num_rows, str(self._seed))
        numbers = np.empty_like(places)
        sources, items = interleaved(places, self._weights)
        starts = np.cumsum(self._sizes) - self._sizes
        for source in np.unique(sources):
            here = sources == source
            order = shuffled(items[here], int(self._sizes[source]), f"{self._seed}/{source}")
            numbers[here] = starts[source] + order
        return numbers


def hash_rows(batch: Batch | PairBatch) -> list[bytes]:
    """Return 8 bytes for each row that change with any of its arrays (a reference's log-probabilities left out)."""
    arrays = [*batch[:5], *([batch.labels[:, None]] if isinstance(batch, PairBatch) else [])]
    side_by_side = np.concatenate([np.ascontiguousarray(array).view(np.int32) for array in arrays], axis=1)
    return [hashlib.blake2b(row, digest_size=8).digest() for row in side_by_side]


def combine_hashes(row_hashes: Iterable[bytes]) -> str:
    """Return 16 hexadecimal digits for a batch from those of its rows in order, whichever processes hold them."""
    return hashlib.blake2b(b"".join(row_hashes), digest_size=8).hexdigest()


def prefetch(read_step: Callable[[int], T], start_step: int, stop_step: int, depth: int = 2) -> Iterator[T]:
    """Yield `read_step(step)` from `start_step` up to but without `stop_step`, read up to `depth` ahead by one thread.

    What fails in the thread is raised here, at its step. Closing the generator ends the thread.
    """
    ready: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def read() -> None:
        for step in range(start_step, stop_step):
            try:
                result = read_step(step)
            except BaseException as error:
                result = error
            while not closed.is_set():
                try:
                    ready.put(result, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if closed.is_set() or isinstance(result, BaseException):
                return

    thread = threading.Thread(target=read, name="jaxlm-data", daemon=True)
    thread.start()
    try:
        for _ in range(start_step, stop_step):
            result = ready.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        closed.set()
        thread.join()


def show_rows(prepared: Prepared, split: str, rows: Iterable[int]) -> Iterator[list[tuple[int, str]]]:
    """Yield, for each of the numbered rows of a split, its (segment, text) pairs: what the row holds of each document.

    Rows are numbered in the order of their sources and documents; DataError for a number that is not there.
    """
    row = row_type(prepared.config.sequence_length, prepared.tokenizer.vocab_size)
    reader = RowReader([shard for part in prepared.split(split).sources for shard in part.shards], row)
    for number in rows:
        if not 0 <= number < reader.num_rows:
            raise DataError(f"the {split} split has rows 0 to {reader.num_rows - 1}: there is no row {number}")
        stored = reader.read(np.array([number]))
        tokens = stored["tokens"][0, : stored["count"][0]]
        cuts = np.flatnonzero(starts_of(stored)[0, 1 : len(tokens)]) + 1
        yield [(segment, prepared.tokenizer.decode(part)) for segment, part in enumerate(np.split(tokens, cuts), start=1)]
