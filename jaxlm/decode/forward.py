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

from jaxlm.decode.attend import (
    alibi_bias,
    attend_chunk_both_ways,
    attend_one,
    attend_one_both_ways,
    joined,
    seen_slots,
)
from jaxlm.decode.cache import Cache, empty_cache, kinds, put, put_many
from jaxlm.decode.weights import Weights, next_logits
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.functions import Rows
from jaxlm.model.rope import angles, both_ways, slopes
from jaxlm.ops.attention import attention
from jaxlm.ops.masks import Tokens
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
    mixers = {kind: transformer.mixer(at, kind, config) for kind in kinds(config)}
    rotations, ways = {kind: rotation for kind, (rotation, _) in mixers.items()}, both_ways(at, config)

    def attend(q: Array, k: Array, v: Array, layer: int) -> Array:
        kind = config.attention_kind(layer)
        near, far = (None, k) if ways is None else ways.keys(k)
        _write(cache_parts, (far, v, near), layer, cache.used, count, kind)
        if late:
            q, k = rotate(q, *rotations[kind]), rotate(k, *rotations[kind])
        return mixers[kind][1](q, k, v)

    cache_parts = [list(cache.keys), list(cache.values), list(cache.near)]
    x_BLD = _layers(weights, tokens_BL, at, None if late else rotations, attend, config, layout)
    return _finish(weights, x_BLD, cache_parts, _places(cache, at, count), cache.used + count, count, config, layout)


@functools.partial(jax.jit, static_argnames=("config", "layout"), donate_argnames="cache")
def extend(
    weights: Weights, tokens_BL: Array, at: Tokens, count: Array, cache: Cache, config: ModelConfig, layout: Layout,
    lengths_B: Array | None = None,
) -> tuple[Array, Cache]:  # fmt: skip
    """Append a chunk of tokens to the cache and return the float32 logits [B, V] after the last of them, and the cache.

    `at` gives positions and segments; tokens after the first `count` are padding (segment 0) in every row and take no slot, but
    a full cache must have room for them. Padding before that takes slots of a ring, from what lies in it. A token
    or a longer chunk attends to what was there and to itself, and is then written. `lengths_B`, for frequencies that
    depend on it, is how long rows will be once the chunks that belong to this one have come: as long as they are after it if
    not given.
    """
    layout = dataclasses.replace(layout, length=None)
    if tokens_BL.shape[1] == 1:
        return one_token(weights, tokens_BL[:, 0], at, cache, config, layout)
    at = _placed(at, layout)
    late = _rotates_late(config)
    lengths_B = jnp.max(at.positions, axis=1) + 1 if lengths_B is None else jax.reshard(lengths_B, layout.spec("batch"))
    rotations, ways = angles(at, config, lengths_B), both_ways(at, config)
    past = {kind: jax.tree.map(joined, where, at) for kind, where in cache.places.items()}
    past_rotations = {kind: angles(where, config, lengths_B)[kind] for kind, where in past.items()} if late else {}

    def attend(q: Array, k: Array, v: Array, layer: int) -> Array:
        kind = config.attention_kind(layer)
        if ways is not None:
            near, far = k_both = ways.keys(k)
            _write(cache_parts, (far, v, near), layer, cache.used, count, kind)
            return attend_chunk_both_ways(ways.queries(q), k_both, v, at, cache, layer, config)
        keys, values = (
            joined(jnp.swapaxes(old, 1, 2), new.astype(old.dtype))
            for old, new in ((cache.keys[layer], k), (cache.values[layer], v))
        )
        _write(cache_parts, (k, v), layer, cache.used, count, kind)
        if past_rotations:
            q, keys = rotate(q, *rotations[kind]), rotate(keys, *past_rotations[kind])
        return attention(
            q, keys, values, at, past[kind], scale=config.attention_scale, causal=config.causal, window=config.window(layer),
            softcap=config.attention_softcap, slopes=slopes(config),
        )  # fmt: skip

    cache_parts = [list(cache.keys), list(cache.values), list(cache.near)]
    x_BLD = _layers(weights, tokens_BL, at, None if late or ways is not None else rotations, attend, config, layout)
    return _finish(weights, x_BLD, cache_parts, _places(cache, at, count), cache.used + count, count, config, layout)


def one_token(
    weights: Weights, token_B: Array, at: Tokens, cache: Cache, config: ModelConfig, layout: Layout
) -> tuple[Array, Cache]:
    """Append one token a row; `at` is [B, 1]. What `extend` does with one token, and a decoding loop with each."""
    at = _placed(at, layout)
    late, lengths_B = _rotates_late(config), at.positions[:, 0] + 1
    rotations, ways = angles(at, config, lengths_B), both_ways(at, config)
    past_rotations = {k: angles(where, config, lengths_B)[k] for k, where in cache.places.items()} if late else {}
    window = {"global": 0, "sliding": config.sliding_window}
    seen = {kind: seen_slots(at, where, window[kind], config) for kind, where in cache.places.items()}
    biases = {kind: alibi_bias(at, where, config, layout) for kind, where in cache.places.items()}
    if ways is not None:
        seen["near"] = seen_slots(at, cache.places["global"], config.self_extend.window_size, config)
    new: list[tuple[Array, ...]] = []

    def by_head(x: Array) -> Array:
        return jnp.swapaxes(x, 1, 2).astype(cache.keys[0].dtype)

    def attend(q: Array, k: Array, v: Array, layer: int) -> Array:
        kind, past, v = config.attention_kind(layer), cache.keys[layer], by_head(v)
        if ways is not None:
            near, far = k_both = tuple(map(by_head, ways.keys(k)))
            new.append((far, v, near))
            return attend_one_both_ways(ways.queries(q), k_both, v, seen, cache, layer, config, layout)
        k = by_head(k)
        new.append((k, v))
        if past_rotations:
            q, k = rotate(q, *rotations[kind]), jnp.swapaxes(rotate(jnp.swapaxes(k, 1, 2), *rotations[kind]), 1, 2)
            past = jnp.swapaxes(rotate(jnp.swapaxes(past, 1, 2), *past_rotations[kind]), 1, 2)
        return attend_one(q, (past, k), (cache.values[layer], v), seen[kind], config, layout, biases[kind])

    x_BLD = _layers(weights, token_B[:, None], at, None if late or ways is not None else rotations, attend, config, layout)
    logits_BV = next_logits(weights, x_BLD, config, layout)
    # Written after everything was read, and the compiler must see that, or it copies the cache for every token: the slot
    # depends on a logit (nothing is above infinity).
    slot = cache.used + (logits_BV[0, 0] > jnp.inf)
    keys, values, near = (
        tuple(put(old, entry[i], slot, 2) for old, entry in zip(arrays, new, strict=True)) if arrays else ()
        for i, arrays in enumerate((cache.keys, cache.values, cache.near))
    )
    places = {kind: jax.tree.map(lambda old, new: put(old, new, slot, 1), where, at) for kind, where in cache.places.items()}
    return logits_BV, Cache(keys, values, near, places, cache.used + 1)


def _rotates_late(config: ModelConfig) -> bool:
    return config.positions == "rope" and config.rope_scaling.by_length


def _placed(at: Tokens, layout: Layout) -> Tokens:
    return jax.tree.map(lambda x: jax.reshard(x, layout.spec("batch", None)), at)


def _layers(
    weights: Weights, tokens_BL: Array, at: Tokens, rotations: dict | None, attend: Attend, config: ModelConfig, layout: Layout
) -> Array:
    """Return the residual stream after all layers, one after the other: scanned, each would copy its part of the cache."""
    rows = Rows(jax.reshard(tokens_BL, layout.spec("batch", None)), at.positions)
    x_BLD = transformer.embed(weights, rows.tokens, at, config, layout)
    for layer, block in enumerate(weights.blocks):
        mix = functools.partial(attend, layer=layer)
        rope = rotations and rotations[config.attention_kind(layer)]
        x_BLD, _ = transformer.block(block, x_BLD, mix, rope, at.segments != 0, layer, config, layout, decoding=True, rows=rows)
    return x_BLD


def _write(parts: list[list[Array]], new: tuple[Array | None, ...], layer: int, used: Array, count: Array, kind: str) -> None:
    """Put a chunk's keys and values, and under Self-Extend its near keys, into the layer's slots and rings."""
    for slots, entries, ring in zip(parts, new, (kind == "sliding", kind == "sliding", True), strict=False):
        if slots:
            slots[layer] = put_many(slots[layer], jnp.swapaxes(entries, 1, 2), used, count, 2, ring=ring)


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
    return next_logits(weights, last, config, layout), Cache(*map(tuple, parts), places, used)
