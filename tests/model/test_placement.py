"""The same loss and gradients on one device and on every arrangement of eight over all axes of a mesh."""

import functools

import jax
import numpy as np
import pytest
from models import ARRANGEMENTS, batch_of, draw, placed, shardings, tiny

from jaxlm.layout import MESH_AXES, Layout, make_mesh
from jaxlm.objective import language_model

ONE = (1, 1, 1, 1, 1)
# replica, data, expert, context, model. A dense model knows no expert: its axis is more of data.
SOME = [(1, 8, 1, 1, 1), (1, 1, 1, 8, 1), (1, 1, 1, 1, 8), (2, 1, 1, 2, 2), (1, 2, 2, 2, 1)]
MODELS = {
    "grouped-query": {"num_kv_heads": 4, "logit_softcap": 3.0, "dropout": 0.1},
    "multi-query, untied, biases": {
        "num_kv_heads": 1, "tie_embeddings": False, "biases": ("q", "k", "v", "o", "up", "down"), "qk_norm": "all",
        "attention_pattern": ("sliding", "global"), "sliding_window": 6, "norm_position": "both", "positions": "learned",
    },
}  # fmt: skip


@functools.cache
def weights(name):
    """Return a model's weights on the host: drawing them on each mesh would compile that once more."""
    return jax.device_get(draw(tiny(**MODELS[name])))


@functools.cache
def loss_and_gradients(name, shape):
    config = tiny(**MODELS[name])
    layout = Layout() if config.kv_heads % shape[-1] == 0 else Layout(kv_heads=None)
    drawn = weights(name)
    with jax.set_mesh(make_mesh(dict(zip(MESH_AXES, shape, strict=True)), jax.devices()[: np.prod(shape)])):
        params = jax.device_put(drawn, shardings(config, layout))

        def loss(params, batch):
            total, sums = language_model.loss(params, batch, config, layout, z_loss=1e-3, key=jax.random.key(3))
            return total / sums.tokens

        value, gradients = jax.jit(jax.value_and_grad(loss))(params, placed(batch_of(length=16), layout))
        for weight, gradient in zip(jax.tree.leaves(params), jax.tree.leaves(gradients), strict=True):
            assert weight.sharding == gradient.sharding
        return float(value), jax.device_get(gradients)


@pytest.mark.parametrize(
    ("name", "shape"), [("grouped-query", s) for s in ARRANGEMENTS] + [("multi-query, untied, biases", s) for s in SOME]
)
def test_an_arrangement_changes_nothing(name, shape):
    value, gradients = loss_and_gradients(name, ONE)
    found, found_gradients = loss_and_gradients(name, shape)
    np.testing.assert_allclose(found, value, rtol=2e-6)
    for a, b in zip(jax.tree.leaves(found_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 + 2e-6 * np.abs(b).max())
