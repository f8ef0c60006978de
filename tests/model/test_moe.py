"""Mixture-of-experts layers against Hugging Face's, against every expert computed for every token, and in models."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import batch_of, tiny

from jaxlm import param
from jaxlm.decode.cache import empty_cache, extend
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout
from jaxlm.model import moe, transformer
from jaxlm.model.layers import Mlp, activation
from jaxlm.model.moe_config import MoeConfig
from jaxlm.objective import language_model
from jaxlm.ops.attention import Tokens
from jaxlm.run.score import row_logits
from jaxlm.train.optimizer import OptimizerConfig, make_optimizer, schedule
from jaxlm.train.step import GuardConfig, accumulated_gradients, init_state, make_train_step

REFERENCE = Path(__file__).parents[1] / "reference"
KERNELS = ("loop", "ragged")
BIASES = ("gate", "up", "down")
# Nothing of the routers in the loss, so that all gradients are the language model's.
UNWEIGHTED = {"load_balancing_loss": 0.0, "kernel": "loop"}
DROPLESS = {"capacity_factor": None, "kernel": "loop"}


def sparse(*, model=(), **settings):
    """Return a tiny model of one mixture layer."""
    return tiny(
        **(
            {
                "num_layers": 1,
                "attention_kernel": "plain",
                "moe": MoeConfig(**({"num_experts": 4, "expert_size": 16} | settings)),
            }
            | dict(model)
        )
    )


def draw(config, seed=0):
    """Return a model's weights, none at a neutral value, without compiling anything."""
    rng = np.random.default_rng(seed)

    def values(p):
        start, spread = (1.0, 0.1) if p.kind == "vector" else (0.0, 0.25)
        return jnp.asarray(start + spread * rng.standard_normal(p.shape), jnp.float32)

    return param.tree_map(values, transformer.spec(config))


def assert_near(found, expected, rtol=1e-4, atol=1e-6):
    """Compare leaf by leaf, to `atol` and as much of the leaf's largest value."""

    def near(a, b):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * (1 + np.abs(np.asarray(b)).max(initial=0)))

    jax.tree.map(near, found, expected)


# One layer.


def draw_layer(config, seed=0, spread=0.3):
    """Return weights of one mixture layer, none at a neutral value."""
    rng = np.random.default_rng(seed)
    return param.tree_map(lambda p: jnp.asarray(spread * rng.standard_normal(p.shape), jnp.float32), moe.spec(config))


def inputs(rows=2, length=12, width=32, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((rows, length, width)), jnp.float32)


@functools.partial(jax.jit, static_argnames=("config", "edit"))
def run_layer(p, x, config, key=None, real=None, edit=moe.unchanged):
    real = jnp.ones(x.shape[:2], bool) if real is None else real
    return moe.moe(p, x, real, 0, config, Layout(), edit=edit, key=key)


@functools.partial(jax.jit, static_argnames="config")
def layer_and_gradients(p, x, probe, config, key=None):
    """Return ((output, routed), gradients of sum(output x probe) for the weights and for x)."""

    def total(p, x):
        y, routed = run_layer(p, x, config, key)
        return jnp.sum(y * probe), (y, routed)

    gradients, given = jax.grad(total, (0, 1), has_aux=True)(p, x)
    return given, gradients


@functools.partial(jax.jit, static_argnames="config")
def plainly(p, x, combine_BLE, probe, config):
    """The same from every expert's output for every token, times `combine`, which no gradient passes."""

    def total(p, x):
        e = p.experts
        bias = lambda b: 0.0 if b is None else b[None, None]  # noqa: E731
        up = jnp.einsum("bld,edf->blef", x, e.up) + bias(e.up_bias)
        gate = None if e.gate is None else jnp.einsum("bld,edf->blef", x, e.gate) + bias(e.gate_bias)
        y = jnp.einsum("blef,efd->bled", activation(config.activation)(up, gate), e.down) + bias(e.down_bias)
        y = jnp.einsum("bled,ble->bld", y, combine_BLE)
        if p.shared is not None:
            s = p.shared
            bias = lambda b: 0.0 if b is None else b[None, None]  # noqa: E731
            hidden = jax.nn.silu(x @ s.gate + bias(s.gate_bias)) * (x @ s.up + bias(s.up_bias))
            y = y + hidden @ s.down + bias(s.down_bias)
        return jnp.sum(y * probe), y

    gradients, y = jax.grad(total, (0, 1), has_aux=True)(p, x)
    return y, gradients


HUGGING_FACE = {
    "switch": {
        "model": {"activation": "relu", "intermediate_size": 24},
        "num_experts": 4, "capacity_factor": 1.0, "min_capacity": 1,
    },
    "mixtral": {"model": {"intermediate_size": 24}, "num_experts": 4, "experts_per_token": 2, "renormalize": True},
    "deepseek": {
        "model": {"intermediate_size": 12}, "num_experts": 8, "experts_per_token": 3, "renormalize": True, "router": "sigmoid",
        "gate_scale": 2.5, "expert_groups": 4, "groups_per_token": 2, "shared_experts": 1,
    },
}  # fmt: skip


def from_hugging_face(name, of):
    """Return a layer's leaves from `of`, a function of their names."""
    if name == "switch":
        up, down = (np.stack([of(f"experts.expert_{e}.{part}.weight").T for e in range(4)]) for part in ("wi", "wo"))
        return moe.Moe(of("router.classifier.weight").T, None, None, Mlp(None, up, down, None, None, None), None)
    gate, up = np.split(np.swapaxes(of("experts.gate_up_proj"), 1, 2), 2, axis=-1)
    experts = Mlp(gate, up, np.swapaxes(of("experts.down_proj"), 1, 2), None, None, None)
    if name == "mixtral":
        return moe.Moe(of("gate.weight").T, None, None, experts, None)
    shared = Mlp(*(of(f"shared_experts.{part}_proj.weight").T for part in ("gate", "up", "down")), None, None, None)
    return moe.Moe(of("gate.weight").T, None, of("gate.e_score_correction_bias"), experts, shared)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_equals_transformers(name, kernel):
    stored = np.load(REFERENCE / f"moe_{name}.npz")
    fields = {"capacity_factor": None, "expert_size": 0, "kernel": kernel} | HUGGING_FACE[name]
    config = sparse(**fields | {"model": {"hidden_size": 16, "num_heads": 4, "num_kv_heads": 4} | fields["model"]})
    p = jax.tree.map(jnp.asarray, from_hugging_face(name, lambda key: stored[f"w/{key}"]))
    given, (gradients, of_x) = layer_and_gradients(p, stored["x"], stored["probe"], config, jax.random.key(0))
    y, (statistics, decisions) = given

    assert_near((y, of_x), (stored["output"], stored["g/x"]), atol=2e-6)
    bias = np.zeros(8, np.float32)  # it has no gradient, there as here
    expected = from_hugging_face(name, lambda key: bias if key.endswith("bias") else stored[f"g/{key}"])
    assert_near(gradients, expected, atol=2e-6)
    combine = np.zeros_like(stored["combine"])
    np.put_along_axis(combine, np.asarray(decisions.experts), np.where(decisions.kept, decisions.gates, 0), axis=-1)
    assert_near(combine, stored["combine"])
    np.testing.assert_array_equal(statistics.load, np.bincount(stored["experts"].ravel(), minlength=config.moe.num_experts))
    np.testing.assert_array_equal(statistics.kept, (stored["combine"] > 0).sum((0, 1)))
    if name == "switch":
        dropped = stored["dropped"]
        assert dropped.any() and (np.asarray(y)[dropped] == 0).all() and (np.asarray(of_x)[dropped] == 0).all()
        np.testing.assert_array_equal(~np.asarray(decisions.kept)[..., 0], dropped)


FULL = {"model": {"biases": BIASES}, "experts_per_token": 2, "shared_experts": 2, "router": "sigmoid", "renormalize": True}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("factor", [None, 8.0, 0.5])
def test_with_gates_biases_and_shared_experts_equals_every_expert_computed_for_every_token(kernel, factor):
    config = sparse(**FULL, kernel=kernel, capacity_factor=factor, min_capacity=1)
    p, x, probe = draw_layer(config), inputs(), inputs(seed=2)
    (y, routed), (gradients, of_x) = layer_and_gradients(p, x, probe, config, jax.random.key(0))
    kept, experts = np.asarray(routed.decisions.kept), np.asarray(routed.decisions.experts)
    assert kept.all() == (factor != 0.5)
    if factor == 0.5:
        np.testing.assert_array_equal(kept, kept_serially(experts, 3))
    combine = np.zeros((2, 12, 4), np.float32)
    np.put_along_axis(combine, experts, np.where(kept, routed.decisions.gates, 0), axis=-1)
    expected, (expected_gradients, expected_of_x) = plainly(p, x, combine, probe, config)
    assert_near(y, expected)
    assert_near(gradients.experts, expected_gradients.experts)
    assert_near(gradients.shared, expected_gradients.shared)
    # The whole gradient of x and of the router, through the gates too, is that of the other kernel.
    other = dataclasses.replace(config, moe=dataclasses.replace(config.moe, kernel="loop", capacity_factor=factor and 8.0))
    if factor != 0.5:
        _, (others, of_x_there) = layer_and_gradients(p, x, probe, other, jax.random.key(0))
        assert_near((gradients, of_x), (others, of_x_there))
        assert np.abs(np.asarray(of_x) - expected_of_x).max() > 1e-2 and np.abs(others.router).max() > 1e-2


def kept_serially(experts, capacity, num_experts=4):
    """Return which assignments get a place, row by row, tokens in order with all their choices."""
    kept = np.zeros(experts.shape, bool)
    for row in range(len(experts)):
        filled = [0] * (num_experts + 1)
        for at in np.ndindex(experts.shape[1:]):
            expert = experts[(row, *at)]
            kept[(row, *at)] = expert < num_experts and filled[expert] < capacity
            filled[expert] += 1
    return kept


@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_takes_no_place_and_gets_zero(kernel):
    config = sparse(kernel=kernel, capacity_factor=0.5, min_capacity=1)
    p, x = draw_layer(config), inputs()
    real = np.ones((2, 12), bool)
    real[0, [0, 1, 5]] = real[1, 8:] = False
    y, (statistics, decisions) = run_layer(p, x, config, jax.random.key(0), real)
    assert (np.asarray(decisions.experts)[~real] == 4).all() and (np.asarray(y)[~real] == 0).all()
    np.testing.assert_array_equal(decisions.kept, kept_serially(np.asarray(decisions.experts), 2))
    assert statistics.tokens == real.sum() and 0 < statistics.kept.sum() < statistics.load.sum() == real.sum()
    other, (same, _) = run_layer(p, jnp.where(real[..., None], x, 9.0), config, jax.random.key(0), real)
    jax.tree.map(np.testing.assert_array_equal, (y, statistics), (other, same))


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_of_a_group_compete_for_places(kernel):
    config = sparse(kernel=kernel, capacity_factor=0.5, min_capacity=1, rows_per_group=2)
    p, x = draw_layer(config), inputs(rows=4)
    y, (_, decisions) = run_layer(p, x, config, jax.random.key(0))
    experts = np.asarray(decisions.experts).reshape(2, 24, 1)
    np.testing.assert_array_equal(np.asarray(decisions.kept).reshape(2, 24, 1), kept_serially(experts, 3))
    combine = np.zeros((4, 12, 4), np.float32)
    np.put_along_axis(combine, np.asarray(decisions.experts), np.where(decisions.kept, decisions.gates, 0), axis=-1)
    assert_near(y, plainly(p, x, combine, x, config)[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_experts_choose_tokens_and_their_outputs_add_up(kernel):
    config = sparse(
        router="expert_choice", capacity_factor=1.0, evaluation_capacity_factor=1.0, min_capacity=1, allow_leaks=True,
        kernel=kernel,
    )  # fmt: skip
    p, x = draw_layer(config), inputs()
    y, (statistics, _) = run_layer(p, x, config)
    probabilities = np.asarray(jax.nn.softmax(x @ p.router))
    combine = np.zeros((2, 12, 4), np.float32)
    for row in range(2):
        for e in range(4):
            for token in np.argsort(-probabilities[row, :, e])[:3]:
                combine[row, token, e] = probabilities[row, token, e]
    assert_near(y, plainly(p, x, combine, x, config)[0])
    assert statistics.load.tolist() == statistics.kept.tolist() == [6] * 4
    visits = (combine > 0).sum(-1)
    assert visits.min() == 0 and visits.max() > 1


# Randomness of training.


def forced(site, layer, x):
    """Every token to two fixed experts, with equal gates."""
    if site == "experts":
        return jnp.broadcast_to(jnp.array([1, 3], jnp.int32).reshape(1, 1, 2), x.shape)
    return jnp.ones_like(x) if site == "gates" else x


def test_jitter_needs_a_key_and_is_on_what_the_router_reads_alone():
    plain = sparse(**DROPLESS, experts_per_token=2)
    config = sparse(**DROPLESS, experts_per_token=2, jitter=0.5)
    p, x, key = draw_layer(config), inputs(), functools.partial(jax.random.key, 5)
    still, moved = run_layer(p, x, config), run_layer(p, x, config, key())
    jax.tree.map(np.testing.assert_array_equal, still, run_layer(p, x, plain))
    jax.tree.map(np.testing.assert_array_equal, still, run_layer(p, x, plain, key()))
    assert np.abs(moved[1].decisions.gates - still[1].decisions.gates).max() > 0.01
    np.testing.assert_array_equal(run_layer(p, x, config, key(), edit=forced)[0], run_layer(p, x, config, edit=forced)[0])


def test_jitter_multiplies_each_element_by_a_uniform_draw():
    config = sparse(num_experts=32, **DROPLESS, jitter=0.25)
    p, x = draw_layer(config).replace(router=jnp.eye(32)), inputs(rows=4, length=64)
    seen = []

    def edit(site, layer, value):
        if site == "router_logits":
            jax.debug.callback(seen.append, value)
        return value

    run_layer(p, x, config, jax.random.key(0), edit=edit)
    jax.effects_barrier()
    factors = np.sort((np.asarray(seen[0]) / x).ravel())
    np.testing.assert_allclose(factors, np.linspace(0.75, 1.25, factors.size), atol=0.01)


@pytest.mark.parametrize("kernel", KERNELS)
def test_expert_dropout_needs_a_key_and_keeps_the_mean(kernel):
    settings = DROPLESS | {"kernel": kernel, "experts_per_token": 2}
    plain, config = sparse(**settings), sparse(**settings, expert_dropout=0.4)
    p, x, key = draw_layer(config), jnp.broadcast_to(inputs(1, 1), (2, 256, 32)), functools.partial(jax.random.key, 1)
    still, dropped = run_layer(p, x, config)[0], np.asarray(run_layer(p, x, config, key())[0])
    np.testing.assert_array_equal(still, run_layer(p, x, plain, key())[0])
    errors = dropped.reshape(-1, 32).std(0) / np.sqrt(2 * 256)
    assert (errors > 0).all() and (np.abs(dropped.mean((0, 1)) - still[0, 0]) < 4.5 * errors).all()


def test_both_kernels_drop_the_same_hidden_units():
    config = {
        k: sparse(kernel=k, capacity_factor=0.7, min_capacity=1, experts_per_token=2, expert_dropout=0.4) for k in KERNELS
    }
    p, x, probe = draw_layer(config["loop"]), inputs(), inputs(seed=2)
    found = [layer_and_gradients(p, x, probe, config[kernel], jax.random.key(4)) for kernel in KERNELS]
    assert_near(*found)


def test_the_noisy_router_is_noisy_in_training_alone():
    config = sparse(**DROPLESS, router="noisy", experts_per_token=2)
    p, x = draw_layer(config), inputs()
    plain = sparse(**DROPLESS, experts_per_token=2)
    jax.tree.map(np.testing.assert_array_equal, run_layer(p, x, config), run_layer(p.replace(noise=None), x, plain))
    experts = [
        np.asarray(run_layer(p, x, config, key)[1].decisions.experts) for key in (None, *jax.random.split(jax.random.key(0)))
    ]
    assert (experts[0] != experts[1]).any() and (experts[1] != experts[2]).any()


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
    for size in (7, 1, 1, 1, 1, 1, 1, 1):
        here = slice(at, at + size)
        where = Tokens(np.maximum(place[:, here], 0).astype(np.int32), (place[:, here] >= 0).astype(np.int32))
        logits, cache = extend(params, shifted[:, here], where, cache, dropping, Layout())
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


# The balancing bias.

RATE = 0.005
BIASED = {
    "router": "sigmoid", "experts_per_token": 2, "renormalize": True, "bias_update_rate": RATE, "load_balancing_loss": 0.0,
} | DROPLESS  # fmt: skip


def balanced_training(config, accumulate):
    """Return (state, step), the step as a run compiles it, with decisions."""
    spec = transformer.spec(config)
    settings = OptimizerConfig(learning_rate=1e-3, weight_decay=0.5, schedule="constant")
    optimizer = make_optimizer(settings, 100, spec)

    def loss_of(params, batch, key):
        return language_model.loss(param.fixed(params, spec), batch, config, Layout(), key=key, record=True)

    def after_update(params, sums):
        return params.replace(blocks=moe.rebalance(params.blocks, sums.router.load, config))

    rate = schedule(settings, 100)
    step = make_train_step(loss_of, optimizer, rate, GuardConfig(), accumulate, after_update)
    return jax.jit(lambda: init_state(spec, optimizer, Layout(), 0))(), jax.jit(step)


def test_the_balancing_bias_moves_by_its_rate_towards_balance_and_evens_the_load():
    config = sparse(**BIASED)
    state, step = balanced_training(config, accumulate=2)
    planted = jnp.array([[0.05, 0.0, 0.0, -0.05]])
    blocks = (state.params.blocks[0].replace(moe=state.params.blocks[0].moe.replace(bias=planted)),)
    state = state.replace(params=state.params.replace(blocks=blocks))
    batch = jax.tree.map(lambda x: x.reshape(2, 4, 24), batch_of())
    history = []
    for _ in range(25):
        before = np.asarray(state.params.blocks[0].moe.bias)
        state, metrics = step(state, batch)
        assert metrics["skipped"] == 0
        load = np.bincount(np.asarray(metrics["decisions"].experts).ravel(), minlength=5)[:4]
        expected = before + np.float32(RATE) * np.sign(load.mean() - load).astype(np.float32)
        np.testing.assert_array_equal(state.params.blocks[0].moe.bias, expected)
        history.append(float(metrics["router_load_max"][0]))
    assert history[0] > 1.7 and max(history[-5:]) < 1.35


def test_an_expert_with_the_mean_load_stays_and_every_layer_follows_its_own():
    config = sparse(
        **BIASED, every=2, model={"num_layers": 5, "attention_pattern": ("global", "sliding", "global"), "sliding_window": 4}
    )
    blocks = transformer.spec(config).blocks
    params = param.tree_map(lambda p: jnp.zeros(p.shape), blocks)
    load = jnp.array([[4.0, 4, 4, 4], [7, 1, 4, 4]])
    moved = moe.rebalance(params, load, config)
    biases = {place: np.asarray(b.moe.bias) / RATE for place, b in enumerate(moved) if b.moe is not None}
    assert {place: b.tolist() for place, b in biases.items()} == {1: [[0, 0, 0, 0]], 3: [[-1, 1, 0, 0]]}


def test_the_balancing_bias_has_no_gradient_and_chooses_without_weighing():
    config = sparse(**BIASED)
    p, x = draw_layer(config), inputs()
    _, (gradients, _) = layer_and_gradients(p, x, x, config)
    assert (np.asarray(gradients.bias) == 0).all() and np.abs(gradients.router).max() > 0
    _, (_, decisions) = run_layer(p.replace(bias=jnp.array([9.0, 0, 0, 9])), x, config)
    assert (np.sort(decisions.experts, axis=-1) == [0, 3]).all()
    scores = np.asarray(jax.nn.sigmoid(x @ p.router))
    chosen = np.take_along_axis(scores, np.asarray(decisions.experts), -1)
    assert_near(decisions.gates, chosen / chosen.sum(-1, keepdims=True))


# What a configuration makes.


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_initial_experts_do_not_depend_on_how_many_there_are(scale):
    config = sparse(num_experts=8, expert_size=48, model={"init_scale": scale, "num_layers": 2, "hidden_size": 64})
    p = param.initialize(transformer.spec(config), jax.random.key(0), Layout()).blocks[0].moe
    assert p.experts.up.shape == (2, 8, 64, 48)
    for name, std in (("up", (scale / 64) ** 0.5), ("gate", (scale / 64) ** 0.5), ("down", (scale / 48) ** 0.5 / 2)):
        np.testing.assert_allclose(
            np.asarray(getattr(p.experts, name)).std(), std, rtol=0.02
        )  # residual outputs: 1/sqrt(2 x 2)
    first = np.asarray(p.experts.up)[0]
    assert len({first[e, 0, 0] for e in range(8)}) == 8
    np.testing.assert_allclose(np.asarray(p.router).std(), 0.02, rtol=0.1)


def test_a_noisy_router_starts_at_zero():
    p = param.initialize(transformer.spec(sparse(router="noisy")), jax.random.key(0), Layout()).blocks[0].moe
    assert (np.asarray(p.router) == 0).all() and (np.asarray(p.noise) == 0).all()


@pytest.mark.parametrize(
    ("every", "layers", "pattern", "mixtures"),
    [(2, 5, 1, (1, 3)), (1, 5, 2, (0, 1, 2, 3, 4)), (3, 7, 2, (2, 5)), (4, 4, 1, (3,)), (2, 4, 1, (1, 3))],
)
def test_every_nth_layer_is_a_mixture(every, layers, pattern, mixtures):
    pattern = ("global", "sliding")[:pattern]
    model = {"num_layers": layers, "attention_pattern": pattern, "sliding_window": 4 if "sliding" in pattern else 0}
    config = sparse(**DROPLESS, every=every, model=model)
    assert config.moe_layers == mixtures
    params = param.tree_map(lambda p: np.zeros(p.shape), transformer.spec(config))
    found = {}
    for place, block in enumerate(params.blocks):
        assert (block.moe is None) != (block.mlp is None)
        repeats = len(block.attention.q)
        found |= {place + i * len(params.blocks): block.moe is not None for i in range(repeats)}
    assert found == {layer: layer in mixtures for layer in range(layers)}


@pytest.mark.parametrize("every", [1, 2])
def test_statistics_come_in_the_order_of_layers_with_one_left_over(every):
    model = {"num_layers": 5, "attention_pattern": ("global", "sliding"), "sliding_window": 4}
    config = sparse(num_experts=5, **DROPLESS, every=every, model=model)

    def edit(site, layer, x):
        return jnp.full_like(x, layer) if site == "experts" else x

    batch = batch_of(rows=1)
    run = jax.jit(lambda p, b: language_model.loss(p, b, config, Layout(), edit=edit, record=True)[1])
    sums, tokens = run(draw(config), batch), (batch.segments != 0).sum()
    expected = tokens * np.eye(5)[list(config.moe_layers)]
    np.testing.assert_array_equal(sums.router.load, expected)
    np.testing.assert_array_equal(sums.decisions.experts[:, 0, 0, 0], config.moe_layers)


@pytest.mark.parametrize("over", ["mean", "sum"])
def test_router_losses_are_weighted_averaged_or_added_over_layers(over):
    weights = {"load_balancing_loss": 0.5, "router_z_loss": 0.25, "importance_loss": 2.0, "load_loss": 3.0}
    settings = MoeConfig(num_experts=4, router="noisy", losses_over_layers=over, **weights)
    sums = language_model.Statistics(*(jnp.zeros(2) for _ in range(10)))._replace(
        tokens=jnp.array([10.0, 10]), balance=jnp.array([10.0, 20]), z=jnp.array([40.0, 0]),
        importance=jnp.array([10.0, 30]), load_variation=jnp.array([0.0, 10]),
    )  # fmt: skip
    layers = (0.5 + 1 + 2, 1 + 6 + 3)
    expected = sum(layers) / (2 if over == "mean" else 1)
    np.testing.assert_allclose(language_model.router_loss(sums, settings), expected)


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"experts_per_token": 5}, "experts-per-token 4 or fewer"),
        ({"renormalize": True}, "no-renormalize, or 2 experts per token"),
        ({"router": "expert_choice", "evaluation_capacity_factor": 1.0}, "use router = 'softmax', or --model.moe.allow-leaks"),
        ({"router": "expert_choice"}, "evaluation-capacity-factor, 1.0 for example"),
        ({"priority": "choice", "experts_per_token": 2}, "use priority = 'token', or --model.moe.allow-leaks"),
        ({"priority": "confidence"}, "use priority = 'token'"),
        ({"capacity_factor": 0.0}, "set 1.25, for example, or None"),
        ({"evaluation_capacity_factor": 0.0}, "set 1.25, for example, or None"),
        ({"load_loss": 0.1}, "choose that, or importance_loss"),
        ({"router": "sigmoid", "expert_groups": 3}, "take a divisor"),
        ({"router": "sigmoid", "expert_groups": 4, "experts_per_token": 2}, "keep between 2 and 4 groups"),
        ({"router": "sigmoid", "expert_groups": 2, "groups_per_token": 3}, "keep between 1 and 2 groups"),
        ({"expert_groups": 2}, "needs moe.router = 'sigmoid'"),
        ({"every": 2}, "set it to 1 or less"),
        ({"jitter": 1.0}, "between 0 and 0.99"),
    ],
)
def test_contradictions_are_refused_with_the_fix(fields, fix):
    with pytest.raises(ConfigError, match=fix):
        sparse(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": "choice"},  # of one choice: the same as by token
        {"priority": "choice", "experts_per_token": 2, "capacity_factor": None},  # nothing is dropped
        {"priority": "confidence", "model": {"causal": False}},
        {"num_experts": 0, "experts_per_token": 9},
    ],
)
def test_what_only_looks_contradictory_is_allowed(fields):
    sparse(**fields)


def test_experts_that_do_not_divide_over_the_mesh_are_refused():
    spec = transformer.spec(sparse(num_experts=6))
    param.check_layout(spec, Layout(), {"data": 1, "expert": 2, "model": 1})
    with pytest.raises(ConfigError, match=r"moe\.num_experts = 6 cannot be split evenly over mesh\.expert = 4.*--mesh\.expert"):
        param.check_layout(spec, Layout(), {"data": 1, "expert": 4, "model": 1})
    param.check_layout(spec, Layout(expert=None), {"data": 1, "expert": 4, "model": 1})
