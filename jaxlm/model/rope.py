"""What a model's configuration says of positions, as arrays: rotary angles, grouped ones, slopes."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxlm.function_file import names_function
from jaxlm.model import functions
from jaxlm.model.config import ModelConfig
from jaxlm.ops import positions
from jaxlm.ops.masks import Tokens


@dataclasses.dataclass(frozen=True)
class OwnScheme:
    """Rotation by a function of the user's own."""

    function: str
    positions_BL: Array
    groups: int


Rotation = tuple[Array, Array] | OwnScheme


def rotated(q_BLNH: Array, k_BLKH: Array, rotation: Rotation) -> tuple[Array, Array]:
    """Return queries and keys at their positions."""
    if isinstance(rotation, OwnScheme):
        scheme, at = rotation.function, rotation.positions_BL
        q_BLNH = functions.rotate(scheme, q_BLNH, at, keys=False, groups=rotation.groups)
        return q_BLNH, functions.rotate(scheme, k_BLKH, at, keys=True, groups=1)
    return positions.rotate(q_BLNH, *rotation), positions.rotate(k_BLKH, *rotation)


class BothWays(NamedTuple):
    """Under Self-Extend, how queries and keys are rotated: near, where they are, and far, by groups."""

    near: Rotation
    query: Rotation
    key: Rotation
    longer: Array | None  # BL float32: times queries

    def queries(self, q_BLNH: Array) -> tuple[Array, Array]:
        """Return them near and far."""
        q = q_BLNH if self.longer is None else (q_BLNH * self.longer[:, :, None, None]).astype(q_BLNH.dtype)
        return positions.rotate(q, *self.near), positions.rotate(q, *self.query)

    def keys(self, k_BLKH: Array) -> tuple[Array, Array]:
        """Return them near and far."""
        return positions.rotate(k_BLKH, *self.near), positions.rotate(k_BLKH, *self.key)


def angles(at: Tokens, config: ModelConfig, lengths_B: Array | None = None) -> dict[str, Rotation] | None:
    """Return cosines and sines [B, L, pairs] for each kind of attention that the model has; None for a model without.

    `lengths_B` is how long each row is, where frequencies depend on it: its greatest position + 1 if not given.
    """
    if names_function(config.positions):
        scheme = OwnScheme(config.positions, at.positions, config.num_heads // config.kv_heads)
        return dict.fromkeys(config.attention_pattern, scheme)
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


def grouped_angles(at: Tokens, config: ModelConfig) -> tuple[Rotation, Rotation]:
    """Return cosines and sines [B, L, pairs] for queries and for keys that are far from one another, under Self-Extend.

    Positions are divided by the group size, whole; queries are moved on, so that a key just beyond the window is seen just
    beyond it. A key's angles depend on its own position alone, so that a cache holds it rotated once for all.
    """
    extend, each = config.self_extend, frequencies(config)
    amplitude = config.rope_scaling.amplitude(config.rope_scaling.original_length or config.max_length)
    groups = at.positions // extend.group_size
    shift = positions.grouped_shift(extend.group_size, extend.window_size)
    return positions.rope_angles(groups + shift, each, amplitude), positions.rope_angles(groups, each, amplitude)


def log_length_scale(at: Tokens, config: ModelConfig) -> Array | None:
    """Return float32 [B, L], what Self-Extend multiplies queries by before they are rotated; None where it leaves them."""
    base = config.self_extend.scale_base
    if not base:
        return None
    return jnp.maximum(jnp.log(at.positions.astype(jnp.float32) + 1.0) / math.log(base), 1.0)


def both_ways(at: Tokens, config: ModelConfig) -> BothWays | None:
    """Return how queries and keys of these tokens are rotated under Self-Extend; None in a model without."""
    if not config.self_extend.on:
        return None
    return BothWays(angles(at, config)["global"], *grouped_angles(at, config), log_length_scale(at, config))


def slopes(config: ModelConfig) -> Array | None:
    """Return float32 [N], how fast each head's attention falls with distance; None for a model without ALiBi."""
    return positions.alibi_slopes(config.num_heads) if config.positions == "alibi" else None


def frequencies(config: ModelConfig, lengths_B: Array | None = None) -> Array:
    """Return the angles per position of layers without a base of their own, [pairs] or, by length, [B, pairs]."""
    scaling, dim, theta = config.rope_scaling, config.rotary_dim, config.rope_theta
    original = scaling.original_length or config.max_length
    if scaling.kind == "linear":
        return positions.rope_frequencies(dim, theta) / scaling.factor
    if scaling.kind == "ntk":
        return positions.rope_frequencies(dim, positions.ntk_base(dim, theta, scaling.factor))
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
