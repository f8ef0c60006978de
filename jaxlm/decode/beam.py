"""Beam search: the likeliest continuations, by keeping the likeliest beginnings; decisions are those of transformers."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.config import Range, config
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decode.cache import Cache, reorder
from jaxlm.decode.forward import extend
from jaxlm.decode.generate import Completion, Request, check_requests, read_prompts
from jaxlm.decode.rows import read_rows, turning_points
from jaxlm.decode.weights import Weights, prepare
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout
from jaxlm.model.config import ModelConfig
from jaxlm.ops.masks import Tokens

DEAD = np.float32(-1e9)  # the score of a beam that is none; minus infinity would make NaN of differences


@config
class Beams:
    """How beam search goes on and when it stops."""

    count: Annotated[int, Range(1)] = 4
    """Beginnings kept for each prompt (its beams)."""
    length_penalty: Annotated[float, Range(-10, 10)] = 1.0
    """Finished ones are compared by log-probability / length ** this; length counts the stop token. Greater favours longer."""
    early_stopping: Literal["full", "heuristic", "never"] = "heuristic"
    """When to stop before the length: full: with `count` finished (transformers: True); heuristic: once no running beam would
    beat the worst finished one at its present length (False); never: once none can at any length to come (the exact bound)."""


@dataclasses.dataclass
class Search:
    """What is kept for each prompt (rows) and beam (columns)."""

    running: np.ndarray  # float32: summed log-probabilities
    tokens: np.ndarray  # int32 [P, beams, made]
    log_probs: np.ndarray  # float32 [P, beams, made]
    finished: list[list[tuple[float, np.ndarray, np.ndarray]]]  # a prompt each: score, tokens, log-probabilities; best first
    open: np.ndarray  # bool [P]: whether anything may still get better


def beam_search(
    params: Any, model: ModelConfig, layout: Layout, prompts: Sequence[Sequence[int]], max_tokens: int, beams: Beams, *,
    tokenizer: Tokenizer | None = None, stop_ids: Sequence[int] | None = None, best: int = 1,
) -> list[list[tuple[float, Completion]]]:  # fmt: skip
    """Return for each prompt at most `best` of its likeliest continuations with their scores, best first.

    A continuation ends with one of `stop_ids` (None: the tokenizer's) or after `max_tokens`; of the (stop ids + 1) x `count`
    likeliest in every step those among the first `count` that end are finished, the likeliest others run on. What is found
    for a prompt does not depend on the others. Raises ConfigError as `generate` does.
    """
    if max_tokens < 1:
        raise ConfigError(f"beams search for continuations of 1 token or more: max_tokens = {max_tokens} asks for none")
    check_requests([Request(prompt=prompt) for prompt in prompts], max_tokens, model, layout)
    if best > beams.count:
        raise ConfigError(f"{best} continuations are asked of {beams.count} beams: set beams to {best} or more")
    stop_ids = tuple(tokenizer.stop_ids if stop_ids is None and tokenizer else stop_ids or ())
    candidates = max(2, 1 + len(stop_ids)) * beams.count
    if candidates > beams.count * model.vocab_size:
        raise ConfigError(f"{len(stop_ids)} stop ids leave none of {model.vocab_size} tokens to go on with: give fewer")
    weights = prepare(params, model, layout)
    state = read_prompts(weights, [Request(prompt=prompt) for prompt in prompts], max_tokens, model, layout)
    rows = np.repeat(np.arange(len(prompts)), beams.count).astype(np.int32)
    logits, cache = state.logits.at[rows].get(), reorder(state.cache, rows)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)[rows]
    search, anew = _begin(len(prompts), beams), turning_points(prompts, model)
    for made in range(1, max_tokens + 1):
        found = _candidates(logits, search.running.reshape(-1), len(prompts), candidates)
        scores, flat, log_probs = map(np.asarray, found)
        places = np.stack(np.divmod(flat, model.vocab_size), axis=-1)
        ends = np.isin(places[..., 1], stop_ids) | (made == max_tokens)
        parents = _take(search, scores, places, log_probs, ends, made, max_tokens, beams)
        if not search.open.any():
            break
        token, at = search.tokens[:, :, -1].reshape(-1, 1), (lengths + made - 1)[:, None]
        logits, cache = _step(weights, token, at, cache, parents, model, layout)
        if made in anew:
            continued = [[*prompts[row], *new] for row, new in zip(rows, search.tokens.reshape(len(rows), -1), strict=True)]
            logits, cache = read_rows(weights, continued, max(keys.shape[2] for keys in cache.keys), model, layout)
    return [
        [(score, _completion(tokens, log_probs, stop_ids, tokenizer)) for score, tokens, log_probs in done[:best]]
        for done in search.finished
    ]


def _step(
    weights: Weights, token: np.ndarray, at: np.ndarray, cache: Cache, parents: np.ndarray, model: ModelConfig, layout: Layout
) -> tuple[Array, Cache]:
    where = Tokens(at.astype(np.int32), np.ones_like(at, np.int32))
    return extend(weights, token, where, np.int32(1), reorder(cache, parents), model, layout)


@functools.partial(jax.jit, static_argnames=("prompts", "count"))
def _candidates(logits: Array, running: Array, prompts: int, count: int) -> tuple[Array, Array, Array]:
    """Return the `count` best of each prompt's beams x vocabulary: scores, flat places, and their own log-probabilities."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    scores = (running[:, None] + log_probs).reshape(prompts, -1)
    best, places = jax.lax.top_k(scores, count)
    return best, places, jnp.take_along_axis(log_probs.reshape(prompts, -1), places, axis=1)


def _begin(prompts: int, beams: Beams) -> Search:
    running = np.full((prompts, beams.count), DEAD, np.float32)
    running[:, 0] = 0.0  # the beams of a prompt are still the same: one of them is enough
    tokens, log_probs = (np.zeros((prompts, beams.count, 0), dtype) for dtype in (np.int32, np.float32))
    return Search(running, tokens, log_probs, [[] for _ in range(prompts)], np.ones(prompts, bool))


def _take(
    search: Search, scores: np.ndarray, places: np.ndarray, log_probs: np.ndarray, ends: np.ndarray, made: int,
    longest: int, beams: Beams,
) -> np.ndarray:  # fmt: skip
    """Finish what ended, choose what runs on, and return the row of the cache that each new beam continues.

    Arrays are [P, candidates], best first; `places` are (beam, token) pairs [P, candidates, 2].
    """
    grown = np.concatenate([_of(search.tokens, places[..., 0]), places[..., 1:]], axis=-1)
    grown_log_probs = np.concatenate([_of(search.log_probs, places[..., 0]), log_probs[..., None]], axis=-1)
    for prompt, done in enumerate(search.finished):
        if search.open[prompt]:
            for place in np.flatnonzero(ends[prompt, : beams.count] & (scores[prompt, : beams.count] > DEAD / 2)):
                score = float(scores[prompt, place]) / made**beams.length_penalty
                done.append((score, grown[prompt, place], grown_log_probs[prompt, place]))
            done.sort(key=lambda entry: -entry[0])
            del done[beams.count :]
    running = scores + np.where(ends, DEAD, np.float32(0.0))
    kept = np.argsort(-running, axis=1, kind="stable")[:, : beams.count]
    search.running = np.take_along_axis(running, kept, axis=1)
    search.tokens, search.log_probs = _of(grown, kept), _of(grown_log_probs, kept)
    beam = np.take_along_axis(places[..., 0], kept, axis=1)
    # No continuation of a beam scores higher than this.
    length = longest if beams.early_stopping == "never" and beams.length_penalty > 0 else made
    reachable = search.running[:, 0].astype(np.float64) / length**beams.length_penalty
    for prompt, done in enumerate(search.finished):
        full = len(done) == beams.count
        better = search.running[prompt, 0] > DEAD / 2 and (not full or reachable[prompt] > done[-1][0])
        search.open[prompt] &= better and not (full and beams.early_stopping == "full")
    return (beam + beams.count * np.arange(len(search.finished))[:, None]).reshape(-1).astype(np.int32)


def _of(entries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return [P, n, ...] from [P, m, ...] by places [P, n]."""
    return np.take_along_axis(entries, rows[..., None], axis=1)


def _completion(tokens: np.ndarray, log_probs: np.ndarray, stop_ids: Sequence[int], tokenizer: Tokenizer | None) -> Completion:
    stopped = int(tokens[-1]) in stop_ids
    made = tokens[: len(tokens) - stopped].tolist()
    text = tokenizer.decode_bytes(made).decode(errors="replace") if tokenizer else None
    return Completion(made, log_probs.tolist(), text, "stop" if stopped else "length")
