"""The loop over experts against every expert computed for every token."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import experts, grouped
from jaxlm.ops.grouped import ExpertWeights

WIDTH, FFN = 4, 6


def relu(up, gate):
    return jax.nn.relu(up)


def swiglu(up, gate):
    return up * jax.nn.silu(gate)


def draw(experts, *, full, seed=0):
    """Weights, with a gate and biases where `full`."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    up, down = draw(experts, WIDTH, FFN), draw(experts, FFN, WIDTH)
    if not full:
        return ExpertWeights(up, down)
    biases = draw(experts, FFN), draw(experts, FFN), draw(experts, WIDTH)
    return ExpertWeights(up, down, draw(experts, WIDTH, FFN), *biases)


def routing(tokens, experts, k, kind, seed=1):
    """x, assignments, gates and the output's gradient."""
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.random((tokens, experts)), axis=1)[:, :k]
    if kind == "outside":
        chosen = np.where(rng.random(chosen.shape) < 0.4, rng.choice([-1, experts, experts + 7], chosen.shape), chosen)
        chosen[3] = experts
    elif kind == "one":
        chosen[:] = 2
    elif kind == "none":
        chosen[:] = -1
    x, dy = rng.standard_normal((2, tokens, WIDTH))
    gates = rng.random((tokens, k))
    return (jnp.asarray(x, jnp.float32), jnp.asarray(chosen, jnp.int32), jnp.asarray(gates, jnp.float32)), jnp.asarray(
        dy, jnp.float32
    )


def plainly(x, chosen, gates, weights, activate, scale=None):
    """Every expert for every token and assignment, then those chosen."""
    bias = lambda b: 0.0 if b is None else b[None, :, None, :]  # noqa: E731
    up = jnp.einsum("td,edf->tef", x, weights.up)[:, :, None, :] + bias(weights.up_bias)
    gate = None
    if weights.gate is not None:
        gate = jnp.einsum("td,edf->tef", x, weights.gate)[:, :, None, :] + bias(weights.gate_bias)
    hidden = activate(up, gate)  # T E 1 F
    hidden = jnp.broadcast_to(hidden, (*up.shape[:2], chosen.shape[1], FFN)) * (1.0 if scale is None else scale[:, None])
    out = jnp.einsum("tekf,efd->tekd", hidden, weights.down) + bias(weights.down_bias)
    is_chosen = chosen[:, None, :] == jnp.arange(weights.up.shape[0])[None, :, None]
    return jnp.einsum("tekd,tek,tk->td", out, is_chosen.astype(x.dtype), gates)


def check(arguments, dy, weights, activate, scale=None, tolerance=1e-5):
    x, chosen, gates = arguments

    def value(function, x, gates, weights):
        y = function(x, chosen, gates, weights, activate, scale)
        return jnp.sum(y.astype(jnp.float32) * dy), y

    run = lambda function: jax.jit(jax.value_and_grad(functools.partial(value, function), (0, 1, 2), has_aux=True))  # noqa: E731
    (_, expected), expected_grads = run(plainly)(*jax.tree.map(lambda a: a.astype(jnp.float32), (x, gates, weights)))
    (_, found), grads = run(grouped.expert_loop)(x, gates, weights)
    assert found.dtype == x.dtype
    assert jax.tree.map(lambda a: a.dtype, grads) == jax.tree.map(lambda a: a.dtype, (x, gates, weights))
    for a, b in zip(jax.tree.leaves((found, grads)), jax.tree.leaves((expected, expected_grads)), strict=True):
        scale_of = float(jnp.max(jnp.abs(b))) or 1.0
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=tolerance, atol=tolerance * scale_of)
    return found, grads


@pytest.mark.parametrize(
    ("tokens", "k", "kind", "full"),
    [
        (40, 1, "all", False),
        (40, 2, "all", True),
        (12, 4, "all", True),
        (30, 2, "outside", True),
        (60, 1, "one", True),
        (9, 2, "none", True),
    ],
)
def test_values_and_gradients(tokens, k, kind, full):
    arguments, dy = routing(tokens, 4, k, kind)
    y, (dx, dgates, grads) = check(arguments, dy, draw(4, full=full), swiglu if full else relu)
    nowhere = ~((arguments[1] >= 0) & (arguments[1] < 4))
    assert not np.any(np.asarray(y)[nowhere.all(1)]) and not np.any(np.asarray(dx)[nowhere.all(1)])
    assert not np.any(np.asarray(dgates)[nowhere])
    if kind == "one":
        assert not np.any(np.asarray(grads.up)[[0, 1, 3]])


def test_every_size_and_loads_beyond_the_largest():
    # Loads 700, 0, 9, 20, ... out of a mean of 64: blocks, no rows, and sizes in between, in no order of size.
    loads = [20, 700, 0, 9, 64, 41, 130, 60]
    (x, _, gates), dy = routing(sum(loads), 8, 1, "all")
    chosen = np.random.default_rng(2).permutation(np.repeat(np.arange(8), loads))[:, None]
    sizes = grouped._sizes(len(chosen), 8)
    assert max(loads) > sizes[-1] and len(sizes) == len(grouped.EIGHTHS)
    check((x, jnp.asarray(chosen, jnp.int32), gates), dy, draw(8, full=False), relu, tolerance=2e-5)


def test_hidden_scale():
    arguments, dy = routing(30, 4, 2, "outside")
    scale = jnp.asarray(np.random.default_rng(3).integers(0, 2, (30, 2, FFN)) * 2.0, jnp.float32)
    check(arguments, dy, draw(4, full=True), swiglu, scale)


def test_bfloat16():
    (x, chosen, gates), dy = routing(16, 4, 2, "all")
    weights = draw(4, full=True)
    check((x.astype(jnp.bfloat16), chosen, gates), dy, weights, swiglu, tolerance=3e-2)


def test_sharded_under_a_scan_of_checkpointed_layers():
    arguments, dy = routing(24, 4, 2, "outside")
    x, chosen, gates = arguments
    stacked = jax.tree.map(lambda *layers: jnp.stack(layers), draw(4, full=False), draw(4, full=False, seed=5))
    spec = jax.P()

    def loss(x, gates, stacked, layer):
        def body(x, weights):
            return x + layer(x, chosen, gates, weights), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(body), x, stacked)[0] * dy)

    def mapped(x, chosen, gates, weights):
        local = lambda *arguments: grouped.expert_loop(*arguments, relu)  # noqa: E731
        return jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False)(x, chosen, gates, weights)

    run = lambda layer: jax.jit(jax.grad(functools.partial(loss, layer=layer), (0, 1, 2)))(x, gates, stacked)  # noqa: E731
    found, expected = run(mapped), run(functools.partial(plainly, activate=relu))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(b))))


def test_megablox_takes_the_same_gradients_of_weights(monkeypatch):
    gmm = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
    calls = []

    def interpreted(*arguments, **options):
        calls.append(arguments[0].shape)
        return tgmm(*arguments, **options, interpret=True)

    tgmm = gmm.tgmm
    monkeypatch.setattr(gmm, "tgmm", interpreted)
    (x, chosen, gates), dy = routing(128, 4, 2, "outside")
    weights = draw(4, full=True)

    def loss(x, gates, weights, megablox):
        def local(x, chosen, gates, weights):
            return experts.ragged_experts(x, chosen, gates, weights, swiglu, megablox=megablox)

        mapped = jax.shard_map(local, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
        return jnp.sum(mapped(x, chosen, gates, weights) * dy)

    run = lambda megablox: jax.jit(jax.grad(functools.partial(loss, megablox=megablox), (0, 1, 2)))(x, gates, weights)  # noqa: E731
    expected, none_so_far = run(False), len(calls)
    found = run(True)
    assert none_so_far == 0 and len(calls) == 3  # gate, up, down
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(b))))
