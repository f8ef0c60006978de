"""The safetensors format, read lazily and written as a stream: a length, a JSON header, and raw tensors one after another.

Nothing of a file is believed before it is checked: every tensor lies within the file, none over another, and what is read is
mapped, so that a header's claim never becomes an allocation. The format: https://github.com/huggingface/safetensors
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.config import read_json
from jaxlm.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000  # bytes; the same as the format's own library
_MOST_DIMENSIONS, _MOST_VALUES, _LONGEST_NAME = 16, 1 << 48, 1000

FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Such tensors may lie in a file (masks, rotary frequencies as integers) but hold no weights.
_INTEGERS = {
    "BOOL": np.dtype(np.bool_), "U8": np.dtype(np.uint8), "I8": np.dtype(np.int8), "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16), "U32": np.dtype(np.uint32), "I32": np.dtype(np.int32), "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
}  # fmt: skip
_DTYPES = FLOATS | _INTEGERS
_QUANTISED = ("F8_E5M2", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies."""

    file: Path
    dtype: str
    """As the format spells it: "F32", "BF16"."""
    shape: tuple[int, ...]
    start: int
    """Bytes from the beginning of the file."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


class SafeTensors:
    """The tensors of a model's folder (one `model.safetensors`, or shards with their index) or of a single file.

    Raises CheckpointError where a header is not to be believed, a shard is missing, or files are cut short.
    """

    def __init__(self, source: Path):
        self.tensors = _read_folder(source) if source.is_dir() else read_header(source)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor; nothing is read."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def dtypes(self) -> dict[str, int]:
        """Return how many bytes there are of each dtype, the most common first."""
        found: dict[str, int] = {}
        for tensor in self.tensors.values():
            found[tensor.dtype] = found.get(tensor.dtype, 0) + tensor.nbytes
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def read(self, name: str) -> np.ndarray:
        """Return a read-only view of a floating-point tensor, mapped for as long as it is held: pages are read when touched."""
        tensor = self.tensors[name]
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{tensor.file} holds {name} as {tensor.dtype}: weights must be {', '.join(FLOATS)}")
        if not tensor.nbytes:
            return np.zeros(tensor.shape, FLOATS[tensor.dtype])
        try:
            return np.memmap(tensor.file, FLOATS[tensor.dtype], "r", tensor.start, tensor.shape)
        except (OSError, ValueError) as fault:
            raise CheckpointError(f"{tensor.file} cannot be read any more: {fault}") from fault


def read_header(path: Path) -> dict[str, Tensor]:
    """Return where the tensors of one file lie, in the file's order; CheckpointError for anything that is not as it must be."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                what = "is cut short or no safetensors file" if size < 8 or length <= HEADER_LIMIT else "is no safetensors file"
                raise _refused(path, f"{what}: its first 8 bytes announce a header of {length} bytes, the file has {size}")
            text = file.read(length)
    except OSError as fault:
        raise CheckpointError(f"{path} cannot be read: {fault.strerror}") from fault
    header = parse_json(text, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _refused(path, "has a __metadata__ that is no object")
    tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_places(path, tensors, 8 + length, size)
    return tensors


def _tensor(path: Path, name: str, entry: Any, data: int) -> Tensor:
    if len(name) > _LONGEST_NAME:
        raise _refused(path, f"has a tensor whose name takes {len(name)} characters: {name[:80]!r}...")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _refused(path, f"says of {name!r} no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype in _QUANTISED:
        raise CheckpointError(
            f"{path} holds {name} as {dtype}, which jaxlm does not read: take the model's bfloat16 or float32 "
            "release, or a GGUF file"
        )
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _refused(path, f"holds {name} as {str(dtype)[:40]!r}, which is no dtype of the format ({', '.join(_DTYPES)})")
    if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise _refused(path, f"gives {name} the shape {str(shape)[:80]}: it must be at most {_MOST_DIMENSIONS} sizes")
    if 0 in shape and math.prod(max(size, 1) for size in shape) > _MOST_VALUES:  # not even of no values can NumPy make it
        raise _refused(path, f"gives {name} the shape {str(shape)[:80]}: no file holds so much")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _refused(path, f"gives {name} the offsets {str(offsets)[:80]}: they must be two places in the file")
    needed = math.prod(shape) * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != needed:
        raise _refused(path, f"gives {name} {offsets[1] - offsets[0]} bytes, but {dtype} {list(shape)} takes {needed}")
    return Tensor(path, dtype, tuple(shape), data + offsets[0])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_places(path: Path, tensors: Mapping[str, Tensor], start: int, size: int) -> None:
    """Raise CheckpointError unless the tensors fill the file from `start` to its end, one after another."""
    end, before = start, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != end:
            fault = "overlaps" if tensor.start < end else "leaves a gap after"
            raise _refused(path, f"has a damaged header: {name} {fault} {before}")
        end, before = tensor.start + tensor.nbytes, name
    if end > size:
        raise _refused(path, f"is cut short: {end - size} of its {end} bytes are missing")
    if end < size:
        raise _refused(path, f"has {size - end} bytes after its last tensor")


def _read_folder(folder: Path) -> dict[str, Tensor]:
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    refuse_pickles(folder)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise CheckpointError(
            f"{folder} has neither {SINGLE} nor {INDEX}, only {', '.join(others[:3])}: not a whole model"
            + (" (shards without their index)" if any("-of-" in name for name in others) else "")
        )
    raise CheckpointError(f"{folder} has no weights: there is neither {SINGLE} nor {INDEX}")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all shards; the index must name each of them, once, and in the file where it is."""
    path = folder / INDEX
    try:
        if path.stat().st_size > HEADER_LIMIT:
            raise _refused(path, f"is larger than {HEADER_LIMIT} bytes")
        index = parse_json(path.read_bytes(), path)
    except OSError as fault:
        raise CheckpointError(f"{path} cannot be read: {fault.strerror}") from fault
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise _refused(path, 'has no "weight_map" from tensors to files')
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(places.values()):
        # Shards may be symbolic links, as in a download cache, but their names stay within the folder.
        too_long = len(file.encode(errors="replace")) > 255  # for any file system
        if too_long or Path(file).name != file or not file.endswith(".safetensors") or "\\" in file or "\0" in file:
            raise _refused(path, f"names the file {file[:80]!r}, which is no safetensors file of this folder")
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder} lacks {file}, which {INDEX} names: download the folder again")
        for name, tensor in read_header(folder / file).items():
            if name in tensors:
                raise _refused(path, f"has {name} twice: in {tensors[name].file.name} and in {file}")
            if places.get(name) != file:
                raise _refused(path, f"does not say that {name} lies in {file}")
            tensors[name] = tensor
    missing = next((name for name in places if name not in tensors), None)
    if missing is not None:
        raise _refused(path, f"says that {missing[:200]} lies in {places[missing]}, where it is not")
    return tensors


def refuse_pickles(path: Path) -> None:
    """Raise CheckpointError for weights that are pickles, in a folder or as a file: opening one runs whatever code it holds."""
    pickles = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
    found = [path] if path.is_file() else sorted(file for pattern in pickles for file in path.glob(pattern))
    if not any(found and found[0].match(pattern) for pattern in pickles):
        return
    folder = path if path.is_dir() else path.parent
    raise CheckpointError(
        f"{found[0]} is a pickle, which can run any code when it is opened: jaxlm reads safetensors and GGUF. If you trust it, "
        "convert it in an environment with torch and transformers:\n"
        "  from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"  AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained('converted')\n"
        f"  AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained('converted')"
    )


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in a file's `text`, in which no key may stand twice; CheckpointError with the fault."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            raise ValueError(f"{twice[:200]!r} stands there twice")
        return found

    try:
        found = read_json(text, once)
    except ValueError as fault:
        raise _refused(path, str(fault)) from fault
    if not isinstance(found, dict):
        raise _refused(path, "holds no JSON object")
    return found


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} {what}: download it again, or write it anew with save_pretrained")
