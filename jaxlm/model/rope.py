"""The rotary angles of a model's layers, by the values of its configuration."""

import jax.numpy as jnp
from jax import Array

from jaxlm.model.config import ModelConfig
from jaxlm.ops import positions
from jaxlm.ops.attention import Tokens

Rotation = tuple[Array, Array]


def angles(at: Tokens, config: ModelConfig, lengths_B: Array | None = None) -> dict[str, Rotation] | None:
    """Return cosines and sines [B, L, pairs] for each kind of attention that the model has; None for a model without RoPE.

    `lengths_B` is how long each row is, where frequencies depend on it: its greatest position + 1 if not given.
    """
    if config.positions != "rope":
        return None
    scaling, kinds = config.rope_scaling, set(config.attention_pattern)
    by_kind = {}
    if "global" in kinds or not config.sliding_rope_theta:
        if scaling.by_length and lengths_B is None:
            lengths_B = jnp.max(at.positions, axis=1) + 1
        amplitude = scaling.amplitude(scaling.original_length or config.max_length)
        scaled = positions.rope_angles(at.positions, frequencies(config, lengths_B), amplitude)
        by_kind = dict.fromkeys(kinds, scaled)
    if "sliding" in kinds and config.sliding_rope_theta:
        plain = positions.rope_frequencies(config.rotary_dim, config.sliding_rope_theta)
        by_kind["sliding"] = positions.rope_angles(at.positions, plain)
    return by_kind


def frequencies(config: ModelConfig, lengths_B: Array | None = None) -> Array:
    """Return the angles per position of layers without a base of their own, [pairs] or, by length, [B, pairs]."""
    scaling, dim, theta = config.rope_scaling, config.rotary_dim, config.rope_theta
    original = scaling.original_length or config.max_length
    if scaling.kind == "linear":
        return positions.rope_frequencies(dim, theta) / scaling.factor
    if scaling.kind == "dynamic":
        beyond = jnp.maximum(lengths_B.astype(jnp.float32) / original, 1.0)
        return positions.ntk_frequencies(dim, theta, scaling.factor * beyond - (scaling.factor - 1.0))
    if scaling.kind == "yarn":
        return positions.yarn_frequencies(
            dim, theta, scaling.factor, original, scaling.beta_fast, scaling.beta_slow, scaling.truncate
        )
    if scaling.kind == "longrope":
        return positions.longrope_frequencies(dim, theta, scaling.short_factor, scaling.long_factor, lengths_B > original)
    if scaling.kind == "llama3":
        return positions.llama3_frequencies(
            dim, theta, scaling.factor, original, scaling.low_freq_factor, scaling.high_freq_factor
        )
    if scaling.kind == "proportional":
        return positions.proportional_frequencies(config.head_size, dim, theta) / scaling.factor
    return positions.rope_frequencies(dim, theta)
