"""From logits to tokens: controls in the field's order, each neutral by default, all of them arrays with a value a row."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.config import Range, config

Penalty = Annotated[float, Range(-2, 2)]


@config
class Sampling:
    """How the next token is chosen; the defaults leave the model's distribution as it is. They act in this order."""

    repetition_penalty: Annotated[float, Range(0.01, 100)] = 1.0
    """Logits of every token seen, in the prompt or since, are divided by it where positive and multiplied where negative."""
    frequency_penalty: Penalty = 0.0
    """Taken from a token's logit for every time it was generated."""
    presence_penalty: Penalty = 0.0
    """Taken from a token's logit once it was generated."""
    temperature: Annotated[float, Range(0)] = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: Annotated[int, Range(0)] = 0
    """Sample from this many likeliest tokens, and those that tie with the last of them; 0 from all."""
    top_p: Annotated[float, Range(0, 1)] = 1.0
    """Sample from the smallest set of likeliest tokens with this probability, one token at least, and those that tie with the
    last of them: logits rounded to bfloat16 tie often, and which of equals to leave out would be arbitrary."""
    min_p: Annotated[float, Range(0, 1)] = 0.0
    """Sample from tokens at least this many times as probable as the likeliest."""
    min_tokens: Annotated[int, Range(0)] = 0
    """No stop token before this many tokens."""


class Controls(NamedTuple):
    """`Sampling` of each row, [B] each, so that other values compile nothing anew."""

    repetition_penalty: Array
    frequency_penalty: Array
    presence_penalty: Array
    temperature: Array
    top_k: Array  # int32
    outside_p: Array  # 1 - top_p, rounded once: at exact equality that decides
    min_p: Array
    min_tokens: Array  # int32


def controls_of(rows: list[Sampling]) -> Controls:
    """Return the controls of a batch with one `Sampling` a row."""

    def array(name: str, dtype: type = np.float32) -> np.ndarray:
        return np.array([min(getattr(row, name), 2**31 - 1) for row in rows], dtype)

    return Controls(
        array("repetition_penalty"), array("frequency_penalty"), array("presence_penalty"), array("temperature"),
        array("top_k", np.int32), np.array([1.0 - row.top_p for row in rows], np.float32), array("min_p"),
        array("min_tokens", np.int32),
    )  # fmt: skip


def penalized(logits_BV: Array, prompt_BV: Array, counts_BV: Array, controls: Controls) -> Array:
    """Return logits less what repetition costs.

    `prompt_BV` (bool) says which tokens the prompt holds, `counts_BV` (int32) how often each was generated. The repetition
    penalty (Keskar et al. 2019, arXiv:1909.05858) counts both, each token once; frequency and presence penalties, as OpenAI
    defines them, count generated tokens alone.
    """
    penalty = controls.repetition_penalty[:, None]
    repeated = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    logits_BV = jnp.where(prompt_BV | (counts_BV > 0), repeated, logits_BV)
    logits_BV = logits_BV - counts_BV * controls.frequency_penalty[:, None]
    return logits_BV - (counts_BV > 0) * controls.presence_penalty[:, None]


def filtered(logits_BV: Array, controls: Controls) -> Array:
    """Return logits at each row's temperature (0 as 1) with all but the likeliest tokens at minus infinity, float32.

    Divided by the temperature; of these the `top_k` highest and those that tie with the last of them; of what is left, by
    its renormalised probabilities, the smallest set that holds `top_p` or more (Holtzman et al. 2020, arXiv:1904.09751); of
    what is then left those with `min_p` times the greatest probability (Nguyen et al. 2024, arXiv:2407.01082). Ties with the
    last token of such a set stay.
    """
    temperature = jnp.where(controls.temperature > 0, controls.temperature, 1.0)
    logits = logits_BV.astype(jnp.float32) / temperature[:, None]
    sorting = jnp.any((controls.top_k > 0) | (controls.outside_p > 0))
    logits = jax.lax.cond(sorting, lambda x: _likeliest(x, controls), lambda x: x, logits)
    # Equal tokens are equal after the exponential too: the likeliest is always kept.
    least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(controls.min_p)[:, None]
    return jnp.where(logits < least, -jnp.inf, logits)


def _likeliest(logits: Array, controls: Controls) -> Array:
    vocab = logits.shape[-1]
    descending = jnp.sort(logits, axis=-1, descending=True)
    top_k = jnp.where(controls.top_k > 0, jnp.minimum(controls.top_k, vocab), vocab)
    least = jnp.take_along_axis(descending, top_k[:, None] - 1, axis=-1)
    logits = jnp.where(logits < least, -jnp.inf, logits)
    descending = jnp.where(descending < least, -jnp.inf, descending)
    probabilities = jax.nn.softmax(descending, axis=-1)
    # Summed from the least likely: a token goes where it and all below it hold no more than 1 - p. The order matters at
    # exact equality, and these sums are more exact than those from the top.
    below = jnp.flip(jnp.cumsum(jnp.flip(probabilities, axis=-1), axis=-1), axis=-1)
    kept = jnp.sum(below > controls.outside_p[:, None], axis=-1, keepdims=True)
    kept = jnp.where(controls.outside_p[:, None] > 0, kept, vocab)
    least = jnp.take_along_axis(descending, jnp.maximum(kept, 1) - 1, axis=-1)
    return jnp.where(logits < least, -jnp.inf, logits)


def choose(logits_BV: Array, keys_B: Array, controls: Controls) -> Array:
    """Return one token a row, int32 [B], of logits after penalties; temperature 0 takes the likeliest.

    Each row draws from its own key. Nothing is sorted or drawn where no row asks for it.
    """
    likeliest = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    def drawn(logits: Array) -> Array:
        draws = jax.vmap(jax.random.categorical)(keys_B, filtered(logits, controls)).astype(jnp.int32)
        return jnp.where(controls.temperature > 0, draws, likeliest)

    return jax.lax.cond(jnp.any(controls.temperature > 0), drawn, lambda _: likeliest, logits_BV)
