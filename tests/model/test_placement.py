"""The same loss and gradients on one device and on every data x model arrangement of eight."""

import jax
import numpy as np
import pytest
from models import batch_of, draw, placed, tiny

from jaxlm.layout import Layout, make_mesh
from jaxlm.objective import language_model

MODELS = {
    "grouped-query": ({"num_kv_heads": 4, "logit_softcap": 3.0}, (8, 4, 2, 1)),
    "multi-query, untied, biases": (
        {"num_kv_heads": 1, "tie_embeddings": False, "biases": ("q", "k", "v", "o", "up", "down"), "qk_norm": "all",
         "attention_pattern": ("sliding", "global"), "sliding_window": 6, "norm_position": "both"}, (8, 4, 2, 1),
    ),
}  # fmt: skip


def loss_and_gradients(config, layout, shape):
    mesh = make_mesh(shape, jax.devices()[: shape["data"] * shape["model"]])
    with jax.set_mesh(mesh):
        params = draw(config, layout)

        def loss(params, batch):
            total, sums = language_model.loss(params, batch, config, layout, z_loss=1e-3)
            return total / sums.tokens

        value, gradients = jax.jit(jax.value_and_grad(loss))(params, placed(batch_of(), layout))
        for weight, gradient in zip(jax.tree.leaves(params), jax.tree.leaves(gradients), strict=True):
            assert weight.sharding == gradient.sharding
        return float(value), jax.device_get(gradients)


@pytest.mark.parametrize("name", MODELS)
def test_every_factorisation_of_eight(name):
    fields, data_sizes = MODELS[name]
    config = tiny(**fields)
    value, gradients = loss_and_gradients(config, Layout(), {"data": 1, "model": 1})
    for data in data_sizes:
        shape = {"data": data, "model": 8 // data}
        layout = Layout() if config.kv_heads % shape["model"] == 0 else Layout(kv_heads=None)
        found, found_gradients = loss_and_gradients(config, layout, shape)
        np.testing.assert_allclose(found, value, rtol=2e-6)
        for a, b in zip(jax.tree.leaves(found_gradients), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 + 2e-6 * np.abs(b).max())
