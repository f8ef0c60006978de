"""How attention is computed on one device, from arrays that it holds whole.

Each takes q [B, L, N, H], k and v [B, S, K, H], where their tokens stand, and ALiBi's slopes [N] or None; each returns what it
mixed, [B, L, N, H], and the logarithm of what its softmax divided by, float32 [B, L, N], if asked for that.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.ops.masks import MASKED, Masks, Tokens

# Queries a block of the blocked kernel: big enough for efficient products, small enough to skip much of the future.
QUERY_BLOCK = 128
# The blocked kernel cuts a row into this many stretches at most, each with the keys that it can see: more would skip more of
# the future and take longer to compile.
STRETCHES = 16


def attention_logits(
    q: Array, k: Array, seen: Array, *, scale: float, softcap: float = 0.0, bias: Array | None = None
) -> Array:
    """Return float32 logits [B, K, G, Lq, Lk], MASKED where not seen; `bias` of that shape is added to them."""
    batch, groups, share, length, size = q.shape
    rows = q.reshape(batch, groups, share * length, size)
    logits = jnp.einsum("bkqh,bksh->bkqs", rows, k, preferred_element_type=jnp.float32)
    logits = logits.reshape(batch, groups, share, length, -1) * scale
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    return jnp.where(seen[:, None, None], logits if bias is None else logits + bias, MASKED)


def alibi_bias(slopes: Array, query: Tokens, key: Tokens, groups: int) -> Array:
    """Return float32 [B, K, G, Lq, Lk], minus each head's slope times the distance in positions."""
    distance = jnp.abs(query.positions[:, :, None] - key.positions[:, None, :]).astype(jnp.float32)
    return -slopes.reshape(1, groups, -1, 1, 1) * distance[:, None, None]


def heads_first(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Return q [B, K, G, L, H], k and v [B, K, S, H]: batched products then need no further copy."""
    batch, length, heads, size = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    return q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def mix(weights: Array, v: Array) -> Array:
    """Return probabilities [B, K, G, L, S] times values [B, K, S, H], in the dtype of the values: [B, K, G, L, H]."""
    batch, groups, share, length, keys = weights.shape
    mixed = jnp.einsum("bkqs,bksh->bkqh", weights.astype(v.dtype).reshape(batch, groups, share * length, keys), v)
    return mixed.reshape(batch, groups, share, length, -1)


def heads_last(y: Array) -> Array:
    """Return [B, L, N, H] of [B, K, G, L, H]."""
    batch, groups, share, length, size = y.shape
    return y.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * share, size)


def rows_first(log_normalizer: Array | None) -> Array | None:
    """Return [B, L, N] of [B, K, G, L]."""
    if log_normalizer is None:
        return None
    batch, groups, share, length = log_normalizer.shape
    return log_normalizer.transpose(0, 3, 1, 2).reshape(batch, length, groups * share)


def _some(
    q: Array, k: Array, v: Array, query: Tokens, key: Tokens, slopes: Array | None, masks: Masks, scale: float,
    softcap: float, normalizer: bool,
) -> tuple[Array, Array | None]:  # fmt: skip
    """Return attention [B, K, G, Lq, H] of heads-first queries to these keys, and its normaliser [B, K, G, Lq] if asked for."""
    bias = None if slopes is None else alibi_bias(slopes, query, key, k.shape[1])
    logits = attention_logits(q, k, masks.seen(query, key), scale=scale, softcap=softcap, bias=bias)
    mixed = mix(jax.nn.softmax(logits, axis=-1), v)
    return mixed, jax.nn.logsumexp(logits, axis=-1) if normalizer else None


def plain(
    q: Array, k: Array, v: Array, query: Tokens, key: Tokens, slopes: Array | None, *, masks, scale, softcap, normalizer
) -> tuple[Array, Array | None]:
    """Compute all logits at once: the reference, and what short rows and caches take."""
    mixed, log_normalizer = _some(*heads_first(q, k, v), query, key, slopes, masks, scale, softcap, normalizer)
    return heads_last(mixed), rows_first(log_normalizer)


def _by_block(
    q: Array, k: Array, v: Array, query: Tokens, key: Tokens, slopes: Array | None, masks: Masks, scale: float,
    softcap: float, normalizer: bool, behind: Array | int,
) -> tuple[Array, Array | None]:  # fmt: skip
    """Return `_some`, computed a block of queries at a time, so that no more than a block's logits are ever there.

    Backwards they are computed again. Query i stands at key `behind` + i; with a window a block reads the keys around it.
    """
    length = q.shape[3]
    if length <= QUERY_BLOCK:
        return _some(q, k, v, query, key, slopes, masks, scale, softcap, normalizer)
    filling = -length % QUERY_BLOCK
    q = jnp.pad(q, [(0, filling if axis == 3 else 0) for axis in range(q.ndim)])
    query = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, filling)]), query)
    settings = Settings(masks, scale, softcap, normalizer)

    def in_order(blocks: Array) -> Array:
        """Return [B, K, G, L, ...] of [blocks, B, K, G, a block, ...]."""
        blocks = jnp.moveaxis(blocks, 0, 3)
        return blocks.reshape(*blocks.shape[:3], -1, *blocks.shape[5:])[:, :, :, :length]

    return jax.tree.map(in_order, _all_blocks(settings, q, k, v, slopes, query, key, jnp.asarray(behind)))


class Settings(NamedTuple):
    """What every block is computed by."""

    masks: Masks
    scale: float
    softcap: float
    normalizer: bool


class Cut(NamedTuple):
    """What one block of queries reads."""

    queries: Array
    first: Array | int  # of the keys
    keys: Array
    values: Array
    asking: Tokens
    asked: Tokens


def _cut(settings: Settings, q: Array, k: Array, v: Array, query: Tokens, key: Tokens, behind: Array, number: Array) -> Cut:
    start, window, seen = number * QUERY_BLOCK, settings.masks.window, k.shape[2]
    width = min(QUERY_BLOCK - 1 + window, seen) if window else seen
    # No further than the last keys reach, as dynamic_slice has it: what is cut and where it lies must agree.
    first = jnp.clip(behind + start - window + 1, 0, seen - width) if window else 0
    return Cut(
        jax.lax.dynamic_slice_in_dim(q, start, QUERY_BLOCK, 3),
        first,
        *(jax.lax.dynamic_slice_in_dim(x, first, width, 2) for x in (k, v)),
        jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, QUERY_BLOCK, 1), query),
        jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, width, 1), key),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _all_blocks(
    settings: Settings, q: Array, k: Array, v: Array, slopes: Array | None, query: Tokens, key: Tokens, behind: Array
) -> tuple[Array, Array | None]:
    """Return `_some` of each block of queries, stacked.

    With its own backward pass: under `jax.checkpoint` alone a policy of the layer around it would keep every block's logits.
    """

    def one(number: Array) -> tuple[Array, Array | None]:
        cut = _cut(settings, q, k, v, query, key, behind, number)
        return _some(cut.queries, cut.keys, cut.values, cut.asking, cut.asked, slopes, *settings)

    return jax.lax.map(one, jnp.arange(q.shape[3] // QUERY_BLOCK))


def _all_blocks_forward(settings: Settings, *inputs: Any) -> tuple[tuple[Array, Array | None], tuple]:
    return _all_blocks(settings, *inputs), inputs


def _all_blocks_backward(settings: Settings, inputs: tuple, given: tuple[Array, Array | None]) -> tuple:
    q, k, v, slopes, query, key, behind = inputs

    def one(sums: tuple, block: tuple) -> tuple[tuple, Array]:
        number, given = block
        cut = _cut(settings, q, k, v, query, key, behind, number)

        def mixed(queries: Array, keys: Array, values: Array, slopes: Array | None) -> tuple[Array, Array | None]:
            return _some(queries, keys, values, cut.asking, cut.asked, slopes, *settings)

        dq, *others = jax.vjp(mixed, cut.queries, cut.keys, cut.values, slopes)[1](given)
        added = [_added(total, part, cut.first) for total, part in zip(sums[:2], others[:2], strict=True)]
        return (*added, jax.tree.map(jnp.add, sums[2], others[2])), dq

    wide = [jnp.zeros(x.shape, jnp.float32) for x in (k, v)]
    start = (*wide, None if slopes is None else jnp.zeros_like(slopes))
    numbers = jnp.arange(q.shape[3] // QUERY_BLOCK)
    (dk, dv, dslopes), dq = jax.lax.scan(one, start, (numbers, given))
    dq = jnp.moveaxis(dq, 0, 3)
    return dq.reshape(q.shape), dk.astype(k.dtype), dv.astype(v.dtype), dslopes, None, None, None


def _added(total: Array, part: Array, first: Array | int) -> Array:
    there = jax.lax.dynamic_slice_in_dim(total, first, part.shape[2], 2)
    return jax.lax.dynamic_update_slice_in_dim(total, there + part.astype(total.dtype), first, 2)


_all_blocks.defvjp(_all_blocks_forward, _all_blocks_backward)


def blocked(
    q: Array, k: Array, v: Array, query: Tokens, key: Tokens, slopes: Array | None, *, masks, scale, softcap, normalizer,
    offset: Array | int | None = None,
) -> tuple[Array, Array | None]:  # fmt: skip
    """Compute block by block of queries; memory is linear in the length.

    Queries and keys are the same tokens, or queries those from key `offset` on. Of the same tokens, each stretch of queries
    reads only the keys that it can see: half the work of a long causal row.
    """
    length = q.shape[1]
    if not masks.causal or length <= QUERY_BLOCK:
        return plain(q, k, v, query, key, slopes, masks=masks, scale=scale, softcap=softcap, normalizer=normalizer)
    q, k, v = heads_first(q, k, v)
    if offset is None and masks.window >= length:
        masks = masks._replace(window=0)
    # Longer rows have no more stretches, but several blocks in each. A narrow window is cut from the row for every block.
    stretch = -(-length // (STRETCHES * QUERY_BLOCK)) * QUERY_BLOCK
    if offset is not None or (0 < masks.window <= stretch and stretch > QUERY_BLOCK):
        stretch = length
    found = []
    for start in range(0, length, stretch):
        stop = min(start + stretch, length)
        first, last = 0, k.shape[2]
        if stretch < length:
            first = max(start - masks.window + 1, 0) if masks.window else 0
            last = max(stop - masks.beyond, first + 1)
        part, keys = _part(query, start, stop), _part(key, first, last)
        found.append(
            _by_block(
                q[..., start:stop, :], k[:, :, first:last], v[:, :, first:last], part, keys, slopes, masks, scale, softcap,
                normalizer, start - first if offset is None else offset,
            )
        )  # fmt: skip
    mixed, log_normalizer = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=3), *found)
    return heads_last(mixed), rows_first(log_normalizer)


def _part(tokens: Tokens, start: int, stop: int) -> Tokens:
    return jax.tree.map(lambda x: x[:, start:stop], tokens)


def cudnn(
    q: Array, k: Array, v: Array, query: Tokens, key: Tokens, slopes: Array | None, *, masks, scale, softcap, normalizer
) -> tuple[Array, None]:
    """NVIDIA's fused kernel: no [L, L] logits in memory; half precision only, no soft-cap, no normaliser."""
    if softcap or q.dtype not in (jnp.bfloat16, jnp.float16):
        return plain(q, k, v, query, key, slopes, masks=masks, scale=scale, softcap=softcap, normalizer=normalizer)
    causal, window, mask, local_window = masks.causal, masks.window, None, None
    if q.shape[1] != k.shape[1]:  # a stretch of the row's queries: the kernel's own masks count from the first key
        mask, causal = masks.seen(query, key)[:, None], False
    else:
        local_window = ((window - 1, 0) if causal else (window - 1, window - 1)) if window else None
        if query.segments is not None:
            mask = (query.segments[:, :, None] == key.segments[:, None, :])[:, None]
    mixed = jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, is_causal=causal, local_window_size=local_window, implementation="cudnn"
    )
    return mixed, None
