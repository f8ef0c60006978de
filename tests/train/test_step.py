"""The train step: accumulation, the guard, optimizers on any mesh."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import batch_of, placed, tiny

from jaxlm import param
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout, make_mesh
from jaxlm.model import transformer
from jaxlm.model.moe_config import MoeConfig
from jaxlm.objective import language_model
from jaxlm.train.optimizer import OptimizerConfig, make_optimizer, schedule
from jaxlm.train.step import Guard, GuardConfig, abstract_state, init_state, judge, make_train_step

CONFIG = tiny(num_layers=1)
SPEC = transformer.spec(CONFIG)


def loss_of(params, batch, key):
    return language_model.loss(params, batch, CONFIG, Layout())


def trained(config=OptimizerConfig(learning_rate=1e-2), steps=3, accumulate=1, shape=(1, 1)):
    """Return the parameters and metrics after a few steps, on the host."""
    mesh = make_mesh({"data": shape[0], "model": shape[1]}, jax.devices()[: shape[0] * shape[1]])
    optimizer = make_optimizer(config, 10, SPEC)
    with jax.set_mesh(mesh):
        step = jax.jit(make_train_step(loss_of, SPEC, optimizer, schedule(config, 10), GuardConfig(), accumulate))
        state = jax.jit(lambda: init_state(SPEC, optimizer, Layout(), 0))()
        batch = placed(batch_of())
        if accumulate > 1:
            split = lambda x: np.reshape(x, (accumulate, -1, x.shape[-1]))  # noqa: E731
            place = jax.NamedSharding(mesh, jax.P(None, *Layout().spec("batch")))
            batch = jax.device_put(jax.tree.map(split, batch_of()), place)
        for _ in range(steps):
            state, metrics = step(state, batch)
        return jax.device_get((state.params, metrics))


def assert_near(found, expected, tolerance=1e-5):
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=tolerance)


@functools.cache
def plain():
    return trained(OptimizerConfig(kind="sgd", learning_rate=0.1))


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulated_gradients_equal_the_large_batch(accumulate):
    params, metrics = trained(OptimizerConfig(kind="sgd", learning_rate=0.1), accumulate=accumulate)
    assert_near(params, plain()[0])
    assert_near(metrics, plain()[1], 1e-4)


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor", "lion"])
def test_optimizers_learn_and_do_the_same_on_a_mesh(kind):
    config = OptimizerConfig(kind=kind, learning_rate=3e-3)
    params, metrics = trained(config)
    assert metrics["loss"] < float(plain()[1]["loss"]) + 0.1
    assert 0 < metrics["update_ratio"] < 0.1
    sharded, same = trained(config, shape=(4, 2))
    np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-4)
    if kind != "lion":  # the sign of a gradient near zero is noise
        assert_near(sharded, params, 2e-4)


def test_muon_makes_matrices_nearly_orthogonal_and_leaves_the_rest_to_adam():
    optimizer = make_optimizer(
        OptimizerConfig(kind="muon", weight_decay=0.0, clip=0.0, learning_rate=1.0, schedule="constant"), 10, SPEC
    )
    params = jax.jit(lambda: init_state(SPEC, optimizer, Layout(), 0))().params
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda p: jax.device_put(rng.standard_normal(p.shape).astype(np.float32), p.sharding), params)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    for name, inputs in (("q", 1), ("o", 2)):
        update = np.asarray(getattr(updates.blocks[0].attention, name))[0]
        matrix = update.reshape(np.prod(update.shape[:inputs]), -1) / (0.2 * 32**0.5)
        values = np.linalg.svd(matrix, compute_uv=False)
        assert 0.6 < values.min() and values.max() < 1.3
        given = np.asarray(getattr(gradients.blocks[0].attention, name))[0].reshape(matrix.shape)
        assert (matrix * -given).sum() > 0.7 * np.linalg.svd(given, compute_uv=False).sum() * 0.7
    np.testing.assert_allclose(np.abs(updates.embed), 1.0, rtol=1e-3)


def test_adamw_is_the_papers():
    config = OptimizerConfig(learning_rate=0.1, b1=0.8, b2=0.9, weight_decay=0.5, clip=0.0, schedule="constant")
    optimizer = make_optimizer(config, 10, SPEC)
    params = jax.jit(lambda: init_state(SPEC, optimizer, Layout(), 0))().params
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 0.3), params)
    state = optimizer.init(params)
    m = v = 0.0
    weight, scale = float(params.embed[0, 0]), 1.0
    for t in (1, 2, 3):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.8 * m + 0.2 * 0.3, 0.9 * v + 0.1 * 0.09
        move = m / (1 - 0.8**t) / ((v / (1 - 0.9**t)) ** 0.5 + 1e-8)
        weight -= 0.1 * (move + 0.5 * weight)
        scale -= 0.1 * move  # norms are not decayed
    np.testing.assert_allclose(params.embed[0, 0], weight, rtol=1e-5)
    np.testing.assert_allclose(params.final_norm.scale, scale, rtol=1e-5)


def test_muon_moves_experts_alike_on_a_mesh_that_splits_them():
    spec = transformer.spec(tiny(num_layers=1, moe=MoeConfig(num_experts=4)))
    optimizer = make_optimizer(OptimizerConfig(kind="muon", learning_rate=1e-2), 10, spec)
    moved = []
    for shape in ({}, {"data": 2, "expert": 2, "model": 2}):
        with jax.set_mesh(make_mesh(shape, jax.devices()[: 8 if shape else 1])):
            params = jax.jit(lambda: param.initialize(spec, jax.random.key(0), Layout()))()
            updates = jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p)[0])(params)
            moved.append(jax.device_get(updates))
    assert_near(moved[1], moved[0])
    assert np.abs(moved[0].blocks[0].moe.experts.up).max() > 1e-4


def test_bad_steps_change_nothing_and_are_counted():
    optimizer = make_optimizer(OptimizerConfig(), 10, SPEC)
    poison = lambda params, batch, key: (loss_of(params, batch, key)[0] * jnp.nan, loss_of(params, batch, key)[1])  # noqa: E731
    step = jax.jit(make_train_step(poison, SPEC, optimizer, schedule(OptimizerConfig(), 10), GuardConfig()))
    state = jax.jit(lambda: init_state(SPEC, optimizer, Layout(), 0))()
    after, _ = step(state, placed(batch_of()))
    after, metrics = step(after, placed(batch_of()))
    assert (metrics["skipped"], metrics["skipped_total"], metrics["skipped_in_a_row"], after.step) == (1, 2, 2, 2)
    chex.assert_trees_all_equal((after.params, after.optimizer), (state.params, state.optimizer))


def test_the_guard_waits_then_skips_spikes_and_recovers():
    config = GuardConfig(spike_factor=5.0, settle_steps=3)
    guard = Guard(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.int32(0))
    history = []
    for norm in (1.0, 40.0, 1.0, 1.0, 90.0, jnp.inf, 1.0, 2.0):
        good, guard = judge(guard, jnp.float32(2.0), jnp.float32(norm), config)
        history.append((bool(good), int(guard.streak)))
    assert history == [(True, 0), (True, 0), (True, 0), (True, 0), (False, 1), (False, 2), (True, 0), (True, 0)]
    assert (int(guard.good), int(guard.skipped)) == (6, 2) and np.isfinite(guard.mean_norm)
    assert not judge(guard, jnp.float32(jnp.nan), jnp.float32(1.0), config)[0]


def test_the_abstract_state_is_that_of_the_real_one():
    optimizer = make_optimizer(OptimizerConfig(kind="muon"), 10, SPEC)
    mesh = make_mesh({"data": 4, "model": 2})
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(SPEC, optimizer, Layout(), 0))()
        for real, abstract in zip(
            jax.tree.leaves(state), jax.tree.leaves(abstract_state(SPEC, optimizer, Layout(), mesh)), strict=True
        ):
            assert (real.shape, real.dtype) == (abstract.shape, abstract.dtype)
            assert real.sharding.is_equivalent_to(abstract.sharding, real.ndim)


SCHEDULES = {
    "cosine": [0.5, 1.0, 1.0, 0.55, 0.1],
    "linear": [0.5, 1.0, 1.0, 0.55, 0.1],
    "constant": [0.5, 1.0, 1.0, 1.0, 1.0],
    "wsd": [0.5, 1.0, 1.0, 1.0, 0.1],
    "inverse_sqrt": [0.5, 1.0, 1.0, (2 / 12) ** 0.5, (2 / 22) ** 0.5],
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules(kind):
    rate = schedule(OptimizerConfig(schedule=kind, learning_rate=1.0, warmup_steps=2, decay_fraction=0.25), 22)
    np.testing.assert_allclose([rate(s) for s in (0, 1, 2, 12, 22)], SCHEDULES[kind], rtol=1e-5)


def test_a_warmup_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match="set it below 50, for example 5"):
        schedule(OptimizerConfig(warmup_steps=50), 50)


def test_a_schedule_that_never_arrives_is_refused():
    late = OptimizerConfig(schedule="wsd", warmup_steps=60, decay_fraction=0.5)
    with pytest.raises(ConfigError, match="--optimizer.decay-fraction to 0.4 at most, or --optimizer.warmup-steps to 50"):
        schedule(late, 100)
    assert float(schedule(dataclasses.replace(late, decay_fraction=0.4, learning_rate=1.0), 100)(100)) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="set it to 50 at most"):
        schedule(OptimizerConfig(schedule="constant", warmup_steps=51), 50)
