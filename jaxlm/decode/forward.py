"""The model over a cache: a whole prompt at once, a further chunk, or one token.

All give what the full forward pass gives, but for models whose RoPE frequencies depend on the length of a row: keys are rotated
anew, but what the layers made of earlier tokens, by the frequencies of that time, is kept. With "dynamic" that is a difference
for every token beyond the original length (up to 0.004 in log-probabilities of a tiny model). With "longrope" it would be one
where a row crosses its original length (up to 0.3): there rows are read anew (`decode.rows`), and what follows is exact.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.decode.cache import Cache, empty_cache, put, put_many
from jaxlm.decode.weights import Weights, next_logits
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.rope import angles
from jaxlm.ops.attention import MASKED, Tokens, attention, visible
from jaxlm.ops.positions import rotate

Attend = Callable[[Array, Array, Array, int], Array]


@functools.partial(jax.jit, static_argnames=("config", "layout", "slots"))
def prefill(
    weights: Weights, tokens_BL: Array, at: Tokens, count: Array, config: ModelConfig, layout: Layout, slots: int
) -> tuple[Array, Cache]:
    """Read prompts into a new cache for `slots` tokens; return the float32 logits [B, V] after their last token, and the cache.

    Prompts of unequal length are padded on the left (segment 0) up to `count` tokens; what comes after those is padding in
    every row, so that few lengths are compiled. Attention is within the rows themselves, by the configured kernel.
    """
    layout = dataclasses.replace(layout, length=None)  # rows are whole on their device, whatever axis they are else split over
    cache = empty_cache(config, layout, tokens_BL.shape[0], slots)
    at, late = _placed(at, layout), _rotates_late(config)
    rotations = angles(at, config)

    def attend(q: Array, k: Array, v: Array, layer: int) -> Array:
        kind = config.attention_kind(layer)
        _write(cache_parts, k, v, layer, cache.used, count, kind)
        if late:
            q, k = rotate(q, *rotations[kind]), rotate(k, *rotations[kind])
        return attention(
            q, k, v, at, at, scale=config.attention_scale, causal=config.causal, window=config.window(layer),
            softcap=config.attention_softcap, aligned=True, kernel=config.attention_kernel,
        )  # fmt: skip

    cache_parts = [list(cache.keys), list(cache.values)]
    x_BLD = _layers(weights, tokens_BL, at, None if late else rotations, attend, config, layout)
    return _finish(weights, x_BLD, cache_parts, _places(cache, at, count), cache.used + count, count, config, layout)


@functools.partial(jax.jit, static_argnames=("config", "layout"), donate_argnames="cache")
def extend(
    weights: Weights, tokens_BL: Array, at: Tokens, count: Array, cache: Cache, config: ModelConfig, layout: Layout,
    lengths_B: Array | None = None,
) -> tuple[Array, Cache]:  # fmt: skip
    """Append a chunk of tokens to the cache and return the float32 logits [B, V] after the last of them, and the cache.

    `at` gives positions and segments, 0 for padding; tokens after the first `count` are padding in every row and take no
    slot, but a full cache must have room for them. One token (L = 1) is written and then attended to; a longer chunk attends
    to what was there and to itself. `lengths_B`, for frequencies that depend on it, is how long rows will be once the chunks
    that belong to this one have come: as long as they are after it if not given.
    """
    layout = dataclasses.replace(layout, length=None)
    if tokens_BL.shape[1] == 1:
        return one_token(weights, tokens_BL[:, 0], at, cache, config, layout)
    at = _placed(at, layout)
    late = _rotates_late(config)
    lengths_B = jnp.max(at.positions, axis=1) + 1 if lengths_B is None else jax.reshard(lengths_B, layout.spec("batch"))
    rotations = angles(at, config, lengths_B)
    past = {kind: jax.tree.map(_joined, where, at) for kind, where in cache.places.items()}
    past_rotations = {kind: angles(where, config, lengths_B)[kind] for kind, where in past.items()} if late else {}

    def attend(q: Array, k: Array, v: Array, layer: int) -> Array:
        kind = config.attention_kind(layer)
        keys, values = (
            _joined(jnp.swapaxes(old, 1, 2), new.astype(old.dtype))
            for old, new in ((cache.keys[layer], k), (cache.values[layer], v))
        )
        _write(cache_parts, k, v, layer, cache.used, count, kind)
        if past_rotations:
            q, keys = rotate(q, *rotations[kind]), rotate(keys, *past_rotations[kind])
        return attention(
            q, keys, values, at, past[kind], scale=config.attention_scale, causal=config.causal, window=config.window(layer),
            softcap=config.attention_softcap,
        )  # fmt: skip

    cache_parts = [list(cache.keys), list(cache.values)]
    x_BLD = _layers(weights, tokens_BL, at, None if late else rotations, attend, config, layout)
    return _finish(weights, x_BLD, cache_parts, _places(cache, at, count), cache.used + count, count, config, layout)


def one_token(
    weights: Weights, token_B: Array, at: Tokens, cache: Cache, config: ModelConfig, layout: Layout
) -> tuple[Array, Cache]:
    """Append one token a row; `at` is [B, 1]. What `extend` does with one token, and a decoding loop with each."""
    at = _placed(at, layout)
    late, lengths_B = _rotates_late(config), at.positions[:, 0] + 1
    rotations = angles(at, config, lengths_B)
    past_rotations = {k: angles(where, config, lengths_B)[k] for k, where in cache.places.items()} if late else {}
    window = {"global": 0, "sliding": config.sliding_window}
    seen = {kind: visible(at, where, causal=config.causal, window=window[kind])[:, 0] for kind, where in cache.places.items()}
    new: list[tuple[Array, Array]] = []

    def attend(q: Array, k: Array, v: Array, layer: int) -> Array:
        kind, past = config.attention_kind(layer), cache.keys[layer]
        k, v = jnp.swapaxes(k, 1, 2).astype(past.dtype), jnp.swapaxes(v, 1, 2).astype(past.dtype)
        new.append((k, v))
        if past_rotations:
            q, k = rotate(q, *rotations[kind]), jnp.swapaxes(rotate(jnp.swapaxes(k, 1, 2), *rotations[kind]), 1, 2)
            past = jnp.swapaxes(rotate(jnp.swapaxes(past, 1, 2), *past_rotations[kind]), 1, 2)
        return attend_one(q, (past, k), (cache.values[layer], v), seen[kind], config, layout)

    x_BLD = _layers(weights, token_B[:, None], at, None if late else rotations, attend, config, layout)
    logits_BV = next_logits(weights, x_BLD, config, layout)
    # Written after everything was read, and the compiler must see that, or it copies the cache for every token: the slot
    # depends on a logit (nothing is above infinity).
    slot = cache.used + (logits_BV[0, 0] > jnp.inf)
    keys, values = (
        tuple(put(old, entry[i], slot, 2) for old, entry in zip(arrays, new, strict=True))
        for i, arrays in enumerate((cache.keys, cache.values))
    )
    places = {kind: jax.tree.map(lambda old, new: put(old, new, slot, 1), where, at) for kind, where in cache.places.items()}
    return logits_BV, Cache(keys, values, places, cache.used + 1)


def attend_one(
    q_B1NH: Array, keys: tuple[Array, Array], values: tuple[Array, Array], seen_BS: Array, config: ModelConfig, layout: Layout
) -> Array:
    """Return attention of one query a row to the slots that it sees and to its own token, [B, 1, N, H]; softmax is float32.

    Keys and values [B, K, S, H] are those of the past, read as they lie, and its own [B, K, 1, H]. Were its own written
    first and read with the others, a loop would copy the whole cache for every token.
    """
    batch, _, heads, size = q_B1NH.shape
    groups = keys[0].shape[1]
    # Where key-value heads are whole on every device, so are the queries here: a row of them is little.
    by_group = layout.spec("batch", "kv_heads", None, None)
    q_B1NH = jax.reshard(q_B1NH, layout.spec("batch", None, "kv_heads", None))
    q_BKGH = jax.lax.reshape(q_B1NH, (batch, groups, heads // groups, size), out_sharding=by_group)

    def logits(keys: Array) -> Array:
        product = jnp.einsum("bkgh,bksh->bkgs", q_BKGH, keys, preferred_element_type=jnp.float32) * config.attention_scale
        return config.attention_softcap * jnp.tanh(product / config.attention_softcap) if config.attention_softcap else product

    past, own = jnp.where(seen_BS[:, None, None], logits(keys[0]), MASKED), logits(keys[1])
    top = jnp.maximum(jnp.max(past, axis=-1, keepdims=True), own)
    past, own = jnp.exp(past - top), jnp.exp(own - top)
    total = jnp.sum(past, axis=-1, keepdims=True) + own
    past, own = ((x / total).astype(values[0].dtype) for x in (past, own))
    mixed = jnp.einsum("bkgs,bksh->bkgh", past, values[0]) + own * values[1]
    mixed = jax.lax.reshape(mixed, (batch, 1, heads, size), out_sharding=layout.spec("batch", None, "kv_heads", None))
    return jax.reshard(mixed, layout.spec("batch", None, "heads", None))


def _rotates_late(config: ModelConfig) -> bool:
    return config.positions == "rope" and config.rope_scaling.by_length


def _joined(old: Array, new: Array) -> Array:
    return jnp.concatenate([old, new], axis=1)


def _placed(at: Tokens, layout: Layout) -> Tokens:
    return jax.tree.map(lambda x: jax.reshard(x, layout.spec("batch", None)), at)


def _layers(
    weights: Weights, tokens_BL: Array, at: Tokens, rotations: dict | None, attend: Attend, config: ModelConfig, layout: Layout
) -> Array:
    """Return the residual stream after all layers, one after the other: scanned, each would copy its part of the cache."""
    x_BLD = transformer.embed(weights, jax.reshard(tokens_BL, layout.spec("batch", None)), at, config, layout)
    for layer, block in enumerate(weights.blocks):
        mix = functools.partial(attend, layer=layer)
        rope = rotations and rotations[config.attention_kind(layer)]
        x_BLD, _ = transformer.block(block, x_BLD, mix, rope, at.segments != 0, layer, config, layout, decoding=True)
    return x_BLD


def _write(parts: list[list[Array]], k: Array, v: Array, layer: int, used: Array, count: Array, kind: str) -> None:
    for slots, new in zip(parts, (k, v), strict=True):
        slots[layer] = put_many(slots[layer], jnp.swapaxes(new, 1, 2), used, count, 2, ring=kind == "sliding")


def _places(cache: Cache, at: Tokens, count: Array) -> dict[str, Tokens]:
    return {
        kind: jax.tree.map(
            lambda old, new, kind=kind: put_many(old, new, cache.used, count, 1, ring=kind == "sliding"), where, at
        )
        for kind, where in cache.places.items()
    }


def _finish(
    weights: Weights, x_BLD: Array, parts: list[list[Array]], places: dict[str, Tokens], used: Array, count: Array,
    config: ModelConfig, layout: Layout,
) -> tuple[Array, Cache]:  # fmt: skip
    last = jax.lax.dynamic_slice_in_dim(x_BLD, count - 1, 1, axis=1)
    return next_logits(weights, last, config, layout), Cache(tuple(parts[0]), tuple(parts[1]), places, used)
