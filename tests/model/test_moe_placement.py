"""The same loss, gradients, loads and drops of a mixture of experts on one device and on every arrangement of eight."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from models import ARRANGEMENTS, batch_of, draw, placed, shardings, tiny

from jaxlm.layout import MESH_AXES, Layout, make_mesh
from jaxlm.model.moe_config import MoeConfig
from jaxlm.objective import language_model

ONE = (1, 1, 1, 1, 1)
# replica, data, expert, context, model
SOME = [(1, 8, 1, 1, 1), (1, 1, 8, 1, 1), (1, 1, 2, 2, 2), (2, 2, 2, 1, 1), (1, 2, 1, 4, 1)]
CHOICE = [(1, 1, 2, 2, 2), (2, 1, 1, 4, 1)]
LOOPED = [(1, 1, 2, 2, 2)]
BIASES = ("gate", "up", "down")
# Between them: both ways to the experts, all four losses, and every random draw of training.
MODELS = {
    "capacity": MoeConfig(
        num_experts=8, experts_per_token=2, renormalize=True, capacity_factor=0.9, min_capacity=1,
        router_z_loss=1e-2, balance_over="row", kernel="ragged",
    ),
    "dropless": MoeConfig(
        num_experts=8, every=2, experts_per_token=2, router="noisy", capacity_factor=None, importance_loss=0.1, load_loss=0.1,
        shared_experts=1, expert_dropout=0.1, kernel="ragged",
    ),
    "expert choice": MoeConfig(
        num_experts=8, every=2, experts_per_token=2, router="expert_choice", capacity_factor=1.0,
        evaluation_capacity_factor=1.0, allow_leaks=True,
        load_balancing_loss=0.0, kernel="ragged",
    ),
}  # fmt: skip
MODELS["looped"] = dataclasses.replace(MODELS["dropless"], kernel="loop")  # its many programs take long to compile


@functools.cache
def weights(name):
    """Return a model's weights on the host: drawing them on each mesh would compile that once more."""
    return jax.device_get(draw(tiny(moe=MODELS[name], biases=BIASES)))


@functools.cache
def outcome(name, shape):
    """Return the loss, its gradients and its sums for a model on a mesh of `shape`, on the host."""
    config, drawn = tiny(moe=MODELS[name], biases=BIASES), weights(name)
    sizes = dict(zip(MESH_AXES, shape, strict=True))
    with jax.set_mesh(make_mesh(sizes, jax.devices()[: np.prod(shape)])):
        params = jax.device_put(drawn, shardings(config, Layout()))

        def loss(params, batch):
            total, sums = language_model.loss(params, batch, config, Layout(), key=jax.random.key(3), record=True)
            return total / sums.tokens, sums

        (value, sums), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, placed(batch_of(length=16)))
        for weight, gradient in zip(jax.tree.leaves(params), jax.tree.leaves(gradients), strict=True):
            assert weight.sharding == gradient.sharding
        return jax.device_get((value, gradients, sums))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("capacity", s) for s in ARRANGEMENTS]
    + [("dropless", s) for s in SOME]
    + [("expert choice", s) for s in CHOICE]
    + [("looped", s) for s in LOOPED],
)
def test_an_arrangement_changes_nothing(name, shape):
    value, gradients, sums = outcome(name, ONE)
    found, found_gradients, found_sums = outcome(name, shape)
    np.testing.assert_array_equal(found_sums.decisions.experts, sums.decisions.experts)
    np.testing.assert_array_equal(found_sums.decisions.kept, sums.decisions.kept)
    for counted in ("tokens", "load", "kept"):
        np.testing.assert_array_equal(getattr(found_sums.router, counted), getattr(sums.router, counted))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found_sums, sums)
    np.testing.assert_allclose(found, value, rtol=2e-6)
    for a, b in zip(jax.tree.leaves(found_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 + 2e-6 * np.abs(b).max())


@pytest.mark.parametrize(("name", "drops"), [("capacity", True), ("dropless", False)])
def test_what_is_compared_drops_some_and_loads_all(name, drops):
    router = outcome(name, ONE)[2].router
    assert router.load.shape[-1] == 8 and router.load.min() > 0
    dropped = (router.load - router.kept).sum()
    assert dropped > 10 if drops else dropped == 0
