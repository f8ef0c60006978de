"""Folders of pretrained models made from the stored fixtures."""

import json
from pathlib import Path

import numpy as np
from families import stored

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
