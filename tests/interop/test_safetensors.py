"""Our reader and writer of safetensors against the format's own library, and against files that lie."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxlm.errors import ConfigError, JaxlmError
from jaxlm.interop.safetensors import INDEX, SINGLE, SafeTensors
from jaxlm.interop.safetensors_writer import write_safetensors

rng = np.random.default_rng(0)
ARRAYS = {
    "model.embed.weight": rng.standard_normal((7, 5)).astype(np.float32),
    "model.layers.0.q": rng.standard_normal((4, 3, 2)).astype(np.float32),
    "scalar": np.array(2.5, np.float32),
    "none": np.zeros((0, 3), np.float32),
    "model.norm": rng.standard_normal(3).astype(np.float32),
}
SHAPES = {name: array.shape for name, array in ARRAYS.items()}


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_reads_what_the_library_writes(tmp_path, dtype):
    arrays = {name: array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for name, array in ARRAYS.items()}
    ids = np.arange(6, dtype=np.int64)
    safetensors.numpy.save_file(arrays | {"ids": ids}, tmp_path / SINGLE, metadata={"format": "pt"})
    found = SafeTensors(tmp_path)
    assert found.shapes() == SHAPES | {"ids": (6,)}
    for name, array in arrays.items():
        read = found.read(name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read.astype(np.float64), array.astype(np.float64))
    assert isinstance(found.read("model.norm"), np.memmap)
    assert found.dtypes()["I64"] == 48
    with pytest.raises(JaxlmError, match="ids as I64: weights must be"):
        found.read("ids")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [10**9, 60])
def test_the_library_reads_what_is_written(tmp_path, dtype, shard_bytes):
    told = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_safetensors(tmp_path / folder, SHAPES, ARRAYS.__getitem__, dtype, shard_bytes, lambda *x: told.append(x))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert told[-1][0] == told[-1][1] == sum(array.size for array in ARRAYS.values()) * (4 if dtype == "float32" else 2)
    expected = {name: array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for name, array in ARRAYS.items()}
    theirs = {}
    for name in files:
        if name.endswith(".safetensors"):
            theirs |= safetensors.numpy.load_file(tmp_path / "a" / name)
            with safetensors.safe_open(tmp_path / "a" / name, "np") as file:
                assert file.metadata() == {"format": "pt"}
    assert (INDEX in files) == (len(files) > 1) == (shard_bytes == 60)
    if INDEX in files:
        index = json.loads((tmp_path / "a" / INDEX).read_text())
        assert index["metadata"]["total_size"] == told[-1][1]
        assert all(name in safetensors.numpy.load_file(tmp_path / "a" / file) for name, file in index["weight_map"].items())
    ours = SafeTensors(tmp_path / "a")
    assert theirs.keys() == expected.keys() == ours.shapes().keys()
    for name, array in expected.items():
        assert theirs[name].tobytes() == array.tobytes() == np.asarray(ours.read(name)).tobytes()


def test_float16_overflow_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"big has values beyond 65504.*bfloat16"):
        write_safetensors(tmp_path, {"big": (1,)}, lambda name: np.array([1e5], np.float32), "float16", 100)


DATA = bytes(48)
LIES = {
    "announce a header of": b"\xff" * 8 + b"{}",
    "cut short or no safetensors": b"abc",
    "is not JSON": file_of(b'{"a": '),
    "stands there twice": file_of(b'{"a": {"dtype":"F32","shape":[0],"data_offsets":[0,0]}, "a": {}}'),
    "no JSON object": file_of([1]),
    "no dtype, shape and": file_of({"a": {"dtype": "F32"}}),
    "is no dtype of the format": file_of({"a": entry([4], 0, 16, "F31")}, bytes(16)),
    "F8_E4M3, which jaxlm does not read": file_of({"a": entry([4], 0, 4, "F8_E4M3")}, bytes(4)),
    "at most 16 sizes": file_of({"a": entry([-4], 0, 16)}, bytes(16)),
    "two places": file_of({"a": entry([4], 0, 16.0)}, bytes(16)),
    "takes 16": file_of({"a": entry([4], 0, 12)}, bytes(16)),
    "cut short: 4 of its": file_of({"a": entry([4], 0, 16)}, bytes(12)),
    "8 bytes after its last": file_of({"a": entry([4], 0, 16)}, bytes(24)),
    "b overlaps a": file_of({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
    "b leaves a gap after a": file_of({"a": entry([4], 0, 16), "b": entry([4], 20, 36)}, bytes(36)),
    "missing": file_of({"a": entry([10**12, 10**12], 0, 4 * 10**24)}, DATA),
    "whose name takes": file_of({"a" * 2000: entry([4], 0, 16)}, bytes(16)),
    "is nested too deeply": file_of(b'{"a":' + b"[" * 100_000),
}


@pytest.mark.parametrize("said", LIES)
def test_a_lying_file_is_refused(tmp_path, said):
    (tmp_path / SINGLE).write_bytes(LIES[said])
    with pytest.raises(JaxlmError, match=said):
        SafeTensors(tmp_path)


def shards(folder: Path) -> dict:
    for name, tensors in {"model-1.safetensors": ["scalar"], "model-2.safetensors": ["none", "model.norm"]}.items():
        safetensors.numpy.save_file({tensor: ARRAYS[tensor] for tensor in tensors}, folder / name)
    return {"scalar": "model-1.safetensors", "none": "model-2.safetensors", "model.norm": "model-2.safetensors"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scalar": "../model-1.safetensors"}, "no safetensors file of this folder"),
        ({"scalar": "/etc/passwd"}, "no safetensors file of this folder"),
        ({"scalar": "model-3.safetensors"}, "lacks model-3.safetensors"),
        ({"scalar": "model-2.safetensors"}, "where it is not|does not say that scalar"),
        ({"other": "model-1.safetensors"}, "other lies in model-1.safetensors, where it is not"),
        ({"none": 3}, 'no "weight_map"'),
    ],
)
def test_an_index_is_checked(tmp_path, change, said):
    places = shards(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    assert SafeTensors(tmp_path).shapes() == {name: SHAPES[name] for name in places}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places | change}))
    with pytest.raises(JaxlmError, match=said):
        SafeTensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    places = shards(tmp_path)
    safetensors.numpy.save_file({"scalar": ARRAYS["scalar"], "none": ARRAYS["none"]}, tmp_path / "model-1.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(JaxlmError, match="none"):
        SafeTensors(tmp_path)


def test_pickles_are_refused_with_a_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(JaxlmError, match=r"can run any code(.|\n)*save_pretrained"):
        SafeTensors(tmp_path)
