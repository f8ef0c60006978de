"""One reader for each file format of rows with fields: every row as the text of a JSON object, or a DataError in its place."""

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from jaxlm.data.readers import Document, Documents, lines_of
from jaxlm.errors import DataError


def read_jsonl_rows(path: Path, name: str) -> Documents:
    """Read one JSON object a line, from a plain, .gz or .zst file; blank lines are no rows."""
    number = 0
    try:
        for number, line in enumerate(lines_of(path), start=1):
            if isinstance(line, str):
                yield DataError(f"{path}, line {number} {line}")
            elif line.strip():
                yield _row(line, f"{name}:{number}", f"{path}, line {number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield DataError(f"{path} is cut short or damaged after line {number} ({error}). Fetch it again")
        return
    if not number:
        yield DataError(f"{path} is empty. Leave it out")


def _row(text: bytes | str, identifier: str, where: str) -> Document | DataError:
    try:
        text = text.decode() if isinstance(text, bytes) else text
        values = json.loads(text)
        text.encode()
        json.dumps(values, ensure_ascii=False).encode()  # JSON can spell half a surrogate pair, which is no text
    except UnicodeDecodeError as error:
        return DataError(f"{where}: byte {error.start} is not UTF-8. Convert it (iconv -t utf-8)")
    except UnicodeEncodeError:
        return DataError(f"{where} holds half a surrogate pair, which is not text")
    except (ValueError, RecursionError) as error:
        return DataError(f"{where} is not JSON, or cut short ({error})")
    if not isinstance(values, dict):
        return DataError(f"{where} holds a {type(values).__name__}, not a JSON object with fields")
    return Document(identifier, text, where)


def read_array_record_rows(path: Path, name: str) -> Documents:
    """Read an ArrayRecord file whose every record is a JSON object."""
    try:
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:1M,max_parallelism:1")
        count = reader.num_records()
        for start in range(0, count, 64):
            for index, record in enumerate(reader.read(start, min(start + 64, count)), start=start):
                yield _row(record, f"{name}:{index}", f"{path}, record {index}")
    except RuntimeError as error:
        yield DataError(f"{path} is no ArrayRecord file, or cut short ({error}). Fetch it again")


def read_parquet_rows(path: Path, name: str) -> Documents:
    """Read the rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    number = -1
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    yield _of_values(values, f"{name}:{number}", f"{path}, row {number}")
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        yield DataError(f"{path} is no Parquet file, or damaged after row {number} ({error}). Fetch it again")
        return
    if number < 0:
        yield DataError(f"{path} is empty. Leave it out")


def read_tfds_rows(examples: Any, indices: range, name: str) -> Documents:
    """Read the examples at `indices` of a TFDS data source."""
    for start in range(0, len(indices), 64):
        chosen = indices[start : start + 64]
        try:
            rows = examples.__getitems__(list(chosen))
        except Exception as error:  # TFDS raises whatever the format below it does
            yield DataError(f"{name}: examples from {chosen[0]} on cannot be read ({error}). Prepare it again")
            continue
        for index, row in zip(chosen, rows, strict=True):
            yield _of_values(row, f"{name}:{index}", f"{name}, example {index}")


def _of_values(values: Mapping[str, Any], identifier: str, where: str) -> Document | DataError:
    try:
        text = json.dumps(_plain(values))
    except RecursionError as error:
        return DataError(f"{where} holds lists within lists, too deep to read ({error})")
    return _row(text, identifier, where)


def _plain(value: Any) -> Any:
    """Return JSON values for those of Arrow and TFDS: bytes are text, TFDS's struct of lists a list of structs.

    Null stands for what is neither text nor number: a time or an image beside what is read spoils no row.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, Mapping):
        return _listed({str(name): _plain(inner) for name, inner in value.items()})
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (str, bool, int, float)) else None


def _listed(fields: dict[str, Any]) -> Any:
    lists = [value for value in fields.values() if isinstance(value, list)]
    if {"role", "content"} <= fields.keys() and len(lists) == len(fields) and len({len(values) for values in lists}) == 1:
        return [dict(zip(fields, values, strict=True)) for values in zip(*lists, strict=True)]
    return fields
