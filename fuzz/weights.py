"""Safetensors: one file, shards with their index, and with a configuration as a whole model."""

import json
import struct
from pathlib import Path
from random import Random

import numpy as np

from fuzz.mutate import NUMBERS, TEXTS, Files, json_bytes, mutated, one_of
from fuzz.target import Target, made_in_a_folder
from jaxlm.errors import JaxlmError
from jaxlm.interop.safetensors import FLOATS, INDEX, SINGLE, SafeTensors
from jaxlm.interop.safetensors_writer import write_safetensors
from jaxlm.interop.source import open_pretrained


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"embed": (7, 5), "layers.0.q": (4, 3, 2), "scalar": (), "none": (0, 3), "norm": (3,), "up": (6, 4)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _written(dtype: str, shard_bytes: int) -> Files:
    arrays = _arrays()
    shapes = {name: array.shape for name, array in arrays.items()}
    return made_in_a_folder(lambda folder: write_safetensors(folder, shapes, arrays.__getitem__, dtype, shard_bytes))


def _with_every_dtype() -> Files:
    """Return a file with a tensor of every dtype of the format, also those that hold no weights."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for dtype, size in {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "I16": 2,
        "U32": 4,
        "I64": 8,
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
    }.items():
        header[dtype] = {"dtype": dtype, "shape": [3, 1], "data_offsets": [len(data), len(data) + 3 * size]}
        data += bytes(range(3 * size))
    text = json.dumps(header).encode()
    return {SINGLE: struct.pack("<Q", len(text)) + text + data}


def _safetensors_seeds(folder: Path) -> list[Files]:
    return [*(_written(dtype, 10**9) for dtype in ("float32", "bfloat16", "float16")), _with_every_dtype()]


def _safetensors(rng: Random, seeds: list[Files]) -> Files:
    """Change the header as JSON, with a length that fits it, or the bytes of the file."""
    return one_of(rng, seeds, _header_changed)


def _header_changed(rng: Random, name: str, content: bytes) -> bytes:
    if not name.endswith(".safetensors"):
        return json_bytes(rng, content)
    if rng.random() < 0.35:
        return mutated(rng, content, head=600)
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length]
    text = _still_whole(rng, text) if rng.random() < 0.3 else json_bytes(rng, text)
    said = len(text) if rng.random() < 0.95 else rng.choice(NUMBERS)
    return struct.pack("<Q", said % 2**64) + text + content[8 + length :]


def _still_whole(rng: Random, text: bytes) -> bytes:
    """Return a header whose tensors still fill the file: other names, shapes and types of the same size, another order."""
    header = json.loads(text)
    items = [(name, dict(entry)) for name, entry in header.items()]
    rng.shuffle(items)
    for index, (name, entry) in enumerate(items):
        if "shape" not in entry or rng.random() < 0.5:
            continue
        shape, dtype = list(entry["shape"]), entry["dtype"]
        rng.shuffle(shape)
        shape = rng.choice((shape, [1, *shape], [*shape, 1, 1]))
        same = {"F32": ("U32", "I32"), "BF16": ("F16", "I16", "U16"), "F64": ("I64", "U64")}.get(dtype, (dtype,))
        entry |= {"shape": shape, "dtype": rng.choice((dtype, dtype, *same))}
        items[index] = (rng.choice((name, name, name + rng.choice(TEXTS), rng.choice(TEXTS))), entry)
    return json.dumps(dict(items) | {"__metadata__": {"format": rng.choice(TEXTS)}}).encode()


def _read_safetensors(folder: Path) -> None:
    """Read every tensor: shapes as the header says, no more bytes than the file has, and the same once written again."""
    found = SafeTensors(folder)
    held = sum(path.stat().st_size for path in folder.iterdir())
    assert sum(tensor.nbytes for tensor in found.tensors.values()) <= held, "tensors take more than the files"
    floats = {}
    for name, tensor in found.tensors.items():
        if tensor.dtype in FLOATS:
            floats[name] = found.read(name)
            assert floats[name].shape == tensor.shape and floats[name].dtype == FLOATS[tensor.dtype], name
            np.asarray(floats[name]).sum()
        else:
            try:
                found.read(name)
            except JaxlmError:
                continue
            raise AssertionError(f"{name} of {tensor.dtype} was read as weights")
    if floats and all(np.isfinite(array).all() and abs(array).max(initial=0) < 1e30 for array in map(_plain, floats.values())):
        out = folder.parent / "again"
        out.mkdir(exist_ok=True)
        shapes = {name: array.shape for name, array in floats.items()}
        write_safetensors(out, shapes, lambda name: _plain(floats[name]), "float32", 10**9)
        again = SafeTensors(out)
        assert again.shapes() == shapes, "shapes changed when written again"
        for name, array in floats.items():
            assert np.array_equal(again.read(name), array.astype(np.float32)), f"{name} changed when written again"


def _plain(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def _shard_seeds(folder: Path) -> list[Files]:
    return [_written("float32", 100), _written("bfloat16", 60)]


def _model_seeds(folder: Path) -> list[Files]:
    from pretrained import fixture, write_folder

    made = []
    for number, name in enumerate(("llama", "qwen3_moe", "gpt2")):
        config, weights = fixture(name)
        made.append(made_in_a_folder(lambda f, n=number, c=config, w=weights: write_folder(f / f"{n}", c, w, 10**9)))
    return [{name.partition("/")[2]: content for name, content in files.items()} for files in made]


def _model(rng: Random, seeds: list[Files]) -> Files:
    return one_of(rng, seeds, lambda r, name, content: _header_changed(r, name, content))


def _read_model(folder: Path) -> None:
    found = open_pretrained(str(folder), tokenizer=False)
    for name, shape in found.tensors.shapes().items():
        assert tuple(shape) == tuple(found.tensors.read(name).shape), name


TARGETS = (
    Target("safetensors", "model.safetensors: header and tensors", _safetensors_seeds, _safetensors, _read_safetensors),
    Target("safetensors-shards", f"shards with {INDEX}", _shard_seeds, _safetensors, _read_safetensors),
    Target("hugging-face-model", "config.json and model.safetensors of one model", _model_seeds, _model, _read_model),
)
