"""Rows of unequal length into a new cache, and when they must be read anew."""

from collections.abc import Sequence

import numpy as np
from jax import Array

from jaxlm.decode.cache import Cache
from jaxlm.decode.forward import prefill
from jaxlm.decode.weights import Weights
from jaxlm.layout import Layout
from jaxlm.model.config import ModelConfig
from jaxlm.ops.masks import Tokens

# Prompts are padded to multiples of this, and caches too, so that few shapes are compiled.
ROUNDING = 64


def read_rows(
    weights: Weights, rows: Sequence[Sequence[int]], slots: int, config: ModelConfig, layout: Layout
) -> tuple[Array, Cache]:
    """Return the float32 logits [B, V] after rows of tokens, and a cache for `slots` tokens that holds them.

    Rows of unequal length are padded on the left, and positions count real tokens.
    """
    longest = max(map(len, rows))
    tokens, segments = np.zeros((2, len(rows), rounded(longest, ROUNDING)), np.int32)
    for number, row in enumerate(rows):
        here = slice(longest - len(row), longest)
        tokens[number, here], segments[number, here] = row, 1
    positions = np.where(segments, np.cumsum(segments, axis=1) - 1, 0).astype(np.int32)
    return prefill(weights, tokens, Tokens(positions, segments), np.int32(longest), config, layout, slots)


def turning_points(rows: Sequence[Sequence[int]], config: ModelConfig) -> set[int]:
    """Return after how many new tokens one of the rows must be read anew.

    LongRoPE (Ding et al. 2024, arXiv:2402.13753) has other frequencies as soon as a row is longer than the original length,
    for all of its tokens: what layers made of earlier ones is of no use from there on.
    """
    scaling = config.rope_scaling
    if config.positions != "rope" or scaling.kind != "longrope":
        return set()
    original = scaling.original_length or config.max_length
    return {original + 1 - len(row) for row in rows if len(row) <= original}


def rounded(number: int, to: int) -> int:
    """Return the least multiple of `to` that is not below `number`."""
    return -(-number // to) * to
