"""The decoding loop: one compiled program that makes tokens until it has enough or every row has ended."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxlm.decode.cache import Cache
from jaxlm.decode.forward import one_token
from jaxlm.decode.sampling import Controls, choose, penalized
from jaxlm.decode.weights import Weights
from jaxlm.layout import Layout
from jaxlm.model.config import ModelConfig
from jaxlm.ops.masks import Tokens


@struct.dataclass
class Batch:
    """What a batch of requests asks for; it stays as it is while they are answered."""

    controls: Controls
    seeds: Array  # B3 uint32: a request's seed, in two words, and sample; folded with a token's number, never with the row
    prompt: Array  # BV bool: tokens of the prompt
    stop_ids: Array  # a few int32, -1 where there are fewer


@struct.dataclass
class State:
    """How far a batch is."""

    logits: Array  # BV float32, of the next token
    cache: Cache
    positions: Array  # B int32: of the next token
    tokens: Array  # BT int32, room for all that may come; -1 where none came
    log_probs: Array  # BT float32, under the model's own distribution
    made: Array  # () int32: tokens made in every row that has not ended
    ended: Array  # B bool: a stop token came


@functools.partial(jax.jit, static_argnames="room", donate_argnames="cache")
def begin(logits: Array, cache: Cache, positions: Array, room: int) -> State:
    """Return the state after prefill, with room for `room` tokens; `positions` [B] are those of the next tokens."""
    batch = positions.shape[0]
    tokens, log_probs = jnp.full((batch, room), -1, jnp.int32), jnp.zeros((batch, room), jnp.float32)
    return State(logits, cache, positions, tokens, log_probs, jnp.zeros((), jnp.int32), jnp.zeros(batch, bool))


@functools.partial(jax.jit, static_argnames=("config", "layout"), donate_argnames="state")
def decode(weights: Weights, batch: Batch, state: State, limit: Array, config: ModelConfig, layout: Layout) -> State:
    """Make tokens until there are `limit` of them or all rows have ended.

    A stop token is kept and ends its row. However the work is cut into calls, tokens are the same. The last token's logits
    are left for a next call, which begins by choosing from them: the cache always holds every token made.
    """
    layout = dataclasses.replace(layout, length=None)

    def going_on(state: State) -> Array:
        return (state.made < limit) & ~jnp.all(state.ended)

    def step(state: State) -> State:
        token, log_prob = next_token(batch, state)
        at = Tokens(state.positions[:, None], jnp.ones_like(state.positions)[:, None])
        logits, cache = one_token(weights, token, at, state.cache, config, layout)
        return State(
            logits, cache, state.positions + 1,
            jax.lax.dynamic_update_slice_in_dim(state.tokens, jnp.where(state.ended, -1, token)[:, None], state.made, axis=1),
            jax.lax.dynamic_update_slice_in_dim(state.log_probs, log_prob[:, None], state.made, axis=1),
            state.made + 1,
            state.ended | _any_of(token, batch.stop_ids),
        )  # fmt: skip

    return jax.lax.while_loop(going_on, step, state)


def next_token(batch: Batch, state: State) -> tuple[Array, Array]:
    """Return the next token of each row, int32 [B], and its log-probability under the model's own distribution."""
    controls, logits = batch.controls, state.logits
    penalties = jnp.any(
        (controls.repetition_penalty != 1) | (controls.frequency_penalty != 0) | (controls.presence_penalty != 0)
    )

    def with_penalties(logits: Array) -> Array:
        # Counted anew each time: where there are no penalties, nothing is carried along for them.
        rows = jax.lax.broadcasted_iota(jnp.int32, state.tokens.shape, 0)
        made = jnp.where(state.tokens >= 0, state.tokens, logits.shape[1])
        counts = jnp.zeros(logits.shape, jnp.int32).at[rows, made].add(1, mode="drop")
        return penalized(logits, batch.prompt, counts, controls)

    def without_stop(logits: Array) -> Array:
        stops = _any_of(jnp.arange(logits.shape[1]), batch.stop_ids)
        return jnp.where(stops[None, :] & (state.made < controls.min_tokens)[:, None], -jnp.inf, logits)

    changed = jax.lax.cond(penalties, with_penalties, lambda x: x, logits)
    changed = jax.lax.cond(jnp.any(state.made < controls.min_tokens), without_stop, lambda x: x, changed)
    keys = jax.vmap(_key, in_axes=(0, None))(batch.seeds, state.made)
    token = choose(changed, keys, controls)
    own = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    return token, own - jax.nn.logsumexp(logits, axis=-1)


def _key(seed: Array, number: Array) -> Array:
    key = jax.random.key(0)
    for word in (*seed, number):
        key = jax.random.fold_in(key, word)
    return key


def _any_of(tokens: Array, ids: Array) -> Array:
    return jnp.any(tokens[:, None] == ids[None, :], axis=1)
