"""Attention through one function: masks come from explicit positions and segments, kernels from where it runs.

Packed rows, caches, chunked prefill, sliding windows and bidirectional layers differ only in what they pass.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, P

Kernel = Literal["plain", "blocked", "cudnn", "splash"]

# Queries a block of the blocked kernel: big enough for efficient products, small enough to skip much of the future.
QUERY_BLOCK = 128
# Rows and columns of a block of the splash kernel, the first that divides the row: large ones keep the matrix unit busy, and
# the kernel takes no others than multiples of 128.
SPLASH_BLOCKS = (512, 256, 128)
# What the kernel's backward pass needs of its forward pass, for policies of rematerialisation.
SPLASH_RESIDUALS = "splash_residuals"
# A finite stand-in for minus infinity: a query that may see nothing gets a uniform distribution instead of NaN.
MASKED = -1e30


class Tokens(NamedTuple):
    """Where tokens stand: positions [B, L], and segments [B, L] (documents of a packed row; None where there is only one)."""

    positions: Array
    segments: Array | None = None


def visible(query: Tokens, key: Tokens, *, causal: bool, window: int = 0) -> Array:
    """Return bool [B, Lq, Lk]: which keys each query may attend to.

    Both must lie in the same segment; causal queries see positions up to their own; a window counts the query itself, so
    `window` positions at most (0: no limit; without `causal`, that many to either side).
    """
    distance = query.positions[:, :, None] - key.positions[:, None, :]
    seen = distance >= 0 if causal else jnp.ones_like(distance, dtype=bool)
    if window:
        seen &= (distance < window) if causal else (jnp.abs(distance) < window)
    if query.segments is not None and key.segments is not None:
        seen &= query.segments[:, :, None] == key.segments[:, None, :]
    return seen


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
    softcap: float = 0.0,
    aligned: bool = False,
    kernel: Kernel = "plain",
) -> Array:
    """Return softmax(scale q k^T, masked) v, [B, L, N, H]; query heads share key-value heads where there are fewer.

    `softcap` c > 0 turns logits into c tanh(logits / c). `aligned` promises that queries and keys are the same tokens in
    the same order, positions rising within a segment, so that a kernel may skip every key that comes later in the row.
    Heads and rows may be sharded: each device computes its own. So may the length of aligned rows: each device then gathers
    the keys and values of its rows and computes its own stretch of queries. Softmax is float32.
    """
    rows, length, heads = jax.typeof(q_BLNH).sharding.spec[:3]
    split = length if length and jax.sharding.get_abstract_mesh().shape[length] > 1 else None
    if heads != jax.typeof(k_BSKH).sharding.spec[2]:  # whole key-value heads under sharded query heads
        share = q_BLNH.shape[2] // k_BSKH.shape[2]
        k_BSKH, v_BSKH = (jnp.repeat(x, share, axis=2) for x in (k_BSKH, v_BSKH))
    if not aligned and kernel != "plain":
        kernel = "plain"
    compute = {"plain": _plain, "blocked": _plain if split else _blocked, "cudnn": _cudnn, "splash": _splash}[kernel]
    prepared, prepared_specs = None, None
    if kernel == "splash":
        prepared = _splash_kernel(q_BLNH, k_BSKH, split, causal, window, softcap)
        prepared_specs = prepared and _splash_specs(prepared, split)

    def local(q: Array, k: Array, v: Array, query: Tokens, key: Tokens, prepared: Any) -> Array:
        if split:
            k, v, key = jax.tree.map(lambda x: jax.lax.all_gather(x, split, axis=1, tiled=True), (k, v, key))
        more = {"prepared": prepared} if kernel == "splash" else {}
        return compute(q, k, v, query, key, scale=scale, causal=causal, window=window, softcap=softcap, **more)

    queries, keys = P(rows, split, heads, None), P(rows, split if aligned else None, heads, None)
    tokens = (jax.tree.map(lambda _: P(*queries[:2]), query), jax.tree.map(lambda _: P(*keys[:2]), key))
    specs = (queries, keys, keys, *tokens)
    inputs = jax.reshard((q_BLNH, k_BSKH, v_BSKH, query, key), specs)
    mixed = jax.shard_map(local, in_specs=(*specs, prepared_specs), out_specs=queries, check_vma=False)(
        *inputs, prepared if prepared is None else jax.reshard(prepared, prepared_specs)
    )  # fmt: skip
    return jax.reshard(mixed, P(rows, length, heads, None))


def attention_weights(q: Array, k: Array, seen: Array, *, scale: float, softcap: float = 0.0) -> Array:
    """Return float32 attention probabilities [B, K, G, Lq, Lk] of q [B, K, G, Lq, H], k [B, K, Lk, H], seen [B, Lq, Lk]."""
    batch, groups, share, length, size = q.shape
    rows = q.reshape(batch, groups, share * length, size)
    logits = jnp.einsum("bkqh,bksh->bkqs", rows, k, preferred_element_type=jnp.float32)
    logits = logits.reshape(batch, groups, share, length, -1) * scale
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    return jax.nn.softmax(jnp.where(seen[:, None, None], logits, MASKED), axis=-1)


def _heads_first(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Return q [B, K, G, L, H], k and v [B, K, S, H]: batched products then need no further copy."""
    batch, length, heads, size = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    return q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def _mix(weights: Array, v: Array) -> Array:
    batch, groups, share, length, keys = weights.shape
    mixed = jnp.einsum("bkqs,bksh->bkqh", weights.astype(v.dtype).reshape(batch, groups, share * length, keys), v)
    return mixed.reshape(batch, groups, share, length, -1)


def _heads_last(y: Array) -> Array:
    batch, groups, share, length, size = y.shape
    return y.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * share, size)


def _plain(q: Array, k: Array, v: Array, query: Tokens, key: Tokens, *, scale, causal, window, softcap) -> Array:
    q, k, v = _heads_first(q, k, v)
    seen = visible(query, key, causal=causal, window=window)
    return _heads_last(_mix(attention_weights(q, k, seen, scale=scale, softcap=softcap), v))


def _blocked(q: Array, k: Array, v: Array, query: Tokens, key: Tokens, *, scale, causal, window, softcap) -> Array:
    """Compute block by block of queries, over only the keys that a block can see: half the work of a long causal row."""
    length = q.shape[1]
    if not causal or length <= QUERY_BLOCK:
        return _plain(q, k, v, query, key, scale=scale, causal=causal, window=window, softcap=softcap)
    q, k, v = _heads_first(q, k, v)
    block = max(QUERY_BLOCK, -(-length // 16))  # at most 16 blocks, so that compile time does not grow with the length
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = max(0, start - window + 1) if window else 0
        queries = jax.tree.map(lambda x, a=start, b=stop: x[:, a:b], query)
        keys = jax.tree.map(lambda x, a=first, b=stop: x[:, a:b], key)
        seen = visible(queries, keys, causal=True, window=window)
        weights = attention_weights(q[..., start:stop, :], k[:, :, first:stop], seen, scale=scale, softcap=softcap)
        outputs.append(_mix(weights, v[:, :, first:stop]))
    return _heads_last(jnp.concatenate(outputs, axis=3))


def _cudnn(q: Array, k: Array, v: Array, query: Tokens, key: Tokens, *, scale, causal, window, softcap) -> Array:
    """NVIDIA's fused kernel: no [L, L] logits in memory; half precision only, and no soft-cap."""
    if softcap or q.dtype not in (jnp.bfloat16, jnp.float16):
        return _plain(q, k, v, query, key, scale=scale, causal=causal, window=window, softcap=softcap)
    mask, local_window = None, None
    if q.shape[1] != k.shape[1]:  # a stretch of the row's queries: the kernel's own masks count from the first key
        mask, causal = visible(query, key, causal=causal, window=window)[:, None], False
    else:
        local_window = ((window - 1, 0) if causal else (window - 1, window - 1)) if window else None
        if query.segments is not None:
            mask = (query.segments[:, :, None] == key.segments[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, is_causal=causal, local_window_size=local_window, implementation="cudnn"
    )


def _splash_kernel(q: Array, k: Array, split: str | None, causal: bool, window: int, softcap: float) -> Any:
    """Return the kernel for these shapes (a pytree: its masks are arrays), or None where it cannot cut the row into blocks."""
    length, share = q.shape[1], q.shape[2] // k.shape[2]
    parts = jax.sharding.get_abstract_mesh().shape[split] if split else 1
    block = next((size for size in SPLASH_BLOCKS if length % (parts * size) == 0), None)
    if block is None:
        return None
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    if causal and not window:
        mask = splash_attention_mask.CausalMask((length, length), shard_count=parts)
    else:
        sides = ((window or length) - 1, 0 if causal else (window or length) - 1)
        mask = splash_attention_mask.LocalMask((length, length), sides, offset=0, shard_count=parts)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    return splash_attention_kernel.make_splash_mqa(
        splash_attention_mask.MultiHeadMask([mask] * share), head_shards=1, q_seq_shards=parts,
        attn_logits_soft_cap=softcap or None, residual_checkpoint_name=SPLASH_RESIDUALS,
        block_sizes=splash_attention_kernel.BlockSizes(**{f"block_{name}": block for name in names}),
    )  # fmt: skip


def _splash_specs(prepared: Any, split: str | None) -> Any:
    """Return how the masks of a prepared kernel are split: by the queries that they are for."""
    mesh = jax.sharding.get_abstract_mesh()
    return prepared.manual_sharding_spec(jax.NamedSharding(mesh, P(None, split)))


def _splash(q: Array, k: Array, v: Array, query: Tokens, key: Tokens, *, scale, causal, window, softcap, prepared) -> Array:
    """The TPU's block-sparse flash kernel (jax.experimental.pallas): memory linear in the length, masked blocks skipped."""
    if prepared is None:
        compute = _blocked if q.shape[1] == k.shape[1] else _plain
        return compute(q, k, v, query, key, scale=scale, causal=causal, window=window, softcap=softcap)
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    segments = None
    if query.segments is not None:
        segments = splash_attention_kernel.SegmentIds(query.segments, key.segments)
    q, k, v = _heads_first(q * scale, k, v)
    over_groups = jax.vmap(prepared, in_axes=(0, 0, 0, None))
    return _heads_last(jax.vmap(over_groups, in_axes=(0, 0, 0, None if segments is None else 0))(q, k, v, segments))
