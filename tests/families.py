"""Stored Hugging Face models for tests: opened through the reader and the table of their family, and exported again."""

import functools
import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from jaxlm import param
from jaxlm.interop import table as tables
from jaxlm.interop.families.find import family_of
from jaxlm.interop.safetensors_writer import write_safetensors
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.ops.masks import Tokens

REFERENCE = Path(__file__).parent / "reference"
# Tokens of the padded rows.
SHORT = 13
FIXTURES = (
    "gemma gemma2 gemma3 gpt2 gpt_neox gpt_neox_tied llama llama_bias_tied mistral mixtral mpt olmo2 qwen2 qwen3 qwen3_moe "
    "qwen3_moe_step stablelm"
).split()


@functools.cache
def stored(name):
    """Return a fixture's arrays (tests/reference/make_hugging_face.py says which)."""
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        return dict(arrays)


def cases(*names):
    """Return (fixture, case) of these fixtures or all; the first case of each is "base"."""
    return [
        (name, case)
        for name in names or FIXTURES
        for case in sorted({key.split("/")[0] for key in stored(name)} - {"w"}, key=lambda case: (case != "base", case))
    ]


class InMemory:
    """Tensors as a checkpoint has them."""

    def __init__(self, arrays):
        self.arrays = dict(arrays)

    def shapes(self):
        return {name: array.shape for name, array in self.arrays.items()}

    def read(self, name):
        return self.arrays[name]


def tensors_of(name):
    """Return a fixture's tensors."""
    return InMemory({key[2:]: value for key, value in stored(name).items() if key.startswith("w/")})


def config_json(name, case="base"):
    """Return the config.json of a case."""
    return json.loads(str(stored(name)[f"{case}/config"]))


def opened(name, case="base", tensors=None):
    """Return the model, its family, its settled table and its tensors, all checked."""
    config, tensors = config_json(name, case), tensors or tensors_of(name)
    family = family_of(config)
    model = family.read(config).for_platform("cpu")
    model, table = family.fit(model, tensors)
    return model, family, table, tensors


def placed(model, table, tensors, layout=Layout()):
    """Return the parameters on the current mesh, each device's part read on its own."""
    shapes = param.abstract(transformer.spec(model), layout, jax.sharding.get_mesh())
    made = [
        jax.make_array_from_callback(
            shape.shape, shape.sharding, lambda index, name=name: tables.leaf_part(table, model, name, index, tensors.read)
        )
        for name, shape in param.named_leaves(shapes).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), made)


def per_layer(tree):
    """Return leaf(name, repeat) of a tree of ours, as export asks for it."""
    named = param.named_leaves(tree)
    return lambda name, repeat: np.asarray(named[name][repeat] if name.startswith("blocks.") else named[name])


def batch(tokens):
    """Return both rows, then the second one's first tokens padded on the left and on the right, and where each stands."""
    length = tokens.shape[1]
    rows, at = np.zeros((4, length), np.int32), Tokens(np.zeros((4, length), np.int32), np.zeros((4, length), np.int32))
    short = min(SHORT, length)
    for row, (place, count) in enumerate([(0, length), (0, length), (length - short, short), (0, short)]):
        where = slice(place, place + count)
        rows[row, where] = tokens[min(row, 1), :count]
        at.positions[row, where], at.segments[row, where] = np.arange(count), 1
    return rows, at


def export(name, case, folder):
    """Write a case, imported, as a folder of its family again; return the digest; with None, write nothing."""
    model, family, stored_as, tensors = opened(name, case)
    leaves = {
        leaf: tables.leaf_part(stored_as, model, leaf, (slice(None),) * len(p.shape), tensors.read)
        for leaf, p in param.named_leaves(transformer.spec(model)).items()
    }
    table = family.table(model)
    get = lambda leaf, repeat: leaves[leaf][repeat] if leaf.startswith("blocks.") else leaves[leaf]  # noqa: E731
    text = json.dumps(family.write(model), indent=2, sort_keys=True) + "\n"
    shapes = tables.their_tensors(table, model)
    if folder is not None:
        (folder / "config.json").write_text(text)
        write_safetensors(folder, shapes, lambda tensor: tables.their_tensor(table, model, tensor, get), "float32", 2**30)
    return digest(text, {tensor: tables.their_tensor(table, model, tensor, get) for tensor in shapes})


def digest(config, tensors):
    """Return the SHA-256 of a config.json's text and of all tensors by name; tests/reference/read_back.py has the same."""
    hashed = hashlib.sha256(config.encode())
    for name in sorted(tensors):
        hashed.update(f"{name} {tensors[name].shape} {tensors[name].dtype}".encode() + tensors[name].tobytes())
    return hashed.hexdigest()
