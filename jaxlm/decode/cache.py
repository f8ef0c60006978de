"""Keys and values of the past, one pair of arrays a layer, so that decoding a token costs one token."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxlm.layout import Layout
from jaxlm.model import layers, transformer
from jaxlm.model.config import ModelConfig
from jaxlm.ops.attention import Tokens, attention


@struct.dataclass
class Cache:
    """What was seen so far. Slots are filled in order, the same for every row; padding is a slot of segment 0."""

    keys: tuple[Array, ...]  # a layer each, BSKH
    values: tuple[Array, ...]  # a layer each, BSKH
    positions: Array  # BS int32
    segments: Array  # BS int32: 0 for padding and for slots not yet filled
    used: Array  # () int32: slots filled


def empty_cache(config: ModelConfig, layout: Layout, batch: int, slots: int) -> Cache:
    """Return a cache of `slots` tokens for `batch` rows, placed as keys and values are."""
    spec = layout.spec("batch", None, "kv_heads", None)
    shape, dtype = (batch, slots, config.kv_heads, config.head_size), jnp.dtype(config.compute_dtype)

    def arrays() -> tuple[Array, ...]:
        return tuple(jnp.zeros(shape, dtype, out_sharding=spec) for _ in range(config.num_layers))

    def places() -> Array:
        return jnp.zeros((batch, slots), jnp.int32, out_sharding=layout.spec("batch", None))

    return Cache(arrays(), arrays(), places(), places(), jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames=("config", "layout"), donate_argnames="cache")
def extend(
    params: transformer.Transformer, tokens_BL: Array, at: Tokens, cache: Cache, config: ModelConfig, layout: Layout
) -> tuple[Array, Cache]:
    """Append tokens to the cache and return the float32 logits [B, V] after the last of them, and the cache.

    One program serves prefill (L > 1, in one piece or in chunks) and decoding (L = 1). `at` gives positions and segments,
    0 for padding. Layers are unrolled: scanned, each would copy its slice of the cache (1.3 to 1.7 times slower). Rows are
    whole on their device, whatever axis a layout splits their length over.
    """
    layout = dataclasses.replace(layout, length=None)
    tokens_BL, at = jax.tree.map(lambda x: jax.reshard(x, layout.spec("batch", None)), (tokens_BL, at))
    past = Tokens(_insert(cache.positions, at.positions, cache.used), _insert(cache.segments, at.segments, cache.used))
    rope = transformer.angles(at, config)
    x_BLD = transformer.embed(params, tokens_BL, at, config, layout)
    keys, values = list(cache.keys), list(cache.values)
    period = len(params.blocks)
    for layer in range(config.num_layers):
        weights = jax.tree.map(lambda w, i=layer // period: w[i], params.blocks[layer % period])

        def attend(q: Array, k: Array, v: Array, layer: int = layer) -> Array:
            keys[layer], values[layer] = _insert(keys[layer], k, cache.used), _insert(values[layer], v, cache.used)
            return attention(
                q, keys[layer], values[layer], at, past, scale=config.attention_scale,
                causal=config.causal, window=config.window(layer), softcap=config.attention_softcap,
            )  # fmt: skip

        x_BLD, _ = transformer.block(weights, x_BLD, attend, rope, at.segments != 0, layer, config, layout, decoding=True)
    x_BLD = layers.norm(params.final_norm, x_BLD[:, -1:], config)
    logits_BV = transformer.unembed(params, x_BLD, config, layout)[:, 0]
    return logits_BV, Cache(tuple(keys), tuple(values), *past, cache.used + tokens_BL.shape[1])


def _insert(slots: Array, new: Any, start: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), start, axis=1)
