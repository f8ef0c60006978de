"""Packed rows in ArrayRecord files: written whole or not at all, read by number in any order."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from jaxlm.data.packing import decode_rows, encode_rows
from jaxlm.errors import STORAGE, DataError

# ArrayRecord reports system errors as text alone.
_SYSTEM_ERRORS = {code: os.strerror(code) for code in STORAGE}
_MOST_OPEN_FILES = 256


def write_shard(path: Path, rows: np.ndarray) -> None:
    """Write `rows` to `path`, durably, or leave nothing; OSError where the system refuses, DataError for any other failure."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        # Random reads fetch whole groups, hence one row a group.
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for record in encode_rows(rows):
            writer.write(record)
        writer.close()  # a full disk shows here, not before
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:
        for code, message in _SYSTEM_ERRORS.items():
            if message in str(error):
                raise OSError(code, message, str(path)) from error
        raise DataError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


class RowReader:
    """Rows of several shards, numbered through from 0.

    `shards` gives each file and the number of rows it must hold. Raises DataError, when it comes to a file that is missing,
    truncated or damaged, that names it. One thread at a time.
    """

    def __init__(self, shards: Sequence[tuple[Path, int]], row: np.dtype):
        self._shards, self._row = shards, row
        self._ends = np.cumsum([rows for _, rows in shards], dtype=np.int64)
        self._readers: dict[int, ArrayRecordReader] = {}
        self.num_rows = int(self._ends[-1]) if shards else 0

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows of these numbers, in this order."""
        rows = np.empty(len(numbers), self._row)
        homes = np.searchsorted(self._ends, numbers, side="right")
        for home in np.unique(homes):
            path, count = self._shards[home]
            here = np.flatnonzero(homes == home)
            try:
                records = self._open(int(home)).read((numbers[here] - (self._ends[home] - count)).tolist())
                rows[here] = decode_rows(records, self._row)
            except (RuntimeError, DataError) as error:
                raise DataError(
                    f"{path} is missing, truncated or damaged ({error}). Delete the folder {path.parents[2]}: "
                    "it is prepared anew by the next run"
                ) from error
        return rows

    def _open(self, home: int) -> ArrayRecordReader:
        if home not in self._readers:
            if len(self._readers) >= _MOST_OPEN_FILES:
                self._readers.pop(next(iter(self._readers))).close()
            path, count = self._shards[home]
            # Neither read-ahead nor a pool of threads: rows are wanted here and there, a few at a time.
            reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
            if reader.num_records() != count:  # also how a truncated file shows: with no records at all
                raise DataError(f"it holds {reader.num_records()} rows of {count}")
            self._readers[home] = reader
        return self._readers[home]
