"""Text from prompts: prefill once, then a token at a time from the cache."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.config import Range, config
from jaxlm.decode.cache import empty_cache, extend
from jaxlm.decode.sampling import sample
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout
from jaxlm.model.config import ModelConfig
from jaxlm.ops.attention import Tokens

# Prompts are padded to multiples of this, and caches too, so that few shapes are compiled.
ROUNDING = 64


@config
class Sampling:
    """How the next token is chosen; the defaults leave the model's distribution as it is."""

    temperature: Annotated[float, Range(0)] = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: Annotated[int, Range(0)] = 0
    """Sample from this many likeliest tokens only; 0 from all."""
    top_p: Annotated[float, Range(0, 1)] = 1.0
    """Sample from the smallest set of tokens with this probability."""


def generate(
    params: Any, config: ModelConfig, layout: Layout, prompts: Sequence[Sequence[int]], max_tokens: int,
    sampling: Sampling, key: Array, *, stop_id: int | None = None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield tokens, int32 [B], one for each prompt at a time; -1 for a prompt that ended with `stop_id`.

    Row i draws from `fold_in(key, i)`. Prompts of unequal length are padded on the left; positions count real tokens, so
    padding changes nothing. Raises ConfigError where a prompt is empty or leaves no room below `config.max_length`.
    """
    longest = max(map(len, prompts))
    if not min(map(len, prompts)):
        raise ConfigError("a prompt is empty: begin it with the tokenizer's bos_id at least")
    if longest + max_tokens > config.max_length:
        raise ConfigError(
            f"a prompt of {longest} tokens and {max_tokens} new ones exceed model.max_length = {config.max_length}: "
            f"ask for at most {max(0, config.max_length - longest)}"
        )
    width = -(-longest // ROUNDING) * ROUNDING
    tokens, segments = np.zeros((2, len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :], segments[row, width - len(prompt) :] = prompt, 1
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0).astype(np.int32)
    slots = -(-(width + max_tokens) // ROUNDING) * ROUNDING
    cache = empty_cache(config, layout, len(prompts), slots)
    controls = [jnp.float32(sampling.temperature), jnp.int32(sampling.top_k or config.vocab_size), jnp.float32(sampling.top_p)]
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(prompts)))

    logits, cache = extend(params, tokens, Tokens(positions, segments), cache, config, layout)
    ended = np.zeros(len(prompts), bool)
    for step in range(max_tokens):
        step_keys = jax.vmap(lambda k, s=step: jax.random.fold_in(k, s))(keys)
        chosen = sample(jax.reshard(logits, jax.P(None, None)), step_keys, *controls)
        if step + 1 < max_tokens:  # under way while the caller looks at the tokens
            at = Tokens(positions[:, -1:] + 1 + step, np.ones((len(prompts), 1), np.int32))
            logits, cache = extend(params, chosen[:, None], at, cache, config, layout)
        found = np.where(ended, -1, np.asarray(chosen))
        ended |= found == stop_id if stop_id is not None else False
        yield np.where(found == stop_id, -1, found) if stop_id is not None else found
        if ended.all():
            return


def generate_text(
    params: Any, config: ModelConfig, layout: Layout, tokenizer: Any, prompts: Sequence[str], max_tokens: int,
    sampling: Sampling, key: Array,
) -> list[str]:  # fmt: skip
    """Return the continuation of each prompt as text, until the end of the document or `max_tokens`."""
    encoded = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    limit = min(max_tokens, config.max_length - max(map(len, encoded)))
    steps = list(generate(params, config, layout, encoded, max(limit, 0), sampling, key, stop_id=tokenizer.eos_id))
    return [tokenizer.decode([int(step[row]) for step in steps if step[row] >= 0]) for row in range(len(prompts))]
