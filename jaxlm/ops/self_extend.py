"""Self-Extend (Jin et al. 2024, arXiv:2401.01325): near keys where they are, far keys at grouped positions, one softmax."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.ops.attention import Kernel, attention, attention_and_normalizer, on_devices, with_heads_of
from jaxlm.ops.attention_kernels import attention_logits, heads_first, heads_last, mix
from jaxlm.ops.masks import Masks, Tokens


def self_extend(
    q_near_BLNH: Array,
    k_near_BSKH: Array,
    q_far_BLNH: Array,
    k_far_BSKH: Array,
    v_BSKH: Array,
    query: Tokens,
    key: Tokens,
    *,
    window_size: int,
    scale: float,
    softcap: float = 0.0,
    aligned: bool = False,
    kernel: Kernel = "plain",
) -> Array:
    """Return attention [B, L, N, H] over the last `window_size` keys as rotated near, and over those before as rotated far.

    The kernel "plain" computes every logit both ways and takes one softmax over the merged row: the reference, quadratic in
    memory. Every other computes the two sets of keys apart and merges what they give; memory is then linear in the length.
    """
    if kernel == "plain":
        return _dense(
            (q_near_BLNH, k_near_BSKH), (q_far_BLNH, k_far_BSKH), v_BSKH, query, key, window_size, scale, softcap, aligned
        )
    if aligned and k_far_BSKH.shape[1] <= window_size:  # no far key: what is computed without Self-Extend, to the bit
        return attention(
            q_near_BLNH, k_near_BSKH, v_BSKH, query, key, scale=scale, softcap=softcap, aligned=True, kernel=kernel
        )
    near = attention_and_normalizer(
        q_near_BLNH, k_near_BSKH, v_BSKH, query, key, scale=scale, window=window_size, softcap=softcap, aligned=aligned,
        kernel=kernel,
    )  # fmt: skip
    far = attention_and_normalizer(
        q_far_BLNH, k_far_BSKH, v_BSKH, query, key, scale=scale, beyond=window_size, softcap=softcap, aligned=aligned,
        kernel=kernel,
    )  # fmt: skip
    return merge(near, far)


def merge(one: tuple[Array, Array], other: tuple[Array, Array]) -> Array:
    """Return attention [B, L, N, H] over two disjoint sets of keys, from what each gives: (mixed, normaliser [B, L, N]).

    Exact: softmax over all keys is each set's own, weighted by its share of the sum of exponentials. A set of which a query
    sees nothing weighs nothing.
    """
    share = jax.nn.sigmoid(one[1] - other[1])[..., None]
    mixed = share * one[0].astype(jnp.float32) + (1.0 - share) * other[0].astype(jnp.float32)
    return mixed.astype(one[0].dtype)


def _dense(
    near: tuple[Array, Array], far: tuple[Array, Array], v: Array, query: Tokens, key: Tokens, window_size: int,
    scale: float, softcap: float, aligned: bool,
) -> Array:  # fmt: skip
    (q_near, k_near), (q_far, k_far) = near, far

    def local(queries: tuple[Array, ...], keys: tuple[Array, ...], query: Tokens, key: Tokens) -> Array:
        *both, v = keys

        def logits(q: Array, k: Array, masks: Masks) -> Array:
            q, k, _ = heads_first(q, k, v)
            return attention_logits(q, k, masks.seen(query, key), scale=scale, softcap=softcap)

        # MASKED where either does not see: each key is seen by one of them at most.
        masks = Masks(True, window_size, 0), Masks(True, 0, window_size)
        merged = jnp.maximum(*(logits(q, k, mask) for q, k, mask in zip(queries, both, masks, strict=True)))
        return heads_last(mix(jax.nn.softmax(merged, axis=-1), v.transpose(0, 2, 1, 3)))

    keys = with_heads_of(q_near, (k_near, k_far, v))
    return on_devices(local, (q_near, q_far), keys, query, key, aligned=aligned)
