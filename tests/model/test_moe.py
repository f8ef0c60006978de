"""One mixture layer: stored outputs of others, every expert computed for every token, and what training adds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import (
    BIASES,
    DROPLESS,
    KERNELS,
    REFERENCE,
    assert_near,
    draw_layer,
    inputs,
    layer_and_gradients,
    run_layer,
    sparse,
)

from jaxlm.model import moe
from jaxlm.model.layers import Mlp, activation


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


def test_rows_that_do_not_fill_groups_form_smaller_ones_in_evaluation():
    config = sparse(capacity_factor=1.0, evaluation_capacity_factor=0.5, min_capacity=1, rows_per_group=4, kernel="loop")
    p, x = draw_layer(config), inputs(rows=3)
    alone = dataclasses.replace(config, moe=dataclasses.replace(config.moe, rows_per_group=1))
    y, routed = run_layer(p, x, config)
    assert 0 < np.asarray(routed.decisions.kept).mean() < 1
    np.testing.assert_array_equal(y, run_layer(p, x, alone)[0])
