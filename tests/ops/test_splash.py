"""The TPU's kernel, interpreted, against the plain one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layout import Layout, make_mesh
from jaxlm.ops import splash
from jaxlm.ops.attention import attention, attention_and_normalizer
from jaxlm.ops.masks import MASKED, Tokens
from jaxlm.ops.self_extend import self_extend

LENGTH = 512


@pytest.fixture
def splash_here(monkeypatch):
    """Have the kernel interpreted, and see to it that no other is taken."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    made = []

    def interpreted(*args, make=splash_attention_kernel.make_splash_mqa, **kwargs):
        made.append(args)
        return make(*args, interpret=True, **kwargs)

    monkeypatch.setattr(splash_attention_kernel, "make_splash_mqa", interpreted)
    yield
    assert made, "another kernel was taken"


def inputs(rows=2, heads=4, groups=2, size=16, copies=1):
    """Return queries, keys (several of each), values, and where they stand: packed rows, cut at 100 and at 300."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((copies, rows, LENGTH, heads, size), np.float32)
    k = rng.standard_normal((copies, rows, LENGTH, groups, size), np.float32)
    v = rng.standard_normal((rows, LENGTH, groups, size), np.float32)
    positions, segments = np.tile(np.arange(LENGTH, dtype=np.int32), (rows, 1)), np.ones((rows, LENGTH), np.int32)
    for row, cut in enumerate((100, 300)[:rows]):
        positions[row, cut:] -= cut
        segments[row, cut:] = 2
    return q, k, v, Tokens(positions, segments)


def on_mesh(shape, compute, arrays, at):
    """Return what `compute(*arrays, at)` gives with arrays [B, L, heads, H] split over a mesh of this shape."""
    with jax.set_mesh(make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])):
        layout = Layout()
        placed = jax.device_put(arrays, layout.spec("batch", "length", "heads", None))
        return jax.device_get(jax.jit(compute)(*placed, jax.device_put(at, layout.spec("batch", "length"))))


@pytest.mark.parametrize(("shape", "window"), [({}, 0), ({"context": 2, "model": 2}, 0), ({"data": 2, "context": 2}, 100)])
def test_equals_plain_forwards_and_backwards(splash_here, shape, window):
    q, k, v, at = inputs()

    def run(kernel, q, k, v, at):
        def total(q, k, v):
            y = attention(q, k, v, at, at, scale=0.2, window=window, aligned=True, kernel=kernel)
            return jnp.sum(jnp.sin(y)), y

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)

    (_, expected), gradients = on_mesh({}, functools.partial(run, "plain"), (q[0], k[0], v), at)
    (_, found), found_gradients = on_mesh(shape, functools.partial(run, "splash"), (q[0], k[0], v), at)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    for a, b in zip(found_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# With four stretches of a row and the last 160 tokens left out, the device that holds the first sees no key at all. Two
# stretches are long enough to be mirrored.
@pytest.mark.parametrize(
    ("shape", "masks"),
    [
        ({}, {"beyond": 160}),
        ({"context": 4}, {"beyond": 160}),
        ({}, {"window": 300, "beyond": 20, "softcap": 2.0}),
        ({"context": 2}, {"causal": False}),
    ],
    ids=str,
)
def test_normalizers_equal_plain_ones_where_nothing_is_seen_too(splash_here, shape, masks):
    q, k, v, at = inputs()

    def run(kernel, q, k, v, at):
        return attention_and_normalizer(q, k, v, at, at, scale=0.2, aligned=True, kernel=kernel, **masks)

    expected, normalizers = on_mesh({}, functools.partial(run, "plain"), (q[0], k[0], v), at)
    found, found_normalizers = on_mesh(shape, functools.partial(run, "splash"), (q[0], k[0], v), at)
    seeing = (at.positions >= masks.get("beyond", 0))[..., None] & np.ones(normalizers.shape, bool)
    assert seeing.all() == ("beyond" not in masks)
    assert np.isfinite(found).all() and (found_normalizers[~seeing] == MASKED).all()
    np.testing.assert_allclose(found[seeing], expected[seeing], atol=2e-6)
    np.testing.assert_allclose(found_normalizers[seeing], normalizers[seeing], atol=3e-6)


def test_self_extend_in_two_passes_equals_one_softmax(splash_here):
    q, k, v, at = inputs(copies=2)

    def run(kernel, near_q, near_k, far_q, far_k, v, at):
        return self_extend(
            near_q, near_k, far_q, far_k, v, at, at, window_size=96, scale=0.3, aligned=True, kernel=kernel
        )  # fmt: skip

    arrays = (q[0], k[0], q[1], k[1], v)
    expected = on_mesh({}, functools.partial(run, "plain"), arrays, at)
    found = on_mesh({"data": 2, "context": 2, "model": 2}, functools.partial(run, "splash"), arrays, at)
    np.testing.assert_allclose(found, expected, atol=3e-6)


@pytest.mark.parametrize("sides", [(None, 0), (99, 0), (None, -160), (299, -20), (70, 70), (5, -3)], ids=str)
def test_a_band_tells_of_every_block_what_looking_at_each_pair_would(sides):
    left, right = sides
    band, distance = splash._band(LENGTH, left, right), np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    seen = (distance >= -right) & (True if left is None else distance <= left)
    for query, key in np.ndindex(LENGTH // 32, LENGTH // 64):
        block = slice(query * 32, query * 32 + 32), slice(key * 64, key * 64 + 64)
        assert band[block].any() == (seen[block].any() or (right < 0 and key == 0)), (query, key)
        assert not band[block].all()
        inside = band.mask_function(np.arange(LENGTH)[block[0], None], np.arange(LENGTH)[None, block[1]])
        np.testing.assert_array_equal(inside, seen[block])


def test_mirrored_stretches_see_as_many_keys_as_one_another():
    band = splash._band(LENGTH, None, 0, 4)
    assert sorted(band.q_sequence) == list(range(LENGTH))
    seen = (band.q_sequence.reshape(4, -1) + 1).sum(axis=1)
    assert (seen == seen[0]).all()
