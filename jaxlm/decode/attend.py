"""What a token, or a chunk of them, makes of the slots of a cache and of itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.decode.cache import Cache, in_order, oldest
from jaxlm.layout import Layout
from jaxlm.model.config import ModelConfig
from jaxlm.model.rope import slopes
from jaxlm.ops.attention import attention_and_normalizer
from jaxlm.ops.masks import MASKED, Tokens, visible
from jaxlm.ops.self_extend import merge


class Near(NamedTuple):
    """What a single query sees near, where other slots hold keys as they are seen far."""

    query: Array  # B1NH
    ring: Array  # BKRH
    own: Array  # BK1H
    seen: Array  # BS bool, over all slots
    used: Array  # () int32


def attend_one(
    q_B1NH: Array, keys: tuple[Array, Array], values: tuple[Array, Array], seen_BS: Array, config: ModelConfig, layout: Layout,
    bias: Array | None = None, near: Near | None = None,
) -> Array:  # fmt: skip
    """Return attention of one query a row to the slots that it sees and to its own token, [B, 1, N, H]; softmax is float32.

    Keys and values [B, K, S, H] are those of the past, read as they lie, and its own [B, K, 1, H]. Were its own written
    first and read with the others, a loop would copy the whole cache for every token. `bias` [B, K, G, S] is added to the
    past's logits. With `near`, the logits of its keys take the places of those that the slots give; values are read once.
    """
    batch, _, heads, size = q_B1NH.shape
    groups = keys[0].shape[1]
    # Where key-value heads are whole on every device, so are the queries here: a row of them is little.
    by_group = layout.spec("batch", "kv_heads", None, None)

    def logits(q_B1NH: Array, keys: Array) -> Array:
        q_B1NH = jax.reshard(q_B1NH, layout.spec("batch", None, "kv_heads", None))
        q_BKGH = jax.lax.reshape(q_B1NH, (batch, groups, heads // groups, size), out_sharding=by_group)
        product = jnp.einsum("bkgh,bksh->bkgs", q_BKGH, keys, preferred_element_type=jnp.float32) * config.attention_scale
        return config.attention_softcap * jnp.tanh(product / config.attention_softcap) if config.attention_softcap else product

    past, own = logits(q_B1NH, keys[0]), logits(q_B1NH, keys[1])
    if near is not None:
        last = in_order(logits(near.query, near.ring), near.used, 3)
        last = jax.lax.dynamic_update_slice_in_dim(past, last, oldest(near.used, near.ring.shape[2]), 3)
        past, own = jnp.where(near.seen[:, None, None], last, past), logits(near.query, near.own)
    past = jnp.where(seen_BS[:, None, None], past if bias is None else past + bias, MASKED)
    top = jnp.maximum(jnp.max(past, axis=-1, keepdims=True), own)
    past, own = jnp.exp(past - top), jnp.exp(own - top)
    total = jnp.sum(past, axis=-1, keepdims=True) + own
    past, own = ((x / total).astype(values[0].dtype) for x in (past, own))
    mixed = jnp.einsum("bkgs,bksh->bkgh", past, values[0]) + own * values[1]
    mixed = jax.lax.reshape(mixed, (batch, 1, heads, size), out_sharding=layout.spec("batch", None, "kv_heads", None))
    return jax.reshard(mixed, layout.spec("batch", None, "heads", None))


def attend_one_both_ways(
    queries: tuple[Array, Array], keys: tuple[Array, Array], v: Array, seen: dict[str, Array], cache: Cache, layer: int,
    config: ModelConfig, layout: Layout,
) -> Array:  # fmt: skip
    """Return attention of one query a row to the slots and to its own token under Self-Extend, [B, 1, N, H].

    Queries and the token's own keys are (near, far); keys and v lie as in the cache. `seen` has what is seen at all ("global"),
    and what of it is "near".
    """
    values = cache.values[layer], v
    if _no_far(cache, config):
        return attend_one(queries[0], (cache.near[layer], keys[0]), values, seen["near"], config, layout)
    near = Near(queries[0], cache.near[layer], keys[0], seen["near"], cache.used)
    return attend_one(queries[1], (cache.keys[layer], keys[1]), values, seen["global"], config, layout, near=near)


def alibi_bias(at: Tokens, where: Tokens, config: ModelConfig, layout: Layout) -> Array | None:
    """Return float32 [B, K, G, S], what ALiBi adds to the logits of the slots for one query a row; None in a model without."""
    slope_N = slopes(config)
    if slope_N is None:
        return None
    slope_KG = slope_N.reshape(config.kv_heads, -1)
    slope_KG = jax.reshard(slope_KG, layout.spec("kv_heads", None))
    distance_BS = (at.positions - where.positions).astype(jnp.float32)
    return -slope_KG[None, :, :, None] * distance_BS[:, None, None, :]


def attend_chunk_both_ways(
    queries: tuple[Array, Array], keys: tuple[Array, Array], v: Array, at: Tokens, cache: Cache, layer: int,
    config: ModelConfig,
) -> Array:  # fmt: skip
    """Return attention [B, L, N, H] of a chunk to the past and itself under Self-Extend: near and far apart, then merged.

    Queries, keys and values are the chunk's, the first two (near, far).
    """
    settings = {"scale": config.attention_scale, "softcap": config.attention_softcap}
    window, past, ring = config.self_extend.window_size, cache.places["global"], cache.near[layer]
    size = ring.shape[2]
    first = oldest(cache.used, size)

    def lately(x: Array, axis: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, first, size, axis)

    def and_own(slots: Array, own: Array) -> Array:
        return joined(jnp.swapaxes(slots, 1, 2), own.astype(slots.dtype))

    near = attention_and_normalizer(
        queries[0], and_own(in_order(ring, cache.used, 2), keys[0]), and_own(lately(cache.values[layer], 2), v), at,
        jax.tree.map(lambda x, own: joined(lately(x, 1), own), past, at), window=window, **settings,
    )  # fmt: skip
    if _no_far(cache, config):
        return near[0]
    far = attention_and_normalizer(
        queries[1], and_own(cache.keys[layer], keys[1]), and_own(cache.values[layer], v), at,
        jax.tree.map(joined, past, at), beyond=window, **settings,
    )  # fmt: skip
    return merge(near, far)


def _no_far(cache: Cache, config: ModelConfig) -> bool:
    """Return whether all that the cache has room for is near every query."""
    return cache.keys[0].shape[2] <= config.self_extend.window_size


def seen_slots(at: Tokens, where: Tokens, window: int, config: ModelConfig) -> Array:
    """Return bool [B, S]: the slots that one query a row sees."""
    return visible(at, where, causal=config.causal, window=window)[:, 0]


def joined(old: Array, new: Array) -> Array:
    """Return both one after the other along the length."""
    return jnp.concatenate([old, new], axis=1)
