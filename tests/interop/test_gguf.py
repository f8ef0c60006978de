"""GGUF files: block layouts restated, llama.cpp's rearrangements undone, headers that lie."""

import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import decode, write_model
from pretrained import fixture, write_folder

from jaxlm.errors import JaxlmError
from jaxlm.interop.families.family import function_of
from jaxlm.interop.gguf import BLOCKS, PLAIN, Gguf
from jaxlm.interop.source import open_pretrained
from jaxlm.interop.table import leaf_part
from jaxlm.model import transformer
from jaxlm.param import named_leaves

CONFIG, WEIGHTS = fixture("llama")


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_are_decoded_as_published(tmp_path, kind):
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    raw = np.random.default_rng(0).integers(0, 256, (3, 2 * size), np.uint8)
    scales = {"Q6_K": [208], "Q3_K": [108], "Q2_K": [80, 82], "Q8_0": [0], "Q4_0": [0], "Q5_0": [0]}.get(kind, [0, 2])
    for start in range(0, 2 * size, size):  # random bytes may spell a scale that is not finite
        for at in scales:
            raw[:, start + at : start + at + 2] = np.array([0.37, -1.5, 2e-3], np.float16).view(np.uint8).reshape(3, 2)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = Gguf(tmp_path / "one.gguf").read("x")
    assert found.shape == (3, 2 * block)
    expected = [[*decode(kind, row[:size].tobytes()), *decode(kind, row[size:].tobytes())] for row in raw]
    np.testing.assert_allclose(found, np.array(expected), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [*PLAIN, "Q8_0"])
def test_header_and_tensors_equal_the_packages(tmp_path, kind):
    path = tmp_path / "model.gguf"
    write_model(path, "llama", CONFIG, WEIGHTS, kind)
    ours, theirs = Gguf(path), gguf.GGUFReader(path)
    assert ours.metadata == {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(np.asarray(ours.read(tensor.name), np.float32), expected)


def leaves_of(path: Path) -> dict[str, np.ndarray]:
    found = open_pretrained(str(path), tokenizer=False)
    whole = {name: (slice(None),) * len(leaf.shape) for name, leaf in named_leaves(transformer.spec(found.model)).items()}
    return {name: leaf_part(found.table, found.model, name, index, found.tensors.read) for name, index in whole.items()}


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("llama", "llama"), ("llama_bias_tied", "llama"), ("mistral", "llama"), ("mixtral", "llama"), ("qwen2", "qwen2"),
        ("qwen3", "qwen3"), ("qwen3_moe", "qwen3moe"), ("gemma", "gemma"), ("gemma2", "gemma2"), ("gemma3", "gemma3"),
        ("olmo2", "olmo2"), ("gpt2", "gpt2"),
    ],
)  # fmt: skip
def test_a_gguf_file_is_the_same_model_as_its_folder(tmp_path, name, architecture):
    config, weights = fixture(name)
    if name == "qwen2":  # llama.cpp's has no sliding windows
        config |= {"sliding_window": None, "use_sliding_window": False, "layer_types": None}
    if name == "qwen3_moe":  # nor its mixtures dense layers
        weights = {k: w for k, w in weights.items() if ".layers." not in k or ".layers.0." in k}
        config |= {"num_hidden_layers": 1, "mlp_only_layers": [], "layer_types": None}
    path, folder = tmp_path / "model.gguf", write_folder(tmp_path / "folder", config, weights)
    write_model(path, architecture, config, weights)
    ours, theirs = (open_pretrained(str(place), tokenizer=False).model for place in (path, folder))
    same, expected = function_of(ours), function_of(theirs)
    assert same.pop("norm_epsilon") == pytest.approx(expected.pop("norm_epsilon"), rel=1e-6)
    if name in ("gemma2", "gemma3"):  # the file has no scale of queries: readers know the published models' alone
        assert same.pop("query_scale") == pytest.approx(config["head_dim"] ** -0.5) != expected.pop("query_scale")
    assert same == expected
    expected = leaves_of(folder)
    for leaf, values in leaves_of(path).items():
        np.testing.assert_allclose(values, expected[leaf], atol=3e-7, err_msg=leaf)


def rope_factors(factor: float, length: int, low: float, high: float, half: int, theta: float) -> np.ndarray:
    out = []
    for i in range(half):
        wave = 2 * np.pi * theta ** (i / half)
        smooth = (length / wave - low) / (high - low)
        out.append(1.0 if wave < length / high else factor if wave > length / low else 1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def test_stored_rope_factors_are_understood(tmp_path):
    path = tmp_path / "model.gguf"
    config = CONFIG | {"rope_parameters": {"rope_theta": 5e5}}
    write_model(path, "llama", config, WEIGHTS, tensors={"rope_freqs.weight": rope_factors(32.0, 8192, 1.0, 4.0, 4, 5e5)})
    scaling = open_pretrained(str(path), tokenizer=False).model.rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_length) == ("llama3", 32.0, 8192)
    assert (scaling.low_freq_factor, scaling.high_freq_factor) == (1.0, 4.0)
    write_model(path, "llama", config, WEIGHTS, tensors={"rope_freqs.weight": np.array([1, 1.5, 3, 7], np.float32)})
    scaling = open_pretrained(str(path), tokenizer=False).model.rope_scaling
    assert (scaling.kind, scaling.attention_factor) == ("longrope", 1.0)
    assert scaling.short_factor == scaling.long_factor == (1.0, 1.5, 3.0, 7.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keys": {"attention.max_alibi_bias": 8.0}}, "sets llama.attention.max_alibi_bias = 8.0, which jaxlm does not know"),
        ({"keys": {"attention.sliding_window": 1.5}}, "one number for all layers"),
        ({"architecture": "mamba"}, "holds the architecture 'mamba'; jaxlm reads llama, qwen2"),
        ({"tensors": {"blk.0.extra.weight": np.ones(3, np.float32)}}, r"extra.weight \[3\] has no place in the model"),
        ({"tensors": {"rope_freqs.weight": np.ones(3, np.float32)}}, "must hold 4 factors"),
    ],
)
def test_what_is_not_known_is_named(tmp_path, change, said):
    write_model(tmp_path / "model.gguf", **({"architecture": "llama", "config": CONFIG, "weights": WEIGHTS} | change))
    with pytest.raises(JaxlmError, match=said):
        open_pretrained(str(tmp_path / "model.gguf"))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    write_model(tmp_path / "model.gguf", "llama", CONFIG, WEIGHTS)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(JaxlmError, match=r"pip install 'jaxlm\[pretrained\]'"):
        Gguf(tmp_path / "model.gguf")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def head(tensors: int, keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


KEY = text("general.alignment") + struct.pack("<I", 4)
LIES = {
    "does not begin with GGUF": b"GGML" + bytes(30),
    "big-endian": head(0, 0, version=0x03000000),
    "of version 1": head(0, 0, version=1),
    "announces 1099511627776 tensors": head(1 << 40, 0, bytes(100)),
    "announces 1000000 metadata keys": head(0, 1_000_000, bytes(100)),
    "cut short: its header goes on": b"GGUF\x03\x00",
    "a metadata key of": head(0, 1, struct.pack("<Q", 1 << 60) + bytes(50)),
    "stands there twice": head(0, 2, (KEY + struct.pack("<I", 32)) * 2),
    "no power of two": head(0, 1, KEY + struct.pack("<I", 33)),
    "unknown type 99": head(0, 1, text("a") + struct.pack("<I", 99) + bytes(8)),
    "values of the unknown type 9": head(0, 1, text("a") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 4, 0)),
    "values of a in": head(0, 1, text("a") + struct.pack("<IIQ", 9, 4, 1 << 61)),
    "is not UTF-8": head(0, 1, text("a") + struct.pack("<IQ", 8, 2) + b"\xff\xfe" + bytes(9)),
    "has 5 dimensions": head(1, 0, tensor("x", (1,) * 5, 0, 0)),
    "has the shape": head(1, 0, tensor("x", (0, 4), 0, 0)),
    "as IQ1_S, which": head(1, 0, tensor("x", (256,), 19, 0) + bytes(500)),
    "as type 77": head(1, 0, tensor("x", (256,), 77, 0) + bytes(500)),
    "packs 32 together": head(1, 0, tensor("x", (31,), 8, 0) + bytes(500)),
    "which 32 does not divide": head(1, 0, tensor("x", (4,), 0, 4) + bytes(500)),
    "overlaps x": head(2, 0, tensor("x", (16,), 0, 0) + tensor("y", (16,), 0, 32) + bytes(500)),
    "bytes are missing": head(1, 0, tensor("x", (1 << 40, 1 << 20), 0, 0) + bytes(500)),
    "the tensor 'x' stands": head(2, 0, tensor("x", (4,), 0, 0) + tensor("x", (4,), 0, 32) + bytes(500)),
}  # fmt: skip


@pytest.mark.parametrize("said", LIES)
def test_a_lying_header_is_refused(tmp_path, said):
    (tmp_path / "model.gguf").write_bytes(LIES[said])
    with pytest.raises(JaxlmError, match=said):
        Gguf(tmp_path / "model.gguf")
