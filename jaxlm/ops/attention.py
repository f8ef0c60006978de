"""Attention through one function: masks come from explicit positions and segments, kernels from where it runs.

Packed rows, caches, chunked prefill, sliding windows, ALiBi and bidirectional layers differ only in what they pass.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, P

from jaxlm.ops import splash
from jaxlm.ops.attention_kernels import blocked, cudnn, plain
from jaxlm.ops.masks import Masks, Tokens

Kernel = Literal["plain", "blocked", "cudnn", "splash"]


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
    rows, length, heads = jax.typeof(q).sharding.spec[:3]
    split = length if length and jax.sharding.get_abstract_mesh().shape[length] > 1 else None
    if heads != jax.typeof(k).sharding.spec[2]:  # whole key-value heads under sharded query heads
        share = q.shape[2] // k.shape[2]
        k, v = (jnp.repeat(x, share, axis=2) for x in (k, v))
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

    def local(q: Array, k: Array, v: Array, query: Tokens, key: Tokens, slopes: Array | None, prepared: Any) -> Any:
        if split and aligned:
            k, v, key = jax.tree.map(lambda x: jax.lax.all_gather(x, split, axis=1, tiled=True), (k, v, key))
        if prepared is not None:
            mixed, log_normalizer = splash.run(prepared, q, k, v, query.segments, key.segments, scale, normalizer)
        else:
            offset = {"offset": jax.lax.axis_index(split) * q.shape[1]} if split and kernel == "blocked" else {}
            mixed, log_normalizer = compute(q, k, v, query, key, slopes, **offset)
        return (mixed, log_normalizer) if normalizer else mixed

    queries, keys = P(rows, split, heads, None), P(rows, split if aligned else None, heads, None)
    tokens = (jax.tree.map(lambda _: P(*queries[:2]), query), jax.tree.map(lambda _: P(*keys[:2]), key))
    specs = (queries, keys, keys, *tokens, None if slopes is None else P(heads))
    inputs = jax.reshard((q, k, v, query, key, slopes), specs)
    prepared_specs = None if prepared is None else splash.specs(prepared, split)
    out = (queries, P(*queries[:3])) if normalizer else queries
    found = jax.shard_map(local, in_specs=(*specs, prepared_specs), out_specs=out, check_vma=False)(
        *inputs, prepared if prepared is None else jax.reshard(prepared, prepared_specs)
    )  # fmt: skip
    mixed, log_normalizer = found if normalizer else (found, None)
    return (
        jax.reshard(mixed, P(rows, length, heads, None)),
        log_normalizer if log_normalizer is None else jax.reshard(log_normalizer, P(rows, length, heads)),
    )
