"""Continuations of prompts: prefill once, then the decoding loop, with what it made read out between short stretches."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decode.loop import Batch, State, begin, decode
from jaxlm.decode.rows import ROUNDING, read_rows, rounded, turning_points
from jaxlm.decode.sampling import Sampling, controls_of
from jaxlm.decode.text import TextStream
from jaxlm.decode.weights import Weights, prepare
from jaxlm.errors import ConfigError, DataError
from jaxlm.layout import Layout
from jaxlm.model.config import ModelConfig

# Stretches of the loop grow up to this many tokens: the first ones are seen at once, later ones cost no time in between.
LONGEST_STRETCH = 32
STOP_IDS = 8  # places for stop ids, or a multiple, so that few shapes are compiled

Finish = Literal["stop", "stop string", "length"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to continue. What comes of it does not depend on its place in a batch, nor on the others in it.

    (`sample` tells apart several continuations of one prompt with one seed.) Products of other batch sizes are rounded
    otherwise, so that a token may differ where two are as likely to within the last digits.
    """

    prompt: Sequence[int]
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    sample: int = 0


@dataclasses.dataclass
class Completion:
    """A continuation, as far as it is; `finish` is None as long as it goes on."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    """What was made, without a stop token, but with those that spell a stop string."""
    log_probs: list[float] = dataclasses.field(default_factory=list)
    """Log-probability of each, and of the stop token where one ended it, under the model's own distribution (before any
    control)."""
    text: str | None = None
    """Up to a stop string, whole characters; None without a tokenizer."""
    finish: Finish | None = None

    @property
    def total(self) -> float:
        """The log-probability of all of it."""
        return float(sum(self.log_probs))

    @property
    def mean(self) -> float:
        """The same, a token."""
        return self.total / max(1, len(self.log_probs))


def generate(
    params: Any, config: ModelConfig, layout: Layout, requests: Sequence[Request], max_tokens: int, *,
    tokenizer: Tokenizer | None = None, stop_ids: Sequence[int] | None = None, stop: Sequence[str] = (),
) -> list[Completion]:  # fmt: skip
    """Return a completion of at most `max_tokens` tokens for each request, all in one batch.

    `params` are a model's parameters, or `decode.weights.prepare`d ones, which saves that work where many calls follow. A
    completion ends with one of `stop_ids` (None: the tokenizer's), or where its text holds one of the strings `stop`.
    Raises ConfigError where a prompt is empty, holds unknown ids or leaves no room below `config.max_length`, or where the
    mesh cannot divide the requests.
    """
    *_, completions = stream(params, config, layout, requests, max_tokens, tokenizer=tokenizer, stop_ids=stop_ids, stop=stop)
    return completions


def stream(
    params: Any, config: ModelConfig, layout: Layout, requests: Sequence[Request], max_tokens: int, *,
    tokenizer: Tokenizer | None = None, stop_ids: Sequence[int] | None = None, stop: Sequence[str] = (),
) -> Iterator[list[Completion]]:  # fmt: skip
    """Yield the completions that `generate` returns, again and again as they grow: text that was there never changes."""
    check_requests(requests, max_tokens, config, layout)
    if stop and tokenizer is None:
        raise DataError("stop strings are found in text: this model has no tokenizer; give ids to stop at instead")
    if not max_tokens:
        yield [Completion(text=None if tokenizer is None else "", finish="length") for _ in requests]
        return
    stop_ids = tuple(tokenizer.stop_ids if stop_ids is None and tokenizer else stop_ids or ())
    weights = prepare(params, config, layout)
    batch = batch_of(requests, stop_ids, config)
    state = read_prompts(weights, requests, max_tokens, config, layout)
    yield from follow(weights, batch, requests, state, max_tokens, stop_ids, config, layout, tokenizer, stop)


def follow(
    weights: Weights, batch: Batch, requests: Sequence[Request], state: State, max_tokens: int, stop_ids: Sequence[int],
    config: ModelConfig, layout: Layout, tokenizer: Tokenizer | None = None, stop: Sequence[str] = (),
    last: list[State] | None = None,
) -> Iterator[list[Completion]]:  # fmt: skip
    """Run the loop from a state in stretches and yield the completions after each; `last` takes the state as it then is."""
    rows, anew = len(requests), turning_points([request.prompt for request in requests], config)
    completions = [Completion() for _ in range(rows)]
    texts = [TextStream(tokenizer, stop) for _ in range(rows)] if tokenizer else [None] * rows
    made, stretch, cut = 0, 1, 0
    while made < max_tokens and not all(completion.finish for completion in completions):
        limit = min(made + stretch, max_tokens, *(turn for turn in anew if turn > made))
        state = decode(weights, batch, state, np.int32(limit), config, layout)
        if limit in anew:
            state = _read_anew(weights, requests, state, config, layout)
        if last is not None:
            last[:] = [state]
        tokens, log_probs = np.asarray(state.tokens)[:, made:limit], np.asarray(state.log_probs)[:, made:limit]
        for row, completion in enumerate(completions):
            _take(completion, texts[row], tokens[row], log_probs[row], stop_ids)
            if limit == max_tokens and completion.finish is None:
                completion.finish = "length"
                _finish(completion, texts[row])
        ended = [completion.finish is not None for completion in completions]
        found = sum(completion.finish == "stop string" for completion in completions)
        if found > cut and not all(ended):
            # Placed as the old ones are, or the loop would be compiled anew.
            cut, state = found, state.replace(ended=jax.device_put(np.array(ended), state.ended.sharding))
        made, stretch = limit, min(2 * stretch, LONGEST_STRETCH)
        yield completions


def _read_anew(weights: Weights, requests: Sequence[Request], state: State, config: ModelConfig, layout: Layout) -> State:
    # What follows the end of a row is of no matter, as long as it is a token.
    made = np.maximum(np.asarray(state.tokens)[:, : int(state.made)], 0).tolist()
    rows = [[*request.prompt, *tokens] for request, tokens in zip(requests, made, strict=True)]
    slots = max(keys.shape[2] for keys in state.cache.keys)
    logits, cache = read_rows(weights, rows, slots, config, layout)
    return state.replace(logits=logits, cache=cache)


def _take(
    completion: Completion, text: TextStream | None, tokens: np.ndarray, log_probs: np.ndarray, stop_ids: Sequence[int]
) -> None:
    for token, log_prob in zip(tokens.tolist(), log_probs.tolist(), strict=True):
        if completion.finish is not None or token < 0:
            return
        completion.log_probs.append(log_prob)
        if token in stop_ids:
            completion.finish = "stop"
            _finish(completion, text)
            return
        completion.tokens.append(token)
        if text is not None:
            text.feed(token)
            completion.text = text.text
            if text.stopped:
                completion.finish = "stop string"


def _finish(completion: Completion, text: TextStream | None) -> None:
    if text is not None:
        text.finish()
        completion.text = text.text


def check_requests(requests: Sequence[Request], max_tokens: int, config: ModelConfig, layout: Layout) -> None:
    """Raise ConfigError where requests cannot be met, or not as one batch on this mesh."""
    if not requests:
        raise ConfigError("there is no prompt: give one at least")
    if max_tokens < 0:
        raise ConfigError(f"max_tokens = {max_tokens} must be 0 or more")
    ways = layout.ways("batch", jax.sharding.get_mesh().shape)
    if len(requests) % ways:
        raise ConfigError(
            f"{len(requests)} requests do not divide over {ways} parts of the mesh: give a multiple of {ways}, or a layout "
            "with batch=None, which keeps every row whole on each device"
        )
    if any(len(request.prompt) == 0 for request in requests):
        raise ConfigError("a prompt is empty: begin it with the tokenizer's bos_id at least")
    unknown = next((i for request in requests for i in request.prompt if not 0 <= i < config.vocab_size), None)
    if unknown is not None:
        raise ConfigError(f"a prompt holds token {unknown}: this model knows 0 to {config.vocab_size - 1}")
    longest = max(len(request.prompt) for request in requests)
    if longest + max_tokens > config.max_length:
        raise ConfigError(
            f"a prompt of {longest} tokens and {max_tokens} new ones exceed model.max_length = {config.max_length}: "
            f"ask for at most {max(0, config.max_length - longest)}"
        )


def batch_of(requests: Sequence[Request], stop_ids: Sequence[int], config: ModelConfig) -> Batch:
    """Return what the loop needs to know of the requests."""
    prompt = np.zeros((len(requests), config.vocab_size), bool)
    for row, request in enumerate(requests):
        prompt[row, np.asarray(request.prompt)] = True
    stops = np.full(rounded(max(1, len(stop_ids)), STOP_IDS), -1, np.int32)
    stops[: len(stop_ids)] = stop_ids
    words = [(request.seed & 0xFFFFFFFF, request.seed >> 32 & 0xFFFFFFFF, request.sample) for request in requests]
    return Batch(controls_of([request.sampling for request in requests]), np.array(words, np.uint32), prompt, stops)


def read_prompts(weights: Weights, requests: Sequence[Request], max_tokens: int, config: ModelConfig, layout: Layout) -> State:
    """Return the state after prefill."""
    lengths = np.array([len(request.prompt) for request in requests], np.int32)
    slots = rounded(int(lengths.max()) + max_tokens, ROUNDING)
    logits, cache = read_rows(weights, [request.prompt for request in requests], slots, config, layout)
    return begin(logits, cache, lengths, rounded(max_tokens, ROUNDING))


def best(completions: Sequence[Completion], count: int, by: Literal["mean", "total"] = "mean") -> list[Completion]:
    """Return the `count` completions of the greatest log-probability, a token or in all, best first."""
    return sorted(completions, key=lambda completion: getattr(completion, by), reverse=True)[:count]


def generate_text(
    params: Any, config: ModelConfig, layout: Layout, tokenizer: Tokenizer, prompts: Sequence[str], max_tokens: int,
    sampling: Sampling, seed: int,
) -> list[str]:  # fmt: skip
    """Return the continuation of each prompt as text, until the end of the document or `max_tokens`, or the model's length."""
    requests = [
        Request(prompt=encode_prompt(tokenizer, prompt), sampling=sampling, seed=seed, sample=prompts[:number].count(prompt))
        for number, prompt in enumerate(prompts)
    ]
    limit = min(max_tokens, config.max_length - max(len(request.prompt) for request in requests))
    made = generate(params, config, layout, requests, max(limit, 0), tokenizer=tokenizer)
    return [completion.text or "" for completion in made]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return a text to continue as ids, begun as at the tokenizer's home; an empty one is a bos, whatever that does."""
    return [*tokenizer.prefix_ids, *tokenizer.encode(prompt)] or [tokenizer.bos_id]
