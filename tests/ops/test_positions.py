"""Rotary positions: what attention sees of them is relative. ALiBi against stored values of transformers' Bloom."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import attention_kernels
from jaxlm.ops.attention import attention
from jaxlm.ops.masks import Tokens
from jaxlm.ops.positions import alibi_slopes, ntk_base, rope_angles, rope_frequencies, rotate, sinusoidal

with np.load(Path(__file__).parents[1] / "reference" / "alibi.npz") as arrays:
    ALIBI = dict(arrays)


def rotated(x, position, rotary_dim=8):
    at = jnp.full((1, 1), position, jnp.int32)
    return rotate(x[None, None, None], *rope_angles(at, rope_frequencies(rotary_dim, 100.0)))[0, 0, 0]


def test_products_depend_on_distance_alone():
    q, k = np.random.default_rng(0).standard_normal((2, 12)).astype(np.float32)
    for distance in (0, 1, 5):
        products = [float(rotated(q, start + distance) @ rotated(k, start)) for start in (0, 3, 40)]
        np.testing.assert_allclose(products, products[0], rtol=1e-5)


def test_partial_rotation_leaves_the_rest():
    x = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    found = rotated(x, 5)
    np.testing.assert_array_equal(found[8:], x[8:])
    assert np.abs(found[:8] - x[:8]).max() > 0.1


def test_angles_are_those_of_the_paper():
    np.testing.assert_allclose(rope_frequencies(8, 10_000.0), [10_000 ** (-2 * i / 8) for i in range(4)], rtol=1e-6)
    cos, sin = rope_angles(jnp.array([[3]]), rope_frequencies(4, 10_000.0))
    np.testing.assert_allclose(cos[0, 0], np.cos([3.0, 0.03]), rtol=1e-6)
    np.testing.assert_allclose(sin[0, 0], np.sin([3.0, 0.03]), rtol=1e-6)


def test_sinusoidal_embeddings():
    table = sinusoidal(jnp.arange(4)[None], 6)[0]
    np.testing.assert_allclose(table[0], [0, 0, 0, 1, 1, 1], atol=1e-7)
    np.testing.assert_allclose(table[2, 0], np.sin(2.0), rtol=1e-6)
    np.testing.assert_allclose(table[3, 5], np.cos(3.0 / 10_000.0), rtol=1e-6)


def test_the_base_of_ntk_grows_the_longest_wavelength_alone():
    """Heads of 16 features, four times the length: values computed by hand."""
    base = ntk_base(16, 10_000.0, 4.0)
    np.testing.assert_allclose(base, 48760.5, rtol=1e-5)
    plain, scaled = (np.asarray(rope_frequencies(16, theta)) for theta in (10_000.0, base))
    np.testing.assert_allclose(plain[[0, -1]] / scaled[[0, -1]], [1.0, 4.0], rtol=1e-6)
    assert (np.diff(plain / scaled) > 0).all()


def test_slopes_of_1_to_32_heads():
    for heads in range(1, 33):
        found = np.asarray(alibi_slopes(heads))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, ALIBI[f"slopes/{heads}"], rtol=1e-6, err_msg=str(heads))


@pytest.mark.parametrize("kernel", ["plain", "blocked"])
def test_alibi_equals_attention_of_bloom(kernel, monkeypatch):
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 8)
    q, k, v, real = (ALIBI[name] for name in ("q", "k", "v", "real"))
    at = Tokens(np.maximum(np.cumsum(real, axis=1, dtype=np.int32) - 1, 0), real)
    run = jax.jit(functools.partial(attention, scale=q.shape[-1] ** -0.5, aligned=True, kernel=kernel))
    slopes = alibi_slopes(q.shape[2])
    found, without = (np.asarray(run(q, k, v, at, at, slopes=scale * slopes)) for scale in (1, 0))
    np.testing.assert_allclose(found[real > 0], ALIBI["mixed"][real > 0], atol=2e-6, rtol=0)
    assert np.abs(without - ALIBI["mixed"])[real > 0].max() > 0.1
