"""Small models and batches that tests share."""

import itertools

import jax
import numpy as np

from jaxlm import param
from jaxlm.data.packing import Batch
from jaxlm.layout import MESH_AXES, Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig

VOCAB = 64
# Every way to arrange eight devices over the axes of a mesh.
ARRANGEMENTS = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=len(MESH_AXES)) if np.prod(sizes) == 8]


def tiny(**changes) -> ModelConfig:
    """Return a model that every mesh of eight devices divides."""
    fields = {
        "vocab_size": VOCAB, "num_layers": 2, "hidden_size": 32, "num_heads": 8, "num_kv_heads": 8, "head_dim": 4,
        "intermediate_size": 48, "max_length": 64, "compute_dtype": "float32", "attention_kernel": "blocked",
    }  # fmt: skip
    return ModelConfig(**(fields | changes))


def draw(config: ModelConfig, layout: Layout = Layout(), seed: int = 0, spread: float = 0.1):
    """Return parameters of which none is at its neutral initial value, so that every path matters."""
    spec = transformer.spec(config)
    params = jax.jit(lambda: param.initialize(spec, jax.random.key(seed), layout))()
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    moved = [x + jax.device_put(spread * rng.standard_normal(x.shape).astype(np.float32), x.sharding) for x in leaves]
    return jax.tree.unflatten(structure, moved)


def batch_of(rows: int = 8, length: int = 24, documents: int = 3, seed: int = 0, vocab: int = VOCAB) -> Batch:
    """Return packed rows of several documents each, the last few tokens padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, vocab, (rows, length + 1)).astype(np.int32)
    starts = np.zeros((rows, length + 1), bool)
    starts[:, 0] = True
    for row in range(rows):
        starts[row, rng.choice(np.arange(2, length - 4), documents - 1, replace=False)] = True
    real = np.broadcast_to(np.arange(length + 1) < length - 2, starts.shape)
    place = np.broadcast_to(np.arange(length + 1, dtype=np.int32), starts.shape)
    segments = np.where(real, np.cumsum(starts, axis=1), 0).astype(np.int32)
    positions = np.where(real, place - np.maximum.accumulate(np.where(starts, place, 0), axis=1), 0).astype(np.int32)
    weights = (real & ~starts)[:, 1:].astype(np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, segments[:, :-1], positions[:, :-1])


def placed(batch: Batch, layout: Layout = Layout()) -> Batch:
    """Return the batch on the current mesh."""
    return jax.device_put(batch, jax.NamedSharding(jax.sharding.get_mesh(), layout.spec("batch", "length")))


def shardings(config, layout: Layout = Layout()):
    """Return where each weight of a model lies on the current mesh."""
    shapes = param.abstract(transformer.spec(config), layout, jax.sharding.get_mesh())
    return jax.tree.map(lambda shape: shape.sharding, shapes)
