"""Models with mixtures: what the router learns from, causality, padding, decoding, accumulation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import (
    KERNELS,
    UNWEIGHTED,
    assert_near,
    draw,
    draw_layer,
    inputs,
    run_layer,
    sparse,
)
from models import batch_of, tiny

from jaxlm.decode.cache import empty_cache
from jaxlm.decode.forward import extend
from jaxlm.decode.weights import prepare
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout
from jaxlm.model import moe, transformer
from jaxlm.model.intervention import RouterIntervention, make_edit
from jaxlm.model.moe_config import MoeConfig
from jaxlm.objective import language_model
from jaxlm.ops.masks import Tokens
from jaxlm.run.score import row_logits
from jaxlm.train.step import accumulated_gradients

# Models.


@functools.partial(jax.jit, static_argnames=("config", "training"))
def loss_and_gradients(params, batch, config, training=True):
    """Return the mean loss, the sums, and the gradients of a batch."""

    def mean(params):
        key = jax.random.key(0) if training else None
        total, sums = language_model.loss(params, batch, config, Layout(), key=key)
        return total / sums.tokens, sums

    (value, sums), gradients = jax.value_and_grad(mean, has_aux=True)(params)
    return value, sums, gradients


TASK_ONLY = {
    "softmax": {},
    "noisy": {"router": "noisy"},
    "sigmoid": {"router": "sigmoid"},
    "expert_choice": {"router": "expert_choice", "evaluation_capacity_factor": 1.0, "allow_leaks": True},
}
TASK_ONLY |= {f"{name}, 2 renormalised": r | {"experts_per_token": 2, "renormalize": True} for name, r in TASK_ONLY.items()}


@pytest.mark.parametrize("name", TASK_ONLY)
def test_the_router_learns_from_the_language_model_loss_alone(name):
    config = sparse(**UNWEIGHTED, **TASK_ONLY[name])
    params, batch = draw(config), batch_of(rows=2, length=12)
    block = params.blocks[0]

    def loss(router):
        changed = params.replace(blocks=(block.replace(moe=block.moe.replace(router=router)),))
        return language_model.loss(changed, batch, config, Layout(), key=jax.random.key(0))

    router, sums = jax.jit(jax.grad(loss, has_aux=True))(block.moe.router)
    router, visited = np.asarray(router), np.asarray(sums.router.load[0]) > 0
    assert np.isfinite(router).all() and visited.any() and (np.abs(router).max((0, 1))[visited] > 1e-6).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_expert_is_the_dense_layer(kernel):
    config = sparse(num_experts=1, expert_size=0, load_balancing_loss=0.0, capacity_factor=None, kernel=kernel)
    dense = tiny(num_layers=1, attention_kernel="plain")
    params, batch = draw(dense), batch_of(rows=2)
    block = params.blocks[0]
    router = jnp.asarray(np.random.default_rng(0).standard_normal((1, 32, 1)), jnp.float32)
    mixture = moe.Moe(router, None, None, jax.tree.map(lambda w: w[:, None], block.mlp), None)
    ours = params.replace(blocks=(block.replace(mlp=None, moe=mixture),))
    value, sums, gradients = loss_and_gradients(ours, batch, config)
    expected, _, expected_gradients = loss_and_gradients(params, batch, dense)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(sums.router.gate, sums.router.tokens)
    found = gradients.blocks[0]
    found = found.replace(mlp=jax.tree.map(lambda w: w[:, 0], found.moe.experts), moe=None)
    assert_near(gradients.replace(blocks=(found,)), expected_gradients)
    assert np.abs(gradients.blocks[0].moe.router).max() < 1e-7


TIGHT = {"capacity_factor": 0.6, "min_capacity": 1, "kernel": "loop", "num_experts": 4}
RULES = {
    "softmax": TIGHT,
    "softmax, 2": TIGHT | {"experts_per_token": 2, "renormalize": True},
    "noisy, jitter": TIGHT | {"experts_per_token": 2, "router": "noisy", "jitter": 0.1},
    "sigmoid, groups": TIGHT | {"experts_per_token": 2, "router": "sigmoid", "expert_groups": 2, "renormalize": True},
    "softmax, ragged": TIGHT | {"experts_per_token": 2, "kernel": "ragged"},
}
LEAKS = {
    "choice, 2": TIGHT | {"experts_per_token": 2, "priority": "choice", "allow_leaks": True},
    "confidence": TIGHT | {"priority": "confidence", "allow_leaks": True},
    "expert choice": TIGHT | {"router": "expert_choice", "evaluation_capacity_factor": 0.6, "allow_leaks": True},
}
LENGTH = 24


@functools.partial(jax.jit, static_argnames="config")
def logits_and_reach(params, tokens, weight_BL, config):
    """Return a training pass's logits, its drops, and the gradient of weighted logits for the embedding of each input."""

    def weighted(change):
        edit = lambda site, layer, x: x + change if site == "embed" else x  # noqa: E731
        at = Tokens(jnp.arange(LENGTH)[None])
        x, routed = transformer.forward(params, tokens, at, config, Layout(), edit=edit, key=jax.random.key(7))
        logits = transformer.unembed(params, x, config, Layout())
        kept = jnp.sum(routed.statistics.kept) / jnp.sum(routed.statistics.load)
        return jnp.sum(logits * weight_BL[..., None]), (logits, kept)

    reach, (logits, kept) = jax.grad(weighted, has_aux=True)(jnp.zeros((1, LENGTH, 32)))
    return logits[0], kept, jnp.sum(jnp.abs(reach[0]), axis=-1)


def earliest_leak(config):
    """Return whether any logits change with later tokens, drops being discontinuous, or have a gradient for them."""
    params, rng = draw(config), np.random.default_rng(0)
    tokens, leaked = rng.integers(3, 64, (1, LENGTH)).astype(np.int32), False
    for place in range(LENGTH - 1):
        here = (np.arange(LENGTH) == place).astype(np.float32)[None]
        logits, kept, reach = logits_and_reach(params, tokens, here, config)
        assert config.moe.router == "expert_choice" or 0.3 < kept < 0.95
        assert reach[place] > 0
        later = tokens.copy()
        later[0, place + 1 :] = rng.integers(3, 64, LENGTH - place - 1)
        changed = logits_and_reach(params, later, here, config)[0]
        leaked |= bool((logits[: place + 1] != changed[: place + 1]).any() or (reach[place + 1 :] != 0).any())
    return leaked


@pytest.mark.parametrize("name", RULES)
def test_no_token_sees_a_later_one_even_where_places_are_few(name):
    assert not earliest_leak(sparse(**RULES[name]))


@pytest.mark.parametrize("name", LEAKS)
def test_what_is_refused_in_a_causal_model_does_leak(name):
    assert earliest_leak(sparse(**LEAKS[name]))


def test_a_later_first_choice_evicts_a_second_choice_where_choices_come_first():
    config = sparse(
        num_experts=3, experts_per_token=2, capacity_factor=0.4, min_capacity=1, priority="choice", allow_leaks=True,
        kernel="loop",
    )  # fmt: skip
    fair = dataclasses.replace(config, moe=dataclasses.replace(config.moe, priority="token"))
    p = draw_layer(config).replace(router=jnp.eye(32, 3) * 4)
    # The first token wants 0, then 1; the second wants 1 first or, changed, 2.
    x = inputs(rows=1, length=2).at[0, :, :3].set(jnp.array([[2.0, 1, 0], [0, 2, 1]]))
    changed = x.at[0, 1, :3].set(jnp.array([1.0, 0, 2]))
    kept = {name: [np.asarray(run_layer(p, v, c, jax.random.key(0))[1].decisions.kept)[0, 0].tolist() for v in (x, changed)]
            for name, c in (("choice", config), ("token", fair))}  # fmt: skip
    assert kept == {"choice": [[True, False], [True, True]], "token": [[True, True], [True, True]]}


def test_tokens_under_padding_change_nothing():
    config = sparse(
        router="noisy", experts_per_token=2, capacity_factor=0.8, min_capacity=1, jitter=0.1, router_z_loss=0.1,
        importance_loss=0.1, load_loss=0.1, kernel="loop",
    )  # fmt: skip
    params, batch = draw(config), batch_of(rows=4)
    assert (batch.segments == 0).any()
    first = loss_and_gradients(params, batch, config)
    other = batch._replace(
        tokens=np.where(batch.segments == 0, 5, batch.tokens), targets=np.where(batch.weights == 0, 7, batch.targets)
    )
    assert (other.tokens != batch.tokens).any()
    assert_near(loss_and_gradients(params, other, config), first, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(first[1].router.tokens, (batch.segments != 0).sum())


def test_decoding_from_a_cache_never_drops_and_equals_the_full_forward():
    fields = {
        "experts_per_token": 2,
        "shared_experts": 1,
        "every": 2,
        "kernel": "loop",
        "router": "sigmoid",
        "bias_update_rate": 0.0,
    }
    model = {"num_layers": 3}
    config = sparse(**fields, model=model)
    dropping = sparse(**fields, model=model, evaluation_capacity_factor=0.5, min_capacity=1)
    params, tokens = draw(config), np.random.default_rng(0).integers(3, 64, (2, 12)).astype(np.int32)
    expected = np.asarray(row_logits(params, tokens, config, Layout()))
    assert np.abs(np.asarray(row_logits(params, tokens, dropping, Layout())) - expected).max() > 1e-3
    # The second row is shorter, padded on the left by 3.
    place = np.arange(15)[None] - np.array([[0], [3]])
    shifted = np.where(place >= 0, tokens[np.arange(2)[:, None], np.clip(place, 0, 11)], 0).astype(np.int32)
    cache, at, compared = empty_cache(dropping, Layout(), 2, 16), 0, 0
    weights = prepare(params, dropping, Layout())
    for size in (7, 1, 1, 1, 1, 1, 1, 1):
        here = slice(at, at + size)
        where = Tokens(np.maximum(place[:, here], 0).astype(np.int32), (place[:, here] >= 0).astype(np.int32))
        logits, cache = extend(weights, shifted[:, here], where, np.int32(size), cache, dropping, Layout())
        at += size
        for row, last in enumerate(place[:, at - 1]):
            if 0 <= last < 12:
                np.testing.assert_allclose(logits[row], expected[row, last], atol=2e-5)
                compared += 1
    assert compared == 6 + 8


def test_accumulated_gradients_of_the_language_model_equal_the_large_batch():
    config = sparse(**UNWEIGHTED, experts_per_token=2, capacity_factor=None)
    params, batch = draw(config), batch_of(rows=4, length=16)
    batch = batch._replace(weights=batch.weights * (np.arange(16) < np.array([[16], [4], [9], [14]])))

    def gradients(accumulate):
        loss_of = lambda params, batch, key: language_model.loss(params, batch, config, Layout(), key=key, record=True)  # noqa: E731
        parts = batch if accumulate == 1 else jax.tree.map(lambda x: x.reshape(accumulate, -1, 16), batch)
        return jax.jit(lambda p, b: accumulated_gradients(loss_of, p, b, jax.random.key(0), accumulate))(params, parts)

    whole, parts = gradients(1), gradients(4)
    assert_near(parts[0], whole[0])
    np.testing.assert_array_equal(parts[1].decisions.experts, whole[1].decisions.experts)
    for name in ("tokens", "load", "kept", "probability", "entropy", "gate", "z"):  # losses by microbatch, by design
        assert_near(getattr(parts[1].router, name), getattr(whole[1].router, name))


def test_replay_follows_the_decisions_of_each_layer_where_some_are_dense():
    config = tiny(num_layers=5, moe=MoeConfig(num_experts=4, dense_layers=(1,)))
    assert config.moe_layers == (0, 2, 3, 4)
    replayed = jnp.broadcast_to(jnp.arange(4)[:, None, None, None], (4, 2, 3, config.moe.experts_per_token))
    edit = make_edit(RouterIntervention(replay="decisions"), config, jnp.zeros((2, 3), jnp.int32), replayed=replayed)
    followed = jax.jit(lambda layer: edit("experts", layer, jnp.full(replayed.shape[1:], 9)))
    assert [np.unique(followed(layer)).tolist() for layer in config.moe_layers] == [[0], [1], [2], [3]]


CONTRADICTIONS = {
    "replay, others": ({"replay": "decisions", "knock_out": (1,)}, "take out router.knock_out"),
    "an expert out": ({"force_tokens": (5,), "force_expert": 1, "knock_out": (1,)}, "force_expert = 1 is knocked out"),
    "random, forced": ({"random": True, "force_tokens": (5,)}, "take one out"),
    "dropping nothing": ({"knock_out_by": "dropping"}, "name experts with router.knock_out"),
    "forcing nothing": ({"force_expert": 1}, "name some with router.force_tokens"),
    "where, not what": ({"layers": (0,)}, "not what"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_interventions_that_contradict_themselves_are_refused(name):
    fields, words = CONTRADICTIONS[name]
    with pytest.raises(ConfigError, match=words):
        RouterIntervention(**fields).check_model(sparse(num_experts=8))
