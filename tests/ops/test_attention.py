"""Attention against a NumPy loop, and every kernel that runs here against the plain one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layout import Layout, make_mesh
from jaxlm.ops import attention as ops
from jaxlm.ops.attention import Tokens, attention


def by_hand(q, k, v, query, key, scale, causal, window, softcap):
    """Attention one query at a time, in float64."""
    out = np.zeros(q.shape)
    share = q.shape[2] // k.shape[2]
    for b, i, n in np.ndindex(q.shape[:3]):
        seen = []
        for j in range(k.shape[1]):
            distance = int(query.positions[b, i]) - int(key.positions[b, j])
            ok = distance >= 0 if causal else True
            ok &= not window or (distance < window if causal else abs(distance) < window)
            ok &= query.segments is None or query.segments[b, i] == key.segments[b, j]
            if ok:
                seen.append(j)
        logits = np.array([scale * q[b, i, n] @ k[b, j, n // share] for j in seen])
        if softcap:
            logits = softcap * np.tanh(logits / softcap)
        weights = np.exp(logits - logits.max())
        out[b, i, n] = (weights / weights.sum()) @ np.stack([v[b, j, n // share] for j in seen])
    return out


def inputs(length=37, heads=4, groups=2, size=8, rows=2, packed=True, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((rows, length, heads, size)).astype(np.float32)
    k, v = rng.standard_normal((2, rows, length, groups, size)).astype(np.float32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy()
    segments = np.ones((rows, length), np.int32)
    if packed:
        for row, cut in enumerate((length // 3, length // 2)[:rows]):
            positions[row, cut:] -= cut
            segments[row, cut:] = 2
    return q, k, v, Tokens(positions, segments)


CASES = [
    {},
    {"window": 5},
    {"softcap": 2.0},
    {"causal": False},
    {"causal": False, "window": 4},
    {"window": 3, "softcap": 1.5},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_a_loop(case, groups):
    q, k, v, at = inputs(groups=groups)
    options = {"scale": 0.3, "causal": True, "window": 0, "softcap": 0.0} | case
    found = attention(*map(jnp.asarray, (q, k, v)), at, at, aligned=True, **options)
    np.testing.assert_allclose(found, by_hand(q, k, v, at, at, **options), atol=2e-6)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_blocks_equal_the_whole_forwards_and_backwards(case, monkeypatch):
    monkeypatch.setattr(ops, "QUERY_BLOCK", 8)
    q, k, v, at = inputs()
    options = {"scale": 0.3, "aligned": True} | case

    def total(kernel):
        run = lambda q, k, v: (attention(q, k, v, at, at, kernel=kernel, **options) ** 2).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2)))(q, k, v)

    for a, b in zip(jax.tree.leaves(total("blocked")), jax.tree.leaves(total("plain")), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_a_query_that_sees_nothing_gives_numbers():
    q, k, v, _ = inputs(packed=False)
    positions = np.broadcast_to(np.arange(q.shape[1], dtype=np.int32), q.shape[:2])
    apart = Tokens(positions, np.zeros(q.shape[:2], np.int32)), Tokens(positions, np.ones(q.shape[:2], np.int32))
    assert np.isfinite(attention(q, k, v, *apart, scale=1.0)).all()


def test_order_of_cached_keys_does_not_matter():
    q, k, v, at = inputs(packed=False)
    order = np.random.default_rng(1).permutation(k.shape[1])
    shuffled = Tokens(at.positions[:, order], at.segments[:, order])
    straight = attention(q, k, v, at, at, scale=0.3, window=6)
    np.testing.assert_allclose(attention(q, k[:, order], v[:, order], at, shuffled, scale=0.3, window=6), straight, atol=1e-6)


@pytest.fixture
def splash_here(monkeypatch):
    """Have the TPU's kernel interpreted."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    interpreted = functools.partial(splash_attention_kernel.make_splash_mqa, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mqa", interpreted)


@pytest.mark.parametrize(("shape", "window"), [({}, 0), ({"context": 2, "model": 2}, 0), ({"data": 2, "context": 2}, 100)])
def test_splash_equals_plain_where_rows_are_split_too(splash_here, shape, window):
    q, k, v, at = inputs(length=512, size=32)

    def run(shape, kernel):
        with jax.set_mesh(make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])):
            layout = Layout()
            heads, rows = layout.spec("batch", "length", "heads", None), layout.spec("batch", "length")
            arrays = jax.device_put((q, k, v), heads)
            tokens = jax.device_put(at, rows)

            def total(q, k, v):
                y = attention(q, k, v, tokens, tokens, scale=0.2, window=window, aligned=True, kernel=kernel)
                return jnp.sum(jnp.sin(y)), y

            return jax.device_get(jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*arrays))

    (_, expected), gradients = run({}, "plain")
    (_, found), found_gradients = run(shape, "splash")
    np.testing.assert_allclose(found, expected, atol=2e-6)
    for a, b in zip(found_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
