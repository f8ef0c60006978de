"""GGUF files: metadata and tensors behind one header, read lazily, block-quantised tensors made float32 when asked for.

The header is walked by bounded code of our own before anything is mapped or allocated: counts, lengths and places are checked
against the file's size. Blocks are decoded by the package `gguf`, whose own reader is not used: it believes the header, and
takes seconds over a vocabulary. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.errors import CheckpointError

# What holds weights as they are; of the others the package knows the blocks.
PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LEAST = {_STRING: 8} | {kind: struct.calcsize(form) for kind, form in _SCALARS.items()}  # bytes that a value takes at least
# Far above any real file: what a header may make us hold.
_MOST_VALUES, _MOST_TENSORS, _LONGEST_NAME, _MOST_DIMENSIONS = 1 << 23, 1 << 20, 1000, 4
_ROWS_BYTES = 1 << 24  # of float32 decoded at a time: beyond the result, little is needed


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies, and how."""

    kind: str
    """"F32", "Q4_K": the format's name of the type."""
    shape: tuple[int, ...]
    """Slowest dimension first, as in NumPy (the file says it the other way round)."""
    start: int
    """Bytes from the beginning of the file."""
    nbytes: int


class Gguf:
    """One GGUF file: `metadata` (plain values and lists) and `tensors` by the file's own names.

    Raises CheckpointError where the header is not to be believed or asks for what is not supported.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = path.stat().st_size
                header = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        except OSError as fault:
            raise CheckpointError(f"{path} cannot be read: {fault.strerror}") from fault
        cursor = _Cursor(path, header)
        self.metadata, self.tensors = _walk(cursor)
        self.header_bytes = cursor.place
        if self.metadata.get("split.count", 1) not in (0, 1):
            raise CheckpointError(
                f"{path} is one of {self.metadata['split.count']} parts: join them first, with llama-gguf-split --merge"
            )

    def dtypes(self) -> dict[str, int]:
        """Return how many bytes there are of each type, the most common first."""
        found: dict[str, int] = {}
        for tensor in self.tensors.values():
            found[tensor.kind] = found.get(tensor.kind, 0) + tensor.nbytes
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def read(self, name: str, part: int | None = None) -> np.ndarray:
        """Return a tensor: a mapped view of F32, F16 and BF16, otherwise float32 decoded now.

        With `part`, only that index of the slowest dimension: one expert of a stack.
        """
        tensor = self.tensors[name]
        shape, start, nbytes = tensor.shape, tensor.start, tensor.nbytes
        if part is not None:
            nbytes //= shape[0]
            shape, start = shape[1:], start + part * nbytes
        try:
            raw = np.memmap(self.path, np.uint8, "r", start, (nbytes,))
        except (OSError, ValueError) as fault:
            raise CheckpointError(f"{self.path} cannot be read any more: {fault}") from fault
        if tensor.kind in PLAIN:
            return raw.view(PLAIN[tensor.kind]).reshape(shape)
        return _decoded(raw, tensor.kind, shape)


def _decoded(raw: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 values of a block-quantised tensor, some rows at a time."""
    from gguf import GGMLQuantizationType, dequantize

    rows = raw.reshape(math.prod(shape[:-1]), -1)
    values = np.empty((len(rows), shape[-1]), np.float32)
    step = max(1, _ROWS_BYTES // (4 * shape[-1]))
    for row in range(0, len(rows), step):
        values[row : row + step] = dequantize(rows[row : row + step], GGMLQuantizationType[kind])
    return values.reshape(shape)


def package() -> Any:
    """Return the package `gguf`, or raise CheckpointError with how to get it."""
    try:
        import gguf
    except ImportError as fault:
        raise CheckpointError("reading a GGUF file needs the package gguf: pip install 'jaxlm[pretrained]'") from fault
    return gguf


class _Cursor:
    """A place in the header; nothing is taken that the file does not hold."""

    def __init__(self, path: Path, data: Any):
        self.path, self.data, self.place, self.values = path, data, 0, 0

    def refused(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {what}: download it again")

    def left(self) -> int:
        return len(self.data) - self.place

    def number(self, form: str) -> Any:
        size = struct.calcsize(form)
        if size > self.left():
            raise self.refused(f"is cut short: its header goes on after its end, at {len(self.data)} bytes")
        (value,) = struct.unpack_from(form, self.data, self.place)
        self.place += size
        return value

    def text(self, what: str, most: int | None = None) -> str:
        length = self.number("<Q")
        if length > self.left() or (most is not None and length > most):
            raise self.refused(f"has a damaged header: {what} of {length} bytes at {self.place}")
        found = self.data[self.place : self.place + length]
        self.place += length
        try:
            return found.decode()
        except UnicodeDecodeError as fault:
            raise self.refused(f"has a damaged header: {what} at {self.place - length} is not UTF-8") from fault

    def count(self, what: str, least: int, most: int) -> int:
        """Return a number of things that take at least `least` bytes each."""
        found = self.number("<Q")
        if found > min(most, self.left() // least):
            raise self.refused(f"has a damaged header: it announces {found} {what} in {self.left()} bytes")
        return found

    def value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text(f"a text of {key}")
        if kind != _ARRAY:
            raise self.refused(f"has a damaged header: {key} is of the unknown type {kind}")
        kind = self.number("<I")
        if kind not in _LEAST:
            raise self.refused(f"has a damaged header: {key} holds values of the unknown type {kind}")
        count = self.count(f"values of {key}", _LEAST[kind], _MOST_VALUES - self.values)
        self.values += count
        if kind == _STRING:
            return [self.text(f"a text of {key}") for _ in range(count)]
        size = count * _LEAST[kind]
        values = (
            np.frombuffer(self.data, np.dtype(_SCALARS[kind].replace("?", "B")), count, self.place) if count else np.empty(0)
        )
        self.place += size
        return [bool(v) for v in values] if kind == 7 else values.tolist()


def _walk(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Return the metadata and the tensors that a header describes, every place checked."""
    if cursor.data[:4] != _MAGIC:
        raise CheckpointError(f"{cursor.path} is no GGUF file: it does not begin with GGUF")
    cursor.place = 4
    version = cursor.number("<I")
    if version not in _VERSIONS:
        swapped = version & 0xFFFF == 0
        what = "is written for big-endian machines" if swapped else f"is of version {version} of the format"
        raise CheckpointError(f"{cursor.path} {what}; little-endian versions 2 and 3 are read: take a newer conversion")
    num_tensors = cursor.count("tensors", 24, _MOST_TENSORS)
    num_keys = cursor.count("metadata keys", 13, _MOST_VALUES)
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.text("a metadata key", _LONGEST_NAME)
        if key in metadata:
            raise cursor.refused(f"has a damaged header: {key!r} stands there twice")
        metadata[key] = cursor.value(cursor.number("<I"), key)
    infos = [_tensor_info(cursor) for _ in range(num_tensors)]
    return metadata, _placed(cursor, infos, _alignment(cursor, metadata))


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.refused(f"has a damaged header: general.alignment = {str(alignment)[:40]} is no power of two")
    return alignment


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("a tensor's name", _LONGEST_NAME)
    dimensions = cursor.number("<I")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise cursor.refused(f"has a damaged header: {name!r} has {dimensions} dimensions, not 1 to {_MOST_DIMENSIONS}")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
    if not all(shape):
        raise cursor.refused(f"has a damaged header: {name!r} has the shape {list(shape)}")
    return name, shape, cursor.number("<I"), cursor.number("<Q")


def _placed(cursor: _Cursor, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> dict[str, GgufTensor]:
    """Return the tensors where they lie in the file, none over another and none beyond its end."""
    constants = package().constants
    data = -(-cursor.place // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, number, offset in infos:
        known = number in constants.GGMLQuantizationType._value2member_map_
        kind = constants.GGMLQuantizationType(number).name if known else f"type {number}"
        if kind not in PLAIN and kind not in BLOCKS:
            raise CheckpointError(
                f"{cursor.path} holds {name} as {kind}, which jaxlm does not read: take a file of "
                f"{', '.join((*PLAIN, *BLOCKS))}"
            )
        if name in tensors:
            raise cursor.refused(f"has a damaged header: the tensor {name!r} stands there twice")
        block, size = constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType(number)]
        if shape[-1] % block:
            raise cursor.refused(f"has a damaged header: rows of {name} have {shape[-1]} values, {kind} packs {block} together")
        if offset % alignment:
            raise cursor.refused(f"has a damaged header: {name} begins at {offset}, which {alignment} does not divide")
        tensors[name] = GgufTensor(kind, shape, data + offset, math.prod(shape) // block * size)
    end, before = data, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start < end:
            raise cursor.refused(f"has a damaged header: {name} overlaps {before}")
        end, before = tensor.start + tensor.nbytes, name
    if tensors and end > len(cursor.data):
        raise cursor.refused(f"is cut short: {end - len(cursor.data)} of its {end} bytes are missing")
    return tensors
