"""Rotary positions: what attention sees of them is relative."""

import jax.numpy as jnp
import numpy as np

from jaxlm.ops.positions import rope_angles, rope_frequencies, rotate, sinusoidal


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
