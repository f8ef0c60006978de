"""Positions enter attention by rotating queries and keys (RoPE), or the embedding by addition (sinusoidal)."""

import jax.numpy as jnp
from jax import Array


def rope_frequencies(rotary_dim: int, theta: float) -> Array:
    """Return the float32 angles per position, [rotary_dim / 2], of rotary embeddings (Su et al. 2021, arXiv:2104.09864)."""
    return 1.0 / theta ** (jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim)


def rope_angles(positions_BL: Array, frequencies: Array) -> tuple[Array, Array]:
    """Return float32 cosines and sines, [B, L, rotary_dim / 2]."""
    angles = positions_BL.astype(jnp.float32)[..., None] * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLNH: Array, cos: Array, sin: Array) -> Array:
    """Rotate the first 2 x cos.shape[-1] features of every head, halves paired (i, i + dim / 2), in float32.

    With fewer angles than the head has pairs the rest passes unchanged (partial RoPE).
    """
    half = cos.shape[-1]
    x = x_BLNH.astype(jnp.float32)
    first, second = x[..., :half], x[..., half : 2 * half]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    if 2 * half < x.shape[-1]:
        rotated.append(x[..., 2 * half :])
    return jnp.concatenate(rotated, axis=-1).astype(x_BLNH.dtype)


def sinusoidal(positions_BL: Array, width: int) -> Array:
    """Return float32 [B, L, width] fixed embeddings, sines then cosines (Vaswani et al. 2017, arXiv:1706.03762)."""
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(width // 2, dtype=jnp.float32) / max(width // 2 - 1, 1))
    angles = positions_BL.astype(jnp.float32)[..., None] * frequencies[None, None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
