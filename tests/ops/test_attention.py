"""Attention against a NumPy loop, and every kernel that runs here against the plain one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layout import Layout, make_mesh
from jaxlm.ops import attention_kernels
from jaxlm.ops.attention import attention, attention_and_normalizer
from jaxlm.ops.masks import MASKED, Tokens


def by_hand(q, k, v, query, key, scale, causal, window, softcap, beyond=0, slopes=None):
    """Attention one query at a time, in float64, and the logarithm of its softmax's divisor."""
    out, normalizer = np.zeros(q.shape), np.full(q.shape[:3], MASKED)
    share = q.shape[2] // k.shape[2]
    for b, i, n in np.ndindex(q.shape[:3]):
        seen = []
        for j in range(k.shape[1]):
            distance = int(query.positions[b, i]) - int(key.positions[b, j])
            ok = distance >= 0 if causal else True
            ok &= not window or (distance < window if causal else abs(distance) < window)
            ok &= not beyond or (distance >= beyond if causal else abs(distance) >= beyond)
            ok &= query.segments is None or query.segments[b, i] == key.segments[b, j]
            if ok:
                seen.append(j)
        if not seen:
            continue
        logits = np.array([scale * q[b, i, n] @ k[b, j, n // share] for j in seen])
        if softcap:
            logits = softcap * np.tanh(logits / softcap)
        if slopes is not None:
            logits -= slopes[n] * np.abs(query.positions[b, i] - key.positions[b, seen])
        normalizer[b, i, n] = logits.max() + np.log(np.exp(logits - logits.max()).sum())
        weights = np.exp(logits - logits.max())
        out[b, i, n] = (weights / weights.sum()) @ np.stack([v[b, j, n // share] for j in seen])
    return out, normalizer


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
    {"beyond": 6},
    {"slopes": np.array([0.5, 0.25, 0.125, 0.0625], np.float32), "window": 9},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_a_loop(case, groups):
    q, k, v, at = inputs(groups=groups)
    options = {"scale": 0.3, "causal": True, "window": 0, "softcap": 0.0} | case
    found = attention_and_normalizer(*map(jnp.asarray, (q, k, v)), at, at, aligned=True, **options)
    expected = by_hand(q, k, v, at, at, **options)
    seeing = expected[1] > MASKED
    np.testing.assert_allclose(np.asarray(found[0])[seeing], expected[0][seeing], atol=2e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("stretches", [16, 3, 1], ids="{} stretches".format)
@pytest.mark.parametrize("case", [*CASES[:4], *CASES[6:]], ids=str)
def test_blocks_equal_the_whole_forwards_and_backwards(case, stretches, monkeypatch):
    """In stretches of a block, of several with one that is not full, and all blocks in one."""
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 8)
    monkeypatch.setattr(attention_kernels, "STRETCHES", stretches)
    q, k, v, at = inputs()
    options = {"scale": 0.3, "aligned": True} | case
    # What a query that sees nothing gives may differ.
    seeing = (at.positions >= options.get("beyond", 0))[:, :, None, None]

    def total(kernel):
        def run(q, k, v):
            mixed, normalizer = attention_and_normalizer(q, k, v, at, at, kernel=kernel, **options)
            return jnp.where(seeing, mixed**2, 0.0).sum() + jnp.sin(jnp.where(seeing[..., 0], normalizer, 0.0)).sum()

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2)))(q, k, v)

    for a, b in zip(jax.tree.leaves(total("blocked")), jax.tree.leaves(total("plain")), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("window", [0, 64])
def test_memory_of_training_is_linear_in_the_length(window, monkeypatch):
    """Whatever the layer around it keeps: a policy must not reach into the blocks and keep their logits."""
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 8)

    def temporary(length):
        shapes = [jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)] * 3
        at = Tokens(jnp.arange(length)[None])
        layer = functools.partial(attention, query=at, key=at, scale=0.3, aligned=True, kernel="blocked", window=window)
        kept = jax.checkpoint(layer, policy=jax.checkpoint_policies.everything_saveable)
        total = jax.grad(lambda *inputs: jnp.sum(kept(*inputs) ** 2), argnums=(0, 1, 2))
        return jax.jit(total).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary(1024) < 2.5 * temporary(512)


def test_a_query_that_sees_nothing_gives_numbers():
    q, k, v, _ = inputs(packed=False)
    positions = np.broadcast_to(np.arange(q.shape[1], dtype=np.int32), q.shape[:2])
    apart = Tokens(positions, np.zeros(q.shape[:2], np.int32)), Tokens(positions, np.ones(q.shape[:2], np.int32))
    assert np.isfinite(attention(q, k, v, *apart, scale=1.0)).all()


def test_a_stretch_of_a_row_on_each_device_equals_the_whole(monkeypatch):
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 8)
    q, k, v, at = inputs(length=80)
    for options in ({}, {"window": 11}, {"beyond": 11}):
        expected = attention_and_normalizer(q, k, v, at, at, scale=0.3, aligned=True, **options)
        with jax.set_mesh(make_mesh({"context": 2, "model": 2}, jax.devices()[:4])):
            layout = Layout()
            places = layout.spec("batch", "length", "heads", None), layout.spec("batch", "length")
            placed = jax.device_put((q, k, v), places[0])
            tokens = jax.device_put(at, places[1])
            found = jax.jit(lambda *x, o=options: attention_and_normalizer(*x, scale=0.3, aligned=True, kernel="blocked", **o))(
                *placed, tokens, tokens
            )
            seeing = np.asarray(expected[1]) > MASKED / 2
            np.testing.assert_allclose(np.asarray(found[0])[seeing], np.asarray(expected[0])[seeing], atol=2e-6)
            np.testing.assert_allclose(found[1], expected[1], rtol=2e-6, atol=2e-6)


def test_order_of_cached_keys_does_not_matter():
    q, k, v, at = inputs(packed=False)
    order = np.random.default_rng(1).permutation(k.shape[1])
    shuffled = Tokens(at.positions[:, order], at.segments[:, order])
    straight = attention(q, k, v, at, at, scale=0.3, window=6)
    np.testing.assert_allclose(attention(q, k[:, order], v[:, order], at, shuffled, scale=0.3, window=6), straight, atol=1e-6)
