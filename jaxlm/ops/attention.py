"""Attention through one function: masks come from explicit positions and segments, kernels from where it runs.

Packed rows, caches, chunked prefill, sliding windows, ALiBi and bidirectional layers differ only in what they pass.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, P

from jaxlm.ops import splash
from jaxlm.ops.attention_kernels import blocked, cudnn, plain
from jaxlm.ops.masks import Masks, Tokens

Kernel = Literal["plain", "blocked", "cudnn", "splash"]
Arrays = tuple[Any, ...]


def attention(
    q_BLNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    query: Tokens,
    key: Tokens,
    *,
    scale: float,
    causal: bool = True,
    window: int = 0,
    beyond: int = 0,
    softcap: float = 0.0,
    slopes: Array | None = None,
    aligned: bool = False,
    kernel: Kernel = "plain",
) -> Array:
    """Return softmax(scale q k^T, masked) v, [B, L, N, H]; query heads share key-value heads where there are fewer.

    `softcap` c > 0 turns logits into c tanh(logits / c); `slopes` [N] are taken from them for every position between query
    and key (ALiBi, arXiv:2108.12409). `aligned` promises that queries and keys are the same tokens in the same order,
    positions rising by one within a segment, so that a kernel may skip every key that comes later in the row.
    Heads and rows may be sharded: each device computes its own. So may the length of aligned rows: each device then gathers
    the keys and values of its rows and computes its own stretch of queries. Softmax is float32.
    """
    masks = Masks(causal, window, beyond)
    return _attend(q_BLNH, k_BSKH, v_BSKH, query, key, slopes, masks, scale, softcap, aligned, kernel, normalizer=False)[0]


def attention_and_normalizer(
    q_BLNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    query: Tokens,
    key: Tokens,
    *,
    scale: float,
    causal: bool = True,
    window: int = 0,
    beyond: int = 0,
    softcap: float = 0.0,
    slopes: Array | None = None,
    aligned: bool = False,
    kernel: Kernel = "plain",
) -> tuple[Array, Array]:
    """Return `attention` and, float32 [B, L, N], the logarithm of what its softmax divides by.

    With both, attention to disjoint sets of keys can be merged (`ops.self_extend.merge`). A query that sees no key has a
    logarithm of about MASKED, and something finite for its output.
    """
    masks = Masks(causal, window, beyond)
    return _attend(q_BLNH, k_BSKH, v_BSKH, query, key, slopes, masks, scale, softcap, aligned, kernel, normalizer=True)


def _attend(
    q: Array, k: Array, v: Array, query: Tokens, key: Tokens, slopes: Array | None, masks: Masks, scale: float,
    softcap: float, aligned: bool, kernel: Kernel, *, normalizer: bool,
) -> tuple[Array, Array | None]:  # fmt: skip
    split = split_of(q)
    k, v = with_heads_of(q, (k, v))
    prepared = None
    if kernel == "splash" and aligned and slopes is None:
        prepared = splash.prepare(q, k, split, masks.causal, masks.window, masks.beyond, softcap, normalizer)
    if not aligned:
        kernel = "plain"
    elif kernel == "splash" or (kernel == "cudnn" and (masks.beyond or slopes is not None or normalizer)):
        kernel = "blocked"  # what the others cannot do, or cannot cut into their blocks
    compute = functools.partial(
        {"plain": plain, "blocked": blocked, "cudnn": cudnn}[kernel],
        masks=masks, scale=scale, softcap=softcap, normalizer=normalizer,
    )  # fmt: skip

    def local(queries: Arrays, keys: Arrays, query: Tokens, key: Tokens, slopes: Array | None, prepared: Any) -> Any:
        (q,), (k, v) = queries, keys
        if prepared is not None:
            found = splash.run(prepared, q, k, v, query.segments, key.segments, scale, normalizer)
        else:
            offset = {"offset": jax.lax.axis_index(split) * q.shape[1]} if split and kernel == "blocked" else {}
            found = compute(q, k, v, query, key, slopes, **offset)
        return found if normalizer else found[0]

    heads = jax.typeof(q).sharding.spec[2]
    more_specs = None if slopes is None else P(heads), None if prepared is None else splash.specs(prepared, split)
    found = on_devices(local, (q,), (k, v), query, key, (slopes, prepared), more_specs, aligned=aligned, normalizer=normalizer)
    return found if normalizer else (found, None)


def split_of(q_BLNH: Array) -> str | None:
    """Return the mesh axis that rows are split over along their length; None where each is whole on its device."""
    length = jax.typeof(q_BLNH).sharding.spec[1]
    return length if length and jax.sharding.get_abstract_mesh().shape[length] > 1 else None


def with_heads_of(q_BLNH: Array, keys: Arrays) -> Arrays:
    """Return keys and values [B, S, K, H] as they are, or, whole under sharded query heads, once for each of those."""
    if jax.typeof(q_BLNH).sharding.spec[2] == jax.typeof(keys[0]).sharding.spec[2]:
        return keys
    return tuple(jnp.repeat(x, q_BLNH.shape[2] // x.shape[2], axis=2) for x in keys)


def on_devices(
    compute: Callable[..., Any], queries: Arrays, keys: Arrays, query: Tokens, key: Tokens, more: Arrays = (),
    more_specs: tuple = (), *, aligned: bool, normalizer: bool = False,
) -> Any:  # fmt: skip
    """Return compute(queries, keys, query, key, *more) of arrays [B, L, N, H] and [B, S, K, H], each device for its own part.

    Parts are of rows and heads and, of aligned rows split along their length, a stretch of the queries with all keys. It gives
    [B, L, N, H] and, with `normalizer`, also [B, L, N].
    """
    rows, length, heads = jax.typeof(queries[0]).sharding.spec[:3]
    split = split_of(queries[0])

    def local(queries: Arrays, keys: Arrays, query: Tokens, key: Tokens, *more: Any) -> Any:
        if split and aligned:
            keys, key = jax.tree.map(lambda x: jax.lax.all_gather(x, split, axis=1, tiled=True), (keys, key))
        return compute(queries, keys, query, key, *more)

    of_queries, of_keys = P(rows, split, heads, None), P(rows, split if aligned else None, heads, None)
    specs = (
        (of_queries,) * len(queries), (of_keys,) * len(keys),
        *(jax.tree.map(lambda _, spec=spec: P(*spec[:2]), at) for at, spec in ((query, of_queries), (key, of_keys))),
        *more_specs,
    )  # fmt: skip
    out = (of_queries, P(*of_queries[:3])) if normalizer else of_queries
    inputs = jax.reshard((queries, keys, query, key, *more), specs)
    found = jax.shard_map(local, in_specs=specs, out_specs=out, check_vma=False)(*inputs)
    return jax.tree.map(lambda x: jax.reshard(x, P(*(rows, length, heads, None)[: x.ndim])), found)
