"""From logits to tokens."""

import jax
import jax.numpy as jnp
from jax import Array


def filtered(logits_BV: Array, temperature: Array, top_k: Array, top_p: Array) -> Array:
    """Return logits at this temperature with all but the likeliest tokens at minus infinity, float32 [B, V].

    In the customary order: divide by `temperature`; keep the `top_k` highest and those that tie with the last of them
    (V or more keeps all); of what is left keep the smallest set with probability `top_p` or more, at least one token
    (Holtzman et al. 2020, arXiv:1904.09751). The controls are scalars, so that changing them compiles nothing anew.
    """
    logits = logits_BV.astype(jnp.float32) / temperature
    vocab = logits.shape[-1]
    descending = jnp.sort(logits, axis=-1, descending=True)
    least = jax.lax.dynamic_slice_in_dim(descending, jnp.clip(top_k, 1, vocab) - 1, 1, axis=1)
    logits = jnp.where(logits < least, -jnp.inf, logits)
    descending = jnp.where(descending < least, -jnp.inf, descending)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.sum(before < top_p, axis=-1, keepdims=True)
    least = jnp.take_along_axis(descending, jnp.maximum(kept, 1) - 1, axis=-1)
    return jnp.where(logits < least, -jnp.inf, logits)


@jax.jit
def sample(logits_BV: Array, keys_B: Array, temperature: Array, top_k: Array, top_p: Array) -> Array:
    """Return one token a row, int32 [B]; temperature 0 takes the likeliest. Each row draws from its own key."""
    drawn = jax.vmap(jax.random.categorical)(
        keys_B, filtered(logits_BV, jnp.where(temperature > 0, temperature, 1.0), top_k, top_p)
    )
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)
