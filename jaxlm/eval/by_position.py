"""What a model makes of every token of long rows: losses by position, by the strided protocol, and beside another reading."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.errors import ConfigError
from jaxlm.eval.language_model import summarize
from jaxlm.eval.reach import check_reach
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.ops.log_probs import target_log_probs
from jaxlm.ops.masks import Tokens

Report = Callable[[int], None]
"""Told of how many tokens were read."""


def token_losses(
    params: Any, tokens: np.ndarray, model: ModelConfig, layout: Layout, batch_size: int = 1, report: Report | None = None
) -> np.ndarray:
    """Return the loss of every next token in nats, float32 [R, L], of rows of token ids [R, L + 1].

    Each row is read once, from its first token on, and its logits are never in memory all together. Raises DataError where the
    model cannot read so many tokens.
    """
    check_reach(tokens.shape[1] - 1, model)
    found = np.zeros((len(tokens), tokens.shape[1] - 1), np.float32)
    for start in range(0, len(tokens), batch_size):
        # The last batch is filled up, so that one shape is compiled.
        part = tokens[np.arange(start, start + batch_size) % len(tokens)]
        losses = np.asarray(_losses(params, *_placed(part, layout), model, layout))[: len(tokens) - start]
        found[start : start + batch_size] = losses
        if report:
            report(losses.size)
    return found


def strided_losses(
    params: Any, tokens: np.ndarray, model: ModelConfig, layout: Layout, length: int, stride: int, batch_size: int = 1,
    report: Report | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the loss of every target of rows [R, L + 1] by windows of `length` tokens moved by `stride`, float32 [R, L].

    Of each window only the last `stride` targets count, of a row's first window all (the protocol of perplexity on long texts:
    ALiBi, arXiv:2108.12409): each target has between `length` - `stride` + 1 and `length` tokens before it, those of the first
    window fewer. The last window ends where the row does. Raises ConfigError where `stride` is not from 1 to `length`.
    """
    if not 1 <= stride <= length:
        raise ConfigError(f"stride = {stride} must be from 1 to the length of a window, {length}")
    targets = tokens.shape[1] - 1
    length = min(length, targets)
    ends = [*range(length, targets, stride), targets]
    windows = np.concatenate([tokens[:, end - length : end + 1] for end in ends])
    losses = token_losses(params, windows, model, layout, batch_size, report).reshape(len(ends), len(tokens), length)
    # What an earlier window says of its targets counts.
    news = (end - before for before, end in itertools.pairwise([0, *ends]))
    return np.concatenate([of_window[:, length - new :] for new, of_window in zip(news, losses, strict=True)], axis=1)


def by_position(losses: np.ndarray, edges: Sequence[int], num_bytes: np.ndarray | None = None) -> list[dict[str, float]]:
    """Return the means of losses [R, L] between neighbouring `edges`, places in a row: {from, to, loss, perplexity, tokens}.

    The first is included, the last is not. With the bytes that each target stands for, [R, L], also bits_per_byte.
    """
    bins = []
    for first, last in itertools.pairwise(edges):
        part = losses[:, first:last].astype(np.float64)
        size = 0 if num_bytes is None else int(num_bytes[:, first:last].sum())
        means = summarize(float(part.sum()), 0.0, float(part.size), size)
        kept = ("loss", "perplexity", "tokens") if num_bytes is None else ("loss", "perplexity", "bits_per_byte", "tokens")
        bins.append({"from": int(first), "to": int(last)} | {name: means[name] for name in kept})
    return bins


def short_context(
    params: Any, tokens: np.ndarray, trained: ModelConfig, extended: ModelConfig, layout: Layout, batch_size: int = 1,
    report: Report | None = None,
) -> np.ndarray:  # fmt: skip
    """Return how much greater the loss of each token is as `extended` than as `trained`, float32 [R, L] in nats.

    Exactly 0 where a method leaves short rows as they are: Self-Extend in all that fit its window.
    """
    as_extended, as_trained = (token_losses(params, tokens, model, layout, batch_size, report) for model in (extended, trained))
    return as_extended - as_trained


class Memory(NamedTuple):
    """Bytes of a device that a program takes, as the compiler lays them out."""

    arguments: int  # parameters and tokens
    temporary: int  # all that it needs besides, at its peak
    outputs: int

    @property
    def peak(self) -> int:
        """All that must be in memory at once."""
        return sum(self)


def memory(params: Any, tokens: np.ndarray, model: ModelConfig, layout: Layout) -> Memory:
    """Return what `token_losses` takes to read rows [R, L + 1] as one batch."""
    found = _losses.lower(params, *_placed(tokens, layout), model, layout).compile().memory_analysis()
    return Memory(found.argument_size_in_bytes, found.temp_size_in_bytes, found.output_size_in_bytes)


def _placed(tokens: np.ndarray, layout: Layout) -> tuple[Array, Array]:
    """Return what is read and what is predicted, of rows of token ids [R, L + 1]."""
    place = jax.NamedSharding(jax.sharding.get_mesh(), layout.spec("batch", "length"))
    return jax.device_put((tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32)), place)


@functools.partial(jax.jit, static_argnames=("model", "layout"))
def _losses(params: Any, tokens: Array, targets: Array, model: ModelConfig, layout: Layout) -> Array:
    positions = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1, out_sharding=jax.typeof(tokens).sharding)
    x_BLD, _ = transformer.forward(params, tokens, Tokens(positions), model, layout)
    return -target_log_probs(x_BLD, transformer.head(params), targets, softcap=model.logit_softcap).log_probs
