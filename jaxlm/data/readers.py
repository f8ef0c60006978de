"""One reader for each file format: every document of a file in order, and a DataError in the place of each one that is bad.

A reader yields its faults instead of raising them, so that whoever reads decides whether to stop or to skip and count.
"""

import gzip
import itertools
import json
import tokenize
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordReader

from jaxlm.errors import DataError, suggest

_SKIP = "or set data.on_bad_document='skip'"
_CHUNK = 1 << 20
_PIECE = 1 << 10  # of a .zst file at a time: 4 bytes of it may stand for 128 KiB
_LONGEST_LINE = 1 << 26


class Document(NamedTuple):
    """A text, and a name for it that stays the same wherever the source is moved as a whole."""

    id: str
    text: str
    where: str = ""
    """File and line, of rows with fields: what is wrong with them is found out later."""


Documents = Iterator[Document | DataError]


def _checked(identifier: str, text: str | bytes, where: str) -> Document | DataError:
    try:
        text = text.decode() if isinstance(text, bytes) else text
        text.encode()  # JSON can spell half a surrogate pair, which is no text
    except UnicodeDecodeError as error:
        return DataError(f"{where}: byte {error.start} is not UTF-8. Convert it (iconv -t utf-8), leave it out, {_SKIP}")
    except UnicodeEncodeError as error:
        return DataError(f"{where}: character {error.start} is half a surrogate pair, not text. Leave it out, {_SKIP}")
    if "\0" in text:
        return DataError(
            f"{where}: character {text.index(chr(0))} is NUL, so this is binary data, not text. Leave it out, {_SKIP}"
        )
    return Document(identifier, text)


def read_text(path: Path, name: str, section_bytes: int = 0) -> Documents:
    """Read a whole file as one document, or cut it after line ends into documents of about `section_bytes`."""
    with open(path, "rb") as file:
        offset = 0
        while content := b"".join(file.readlines(section_bytes)) if section_bytes else file.read():
            where = f"{path}, section at byte {offset}" if section_bytes else str(path)
            yield _checked(f"{name}:{offset}" if section_bytes else name, content, where)
            offset += len(content)
    if not offset:
        yield DataError(f"{path} is empty. Leave it out, {_SKIP}")


def read_python(path: Path, name: str) -> Documents:
    """Read Python source in the encoding that it declares; an empty module is no document."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        yield DataError(f"{path} is not Python source that can be decoded ({error}). Leave it out, {_SKIP}")
        return
    if text:
        yield _checked(name, text, str(path))


def read_jsonl(path: Path, name: str, field: str = "text") -> Documents:
    """Read one JSON object a line, from a plain, .gz or .zst file; `field` holds the text. Empty texts are no documents."""
    number = 0
    try:
        for number, line in enumerate(lines_of(path), start=1):
            if isinstance(line, str):
                yield DataError(f"{path}, line {number} {line}, {_SKIP}")
                continue
            if not line.strip():
                continue
            document = _json_document(line, f"{name}:{number}", f"{path}, line {number}", field)
            if isinstance(document, DataError) or document.text:
                yield document
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield DataError(f"{path} is cut short or damaged after line {number} ({error}). Fetch it again, {_SKIP}")
        return
    if not number:
        yield DataError(f"{path} is empty. Leave it out, {_SKIP}")


def _json_document(line: bytes, identifier: str, where: str, field: str) -> Document | DataError:
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return DataError(f"{where}: byte {error.start} is not UTF-8. Convert it (iconv -t utf-8), leave it out, {_SKIP}")
    except (ValueError, RecursionError) as error:
        return DataError(f"{where} is not JSON, or cut short ({error}). Mend or remove the line, {_SKIP}")
    if not isinstance(values, dict) or field not in values:
        names = list(values) if isinstance(values, dict) else []
        return DataError(
            f"{where} has no field {field!r}.{suggest(field, names)} Its fields: {', '.join(names) or 'none'}. "
            f"Name the field by jsonl:PATH#field, {_SKIP}"
        )
    if not isinstance(values[field], str):
        return DataError(f"{where}: field {field!r} holds {type(values[field]).__name__}, not text. Name another, {_SKIP}")
    return _checked(identifier, values[field], where)


def chunks_of(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a plain, .gz or .zst file, chunk by chunk; EOFError, BadGzipFile or zlib.error for a damaged one."""
    if path.suffix == ".zst":
        yield from _zstandard_chunks(path)
        return
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        yield from iter(partial(file.read, _CHUNK), b"")


def _zstandard_chunks(path: Path) -> Iterator[bytes]:
    import zstandard

    # Frame by frame, because zstandard's own stream reader takes a truncated file for a finished one.
    decompressor = None
    with open(path, "rb") as file:
        for piece in iter(partial(file.read, _PIECE), b""):
            while piece:
                decompressor = decompressor or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield decompressor.decompress(piece)
                except zstandard.ZstdError as error:
                    raise EOFError(error) from error
                piece = decompressor.unused_data
                decompressor = None if decompressor.eof else decompressor
    if decompressor is not None:
        raise EOFError("the last frame has no end")


def lines_of(path: Path) -> Iterator[bytes | str]:
    """Yield the lines of a plain, .gz or .zst file, without their ends; in the place of one that is too long, what is wrong.

    Only of a compressed file may one be too long, as a bomb has it: it stands in memory as nothing else that is on disk does.
    Raises as `chunks_of` does.
    """
    pieces, length = [], 0  # of a line that goes on; joined once
    limit = _LONGEST_LINE if path.suffix in (".gz", ".zst") else None
    for chunk in chunks_of(path):
        first, *others = chunk.split(b"\n")
        length += len(first)
        if limit and length > limit:
            pieces.clear()
        else:
            pieces.append(first)
        if others:
            yield _whole(pieces, length, limit)
            large = limit and len(chunk) > limit  # lines within a chunk may be too long only then
            yield from (_whole([line], len(line), limit) for line in others[:-1]) if large else others[:-1]
            pieces, length = others[-1:], len(others[-1])
    if length:
        yield _whole(pieces, length, limit)


def _whole(pieces: list[bytes], length: int, limit: int | None) -> bytes | str:
    if limit and length > limit:
        return f"has {length:,} bytes, and of a compressed file none may have more than {limit >> 20} MiB: decompress the file"
    return b"".join(pieces)


def read_array_record(path: Path, name: str) -> Documents:
    """Read an ArrayRecord file whose every record is one UTF-8 text; empty ones are no documents."""
    damaged = f"{path} is no ArrayRecord file, empty or cut short"
    try:
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:1M,max_parallelism:1")
        count = reader.num_records()
        if not count:
            yield DataError(f"{damaged}. Fetch it again, {_SKIP}")
        for start in range(0, count, 64):
            for index, record in enumerate(reader.read(start, min(start + 64, count)), start=start):
                if record:
                    yield _checked(f"{name}:{index}", record, f"{path}, record {index}")
    except RuntimeError as error:
        yield DataError(f"{damaged} ({error}). Fetch it again, {_SKIP}")


def read_parquet(path: Path, name: str, column: str = "text") -> Documents:
    """Read the texts of one column; empty ones are no documents."""
    import pyarrow
    import pyarrow.parquet

    number = -1
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                yield DataError(
                    f"{path} has no column {column!r}.{suggest(column, names)} Its columns: {', '.join(names)}. "
                    "Name the column by parquet:PATH#column"
                )
                return
            batches = file.iter_batches(batch_size=1024, columns=[column])
            values = itertools.chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
            for number, value in enumerate(values):
                if not isinstance(value, (str, bytes)):
                    kind = type(value).__name__
                    yield DataError(f"{path}, row {number}: column {column!r} holds {kind}, not text. Name another, {_SKIP}")
                elif value:
                    yield _checked(f"{name}:{number}", value, f"{path}, row {number}")
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        yield DataError(f"{path} is no Parquet file, or damaged after row {number} ({error}). Fetch it again, {_SKIP}")
        return
    if number < 0:
        yield DataError(f"{path} is empty. Leave it out, {_SKIP}")


def read_tfds(examples, indices: range, name: str, feature: str) -> Documents:
    """Read the examples at `indices` of a TFDS data source; empty texts are no documents."""
    for start in range(0, len(indices), 64):
        chosen = indices[start : start + 64]
        try:
            texts = [example[feature] for example in examples.__getitems__(list(chosen))]
        except Exception as error:  # TFDS raises whatever the format below it does
            yield DataError(f"{name}: examples from {chosen[0]} on cannot be read ({error}). Prepare it again, {_SKIP}")
            continue
        for index, text in zip(chosen, texts, strict=True):
            if not isinstance(text, (str, bytes)):
                kind = type(text).__name__
                yield DataError(f"{name}, example {index}: feature {feature!r} holds {kind}, not text. Name another, {_SKIP}")
            elif text:
                yield _checked(f"{name}:{index}", text, f"{name}, example {index}")
