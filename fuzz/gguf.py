"""GGUF files: header, metadata, blocks of every type; alone and as whole models."""

import functools
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzz.mutate import NUMBERS, TEXTS, Files, mutated, odd
from fuzz.target import Target, made_in_a_folder
from jaxlm.interop.gguf import BLOCKS, PLAIN, Gguf
from jaxlm.interop.gguf_config import check_vocabulary, read_config
from jaxlm.interop.source import open_pretrained


@functools.cache
def _gguf_kinds() -> bytes:
    """Return a file with a tensor of every type that is read, and metadata of every type."""
    import gguf

    def write(folder: Path) -> None:
        writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
        writer.add_bool("a.bool", True)
        writer.add_array("a.words", ["x", "yz", ""])
        writer.add_array("a.numbers", [1.5, 2.5])
        writer.add_uint64("a.wide", 1 << 40)
        writer.add_int8("a.small", -3)
        writer.add_custom_alignment(32)
        for kind in (*PLAIN, *BLOCKS):
            number = gguf.GGMLQuantizationType[kind]
            block, size = gguf.GGML_QUANT_SIZES[number]
            rows = 256 // block if kind in PLAIN else 1
            raw = np.random.default_rng(1).integers(0, 256, (2, rows * size), np.uint8)
            if kind in PLAIN:
                raw = np.ones((2, 4), PLAIN[kind]).view(np.uint8)
            writer.add_tensor(kind.lower(), raw, raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return made_in_a_folder(write)["m.gguf"]


def _gguf_models() -> list[bytes]:
    """Return small models of several architectures, with a vocabulary of either kind."""
    from gguf_files import write_model
    from pretrained import fixture

    made = []
    for name, architecture, vocabulary in (("llama", "llama", "gpt2"), ("gpt2", "gpt2", ""), ("gemma", "gemma", "llama")):
        config, weights = fixture(name)
        first = {key: array for key, array in weights.items() if (".layers." not in key and ".h." not in key) or ".0." in key}
        layers = {"num_hidden_layers": 1} | ({"n_layer": 1} if "n_layer" in config else {})
        made.append(
            made_in_a_folder(
                lambda folder, a=architecture, c=config | layers, w=first, v=vocabulary: write_model(
                    folder / "m.gguf", a, c, w, vocabulary=v
                )
            )["m.gguf"]
        )
    return made


def described(content: bytes, folder: Path) -> dict[str, Any]:
    """Return a GGUF file as plain values: its keys, its tensors, and the bytes behind the header."""
    import gguf

    path = folder / "described.gguf"
    path.write_bytes(content)
    file = Gguf(path)
    start = -(-file.header_bytes // 32) * 32
    tensors = [
        [name, list(tensor.shape[::-1]), int(gguf.GGMLQuantizationType[tensor.kind]), tensor.start - start]
        for name, tensor in file.tensors.items()
    ]
    return {
        "version": 3,
        "keys": [[key, value] for key, value in file.metadata.items()],
        "tensors": tensors,
        "data": content[start:],
    }


def _text(value: Any) -> bytes:
    data = str(value).encode(errors="surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Return a value after its type, as the format has it; what it has no type for as a text."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        wide = not 0 <= value < 1 << 32
        return struct.pack("<IQ", 10, value % 2**64) if wide else struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    if isinstance(value, list):
        parts = [_value(item) for item in value]
        kind = parts[0][:4] if parts else struct.pack("<I", 4)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(parts)) + b"".join(part[4:] for part in parts)
    return struct.pack("<I", 8) + _text(value)


def encoded(spec: dict[str, Any]) -> bytes:
    """Return the file that `described` describes, whatever was put in the place of its values."""
    counts = spec.get("counts", (len(spec["tensors"]), len(spec["keys"])))
    out = [b"GGUF", struct.pack("<IQQ", spec["version"] % 2**32, *(count % 2**64 for count in counts))]
    out += [_text(key) + _value(value) for key, value in spec["keys"]]
    for name, shape, kind, offset in spec["tensors"]:
        sizes = [size % 2**64 for size in shape]
        out.append(_text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind % 2**32, offset % 2**64))
    head = b"".join(out)
    return head + bytes(-len(head) % 32) + spec["data"]


def _gguf_changed(rng: Random, spec: dict[str, Any]) -> bytes:
    """Change keys, values, shapes, types and places, so that the rest of the header still fits them."""
    spec = spec | {"keys": [list(key) for key in spec["keys"]], "tensors": [list(tensor) for tensor in spec["tensors"]]}
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(8)
        key, tensor = rng.choice(spec["keys"]), rng.choice(spec["tensors"])
        if kind == 0:
            tensor[1] = [rng.choice((*NUMBERS, *tensor[1])) for _ in range(rng.choice((1, 2, 2, 3, 4, 5)))]
        elif kind == 1:
            tensor[rng.choice((2, 3))] = rng.choice((*NUMBERS, *range(40)))
        elif kind == 2:
            tensor[0] = rng.choice((rng.choice(spec["tensors"])[0], tensor[0].replace("0", "999999"), *TEXTS))
        elif kind == 3:
            spec["counts"] = (rng.choice((*NUMBERS, len(spec["tensors"]))), rng.choice((*NUMBERS, len(spec["keys"]))))
        elif kind == 4:
            key[0] = rng.choice((rng.choice(spec["keys"])[0], key[0] + "_swa", *TEXTS))
        elif kind == 5 and isinstance(key[1], list) and key[1]:
            items = list(key[1])
            items[rng.randrange(len(items))] = rng.choice((items[0], odd(rng)))
            key[1] = rng.choice((items, items[:-1], items * 2, items[:1]))
        else:
            value = odd(rng)
            numbers = type(key[1]) in (int, float) and rng.random() < 0.6
            key[1] = rng.choice(NUMBERS) if numbers else rng.choice((1e38, -1.0, 0.0, float("nan"))) if numbers else value
    if rng.random() < 0.1:
        spec["keys"].append(["split.count", rng.choice((0, 1, 2, odd(rng)))])
    return encoded(spec)


def _gguf_seeds(folder: Path) -> list[tuple[bytes, dict[str, Any]]]:
    return [(content, described(content, folder)) for content in (_gguf_kinds(),)]


def _gguf_model_seeds(folder: Path) -> list[tuple[bytes, dict[str, Any]]]:
    return [(content, described(content, folder)) for content in _gguf_models()]


def _gguf(rng: Random, seeds: list[tuple[bytes, dict[str, Any]]]) -> Files:
    content, spec = rng.choice(seeds)
    made = mutated(rng, content, [other for other, _ in seeds], head=1500) if rng.random() < 0.4 else _gguf_changed(rng, spec)
    return {"model.gguf": made}


def _read_gguf(folder: Path) -> None:
    """Read all metadata and every tensor: of the shape that the header says, in no more memory than its blocks can hold."""
    path = folder / "model.gguf"
    file = Gguf(path)
    size = path.stat().st_size
    for name, tensor in file.tensors.items():
        found = file.read(name)
        assert found.shape == tensor.shape, f"{name} has the shape {found.shape}"
        assert found.nbytes <= 32 * size, f"{name} takes {found.nbytes} bytes of a file of {size}"
    assert file.header_bytes <= size


def _read_gguf_model(folder: Path) -> None:
    """Open the file as a model: configuration, vocabulary and tensors of one model, and every tensor of its shape."""
    path = folder / "model.gguf"
    file = Gguf(path)
    check_vocabulary(file)
    read_config(file)
    found = open_pretrained(str(path))
    for name, shape in found.tensors.shapes().items():
        assert tuple(found.tensors.read(name).shape) == tuple(shape), name
    if found.tokenizer is not None:
        ids = found.tokenizer.encode("a b ab</s>")
        assert isinstance(found.tokenizer.decode(ids), str) and all(0 <= i < found.tokenizer.vocab_size for i in ids)


TARGETS = (
    Target("gguf", "a GGUF file with tensors of all types: header, metadata, blocks", _gguf_seeds, _gguf, _read_gguf),
    Target(
        "gguf-model", "a GGUF file as a model: configuration, vocabulary, tensors", _gguf_model_seeds, _gguf, _read_gguf_model
    ),
)
