"""Safetensors written one tensor at a time, so that a model is never in memory a second time."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from jaxlm.errors import ConfigError
from jaxlm.interop.safetensors import INDEX, SINGLE

Dtype = Literal["float32", "bfloat16", "float16"]
_SPELLINGS = {"float32": ("F32", np.float32), "bfloat16": ("BF16", ml_dtypes.bfloat16), "float16": ("F16", np.float16)}
_ALIGNMENT = 8


def write_safetensors(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray], dtype: Dtype, shard_bytes: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:  # fmt: skip
    """Write the tensors of `shapes`, each got by read(name), into `folder`: one file, or shards of at most `shard_bytes`.

    The same tensors give the same bytes. A tensor larger than a shard gets one of its own. `report` is told of bytes written
    and bytes in all. Raises ConfigError for a weight that float16 cannot hold.
    """
    itemsize = np.dtype(_SPELLINGS[dtype][1]).itemsize
    sizes = {name: math.prod(shape) * itemsize for name, shape in shapes.items()}
    shards = _shards(sizes, shard_bytes)
    total, done = sum(sizes.values()), 0
    names = (
        [SINGLE] if len(shards) == 1 else [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    )
    for file_name, names_in in zip(names, shards, strict=True):
        with (folder / file_name).open("wb") as file:
            file.write(_header({name: shapes[name] for name in names_in}, sizes, dtype))
            for name in names_in:
                file.write(_converted(name, read(name), shapes[name], dtype).reshape(-1).view(np.uint8).data)
                done += sizes[name]
                report(done, total)
            file.flush()
            os.fsync(file.fileno())
    if len(shards) > 1:
        places = {name: file_name for file_name, held in zip(names, shards, strict=True) for name in held}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _header(shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], dtype: Dtype) -> bytes:
    # transformers refuses a file without {"format": "pt"}: it says in which way matrices are to be read.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + sizes[name]
        header[name] = {"dtype": _SPELLINGS[dtype][0], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _converted(name: str, values: np.ndarray, shape: tuple[int, ...], dtype: Dtype) -> np.ndarray:
    if values.shape != shape:
        raise ValueError(f"{name} is {values.shape}, announced as {shape}")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(values, _SPELLINGS[dtype][1])
    if dtype == "float16" and values.size and np.abs(values, out=np.empty_like(values)).max() > 65504:
        raise ConfigError(f"{name} has values beyond 65504, which float16 cannot hold: export with --dtype bfloat16 or float32")
    return converted
