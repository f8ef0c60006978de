"""Held-out loss, perplexity and bits per byte."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxlm.objective import own
from jaxlm.objective.language_model import Sums
from jaxlm.ops import routing


def summarize(cross_entropy: float, correct: float, tokens: float, num_bytes: float) -> dict[str, float]:
    """Return loss (nats a token), perplexity, bits per byte of text, accuracy and the number of tokens, from sums.

    Bits per byte compares models with different tokenizers: the loss in bits, over the bytes that the targets stand for.
    """
    loss = cross_entropy / max(tokens, 1.0)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": cross_entropy / math.log(2) / num_bytes if num_bytes else math.nan,
        "accuracy": correct / max(tokens, 1.0),
        "tokens": tokens,
    }


def target_bytes(targets: np.ndarray, weights: np.ndarray, token_bytes: np.ndarray) -> int:
    """Return how many bytes of text the predicted tokens of a batch stand for."""
    return int(np.sum(token_bytes[targets] * (weights > 0)))


def evaluate(sums_of: Callable[[Any, Any], Any], params: Any, batches: Iterable[tuple[Any, int]]) -> dict[str, Any]:
    """Return an objective's means over all batches, and what routers did; each is placed and has its targets' bytes.

    Next-token prediction's are those of `summarize`; with an objective of the user's own they come first, and then its mean.
    """
    total, num_bytes = None, 0
    for batch, bytes_here in batches:
        sums = jax.tree.map(np.float64, jax.device_get(sums_of(params, batch)))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        num_bytes += bytes_here
    language = total.language if isinstance(total, own.Sums) else total
    if isinstance(language, Sums):
        means = summarize(float(language.cross_entropy), float(language.correct), float(language.tokens), num_bytes)
        means |= {"objective": float(total.total) / max(means["tokens"], 1.0)} if language is not total else {}
    else:
        with jax.transfer_guard("allow"):  # a handful of numbers, once an evaluation
            means = {name: float(value) for name, value in total.metrics().items()}
    return means | ({} if total.router is None else _describe_router(total.router))


def _describe_router(sums: Any) -> dict[str, Any]:
    """Return `routing.summarize` and each expert's share of the assignments, as lists over mixture layers."""
    load = np.asarray(sums.load, np.float64)
    share = load / np.maximum(load.sum(axis=-1, keepdims=True), 1.0)
    with jax.transfer_guard("allow"):  # a handful of numbers, once an evaluation
        values = {name: np.asarray(value).tolist() for name, value in routing.summarize(sums).items()}
    return values | {"router_load": np.round(share, 5).tolist()}
