"""Positions enter attention by rotating queries and keys (RoPE) or by a bias (ALiBi), or the embedding by addition.

Frequencies are float32 angles per position, [pairs] or, where they depend on the length of a row, [B, pairs].
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array


def rope_frequencies(rotary_dim: int, theta: float) -> Array:
    """Return the float32 angles per position, [rotary_dim / 2], of rotary embeddings (Su et al. 2021, arXiv:2104.09864).

    An odd `rotary_dim` gives a pair more, as transformers has it.
    """
    return 1.0 / theta ** (jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim)


def proportional_frequencies(head_size: int, rotated: int, theta: float) -> Array:
    """Return [head_size / 2] with the wavelengths of a head rotated whole, of which only `rotated` features turn."""
    turning = 1.0 / theta ** (jnp.arange(0, rotated // 2 * 2, 2, dtype=jnp.float32) / head_size)
    return jnp.concatenate([turning, jnp.zeros(head_size // 2 - turning.shape[0])])


def ntk_base(rotary_dim: int, theta: float, factor: float) -> float:
    """Return the base that makes the longest wavelength `factor` times as long and leaves the shortest (NTK-aware RoPE)."""
    return theta * factor ** (rotary_dim / (rotary_dim - 2))


def ntk_frequencies(rotary_dim: int, theta: float, scale: Array) -> Array:
    """Return [B, rotary_dim / 2], each row's base raised as by `ntk_base` with its own `scale` [B]."""
    bases = theta * scale ** (rotary_dim / (rotary_dim - 2))
    exponents = jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim
    return 1.0 / bases[:, None] ** exponents[None, :]


def yarn_frequencies(
    rotary_dim: int, theta: float, factor: float, original_length: int, beta_fast: float, beta_slow: float, truncate: bool
) -> Array:
    """Return [rotary_dim / 2]: pairs that turn `beta_fast` times or more within the original length keep their frequency,
    those that turn `beta_slow` times or less are divided by `factor`, in between it is mixed (arXiv:2309.00071, eq. 13).

    `truncate` rounds the borders outwards to whole pairs.
    """
    low, high = (
        rotary_dim * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (beta_fast, beta_slow)
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    high += 0.001 if low == high else 0.0  # no division by zero
    ramp = jnp.clip((jnp.arange(rotary_dim // 2, dtype=jnp.float32) - low) / (high - low), 0.0, 1.0)
    plain = rope_frequencies(rotary_dim, theta)
    return plain / factor * ramp + plain * (1.0 - ramp)


def llama3_frequencies(
    rotary_dim: int, theta: float, factor: float, original_length: int, low_freq_factor: float, high_freq_factor: float
) -> Array:
    """Return [rotary_dim / 2] as Llama 3.1 does: wavelengths above original_length / low_freq_factor are stretched by
    `factor`, those below original_length / high_freq_factor kept, in between it is mixed (arXiv:2407.21783)."""
    plain = rope_frequencies(rotary_dim, theta)
    turns = original_length * plain / (2 * math.pi)  # within the original length
    kept = jnp.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return (1.0 - kept) * plain / factor + kept * plain


def longrope_frequencies(rotary_dim: int, theta: float, short: Sequence[float], long: Sequence[float], is_long: Array) -> Array:
    """Return [B, rotary_dim / 2], each pair divided by its own factor: `long` where is_long [B] (arXiv:2402.13753)."""
    factors = jnp.where(is_long[:, None], jnp.asarray(long, jnp.float32)[None], jnp.asarray(short, jnp.float32)[None])
    return rope_frequencies(rotary_dim, theta)[None] / factors


def rope_angles(positions_BL: Array, frequencies: Array, factor: float = 1.0) -> tuple[Array, Array]:
    """Return float32 cosines and sines, [B, L, pairs], both times `factor`."""
    frequencies = frequencies[None, None] if frequencies.ndim == 1 else frequencies[:, None]
    angles = positions_BL.astype(jnp.float32)[..., None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if factor == 1.0 else (factor * cos, factor * sin)


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


def alibi_slopes(heads: int) -> Array:
    """Return float32 [heads]: how much a head's attention logits fall with each position of distance (arXiv:2108.12409).

    2 ** (-8 h / heads) for h = 1.. where `heads` is a power of two; else those of the power below, then every second one of
    the power above.
    """
    below = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * h / below) for h in range(1, below + 1)]
    slopes += [2.0 ** (-4.0 * h / below) for h in range(1, 2 * (heads - below), 2)]
    return jnp.asarray(slopes, jnp.float32)


def grouped_shift(group_size: int, window_size: int) -> int:
    """Return what is added to a query's grouped position, so that grouped distances go on where the window's end."""
    return window_size - window_size // group_size
