"""Folders of pretrained models made from the stored fixtures, and damaged files."""

import json
from pathlib import Path

import numpy as np
from families import stored
from hypothesis import strategies as st

from jaxlm.interop.safetensors_writer import write_safetensors


def fixture(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Return the configuration and the tensors of a stored Hugging Face model (tests/reference/make_hugging_face.py)."""
    arrays = stored(name)
    weights = {key[2:]: array for key, array in arrays.items() if key.startswith("w/")}
    return json.loads(str(arrays["base/config"])), weights


def write_folder(folder: Path, config: dict, weights: dict[str, np.ndarray], shard_bytes: int = 10**9) -> Path:
    """Write a Hugging Face folder; the fixtures' weights are exact in bfloat16."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {name: array.shape for name, array in weights.items()}
    write_safetensors(folder, shapes, weights.__getitem__, "bfloat16", shard_bytes)
    return folder


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Return cut, flipped and spliced variants of a file, mostly in its beginning."""
    place = st.one_of(st.integers(0, min(300, len(content) - 1)), st.integers(0, len(content) - 1))
    piece = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"9" * 20, b"-1", b"[", b'"']))

    def edited(edits: list[tuple[int, bytes, bool]], cut: int | None) -> bytes:
        out = bytearray(content)
        for at, new, insert in edits:
            out[at : at if insert else at + len(new)] = new
        return bytes(out[:cut])

    edits = st.lists(st.tuples(place, piece, st.booleans()), max_size=3)
    return st.builds(edited, edits, st.one_of(st.none(), st.integers(0, len(content))))
