"""What heads look at: distance, entropy, the token before, the first token, and induction.

In the rows: how far back a head looks, and how evenly; how much of its attention goes to the token before (a previous-token
head) and to the first of the document (a sink). In random tokens that are said twice: how much goes from each token of the
repetition to the one that followed it the first time (an induction head, Olsson et al. 2022, arXiv:2209.11895), and what that
is worth, in accuracy and loss.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.analysis.measure import Measure
from jaxlm.analysis.random_text import drawn, vocabulary
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.data.packing import Batch
from jaxlm.ops.masks import Tokens, visible


@config
class AttentionSettings:
    """The repeated random tokens."""

    repeated: Annotated[int, Range(2)] = 64
    """Different tokens that are said twice; fewer where rows, or the tokens that occur in them, hold no more."""
    rows: Annotated[int, Range(1)] = 8
    """Rows of them."""


SETTINGS = AttentionSettings()


def probe(view: View, settings: AttentionSettings) -> dict[str, Measure | float]:
    """Return means by layer and head, and the best head of each kind."""
    found = {name: _mean(of) for name, of in view.reduced(habits, "attention").items()}
    twice = repeated(view, settings)
    found["induction"] = np.stack([x.mean(axis=0) for x in view.reduced(induction, "attention", batch=twice)["score"].values()])
    about = {
        "distance": ("tokens", "mean distance that a query looks back"),
        "entropy": ("nats", "of a query's attention, mean"),
        "evenness": ("", "entropy over the most there can be, of all that a query sees"),
        "previous": ("", "attention to the token before, mean"),
        "first": ("", "attention to the first token of the document in the row, mean"),
        "induction": ("", "attention to the token after the same token's first occurrence, in repeated random tokens, mean"),
    }
    measures: dict[str, Measure | float] = {
        f"{name}_by_head": Measure(found[name], ("layer", "head"), unit=unit, about=said)
        for name, (unit, said) in about.items()
    }
    for name in ("induction", "previous", "first"):
        measures[f"best_{name}"] = Measure(found[name].max(), about=f"the head with most: {about[name][1]}")
        heads = [f"head {of_layer.argmax()} ({of_layer.max():.2f})" for of_layer in found[name]]
        measures[f"best_{name}_heads"] = Measure(
            heads, ("layer",), about=f"the head of each layer with most of: {about[name][1]}"
        )
    measures |= {f"mean_{name}": Measure(found[name].mean(), unit=about[name][0]) for name in ("distance", "entropy")}
    return measures | _copying(view, twice)


def _mean(of: dict[int, np.ndarray]) -> np.ndarray:
    """Return [layers, heads] means over queries that have a choice, of sums [R, heads, 2: sum, queries]."""
    sums = np.stack([x.sum(axis=0, dtype=np.float64) for x in of.values()])
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def habits(seen: dict[str, Array], at: Tokens) -> dict[str, Array]:
    """Return sums over the queries of each row that see more than themselves, [R, heads, 2: sum, how many]."""
    weights, at = jax.reshard((seen["attention"], at), jax.P())
    behind = (at.positions[:, :, None] - at.positions[:, None, :])[:, None]
    plain = jnp.sum(visible(at, at, causal=True), axis=-1)  # a window sees fewer: its evenness is of what it could see
    counts = ((at.segments != 0) & (at.positions > 0)).astype(jnp.float32)[:, None]
    entropy = jnp.sum(jax.scipy.special.entr(weights), axis=-1)
    most = jnp.log(jnp.maximum(plain, 2).astype(jnp.float32))[:, None]
    same = (at.segments[:, :, None] == at.segments[:, None, :])[:, None]
    by_query = {
        "distance": jnp.sum(weights * behind, axis=-1),
        "entropy": entropy,
        "evenness": entropy / most,
        "previous": jnp.sum(jnp.where(same & (behind == 1), weights, 0.0), axis=-1),
        "first": jnp.sum(jnp.where(same & (at.positions == 0)[:, None, None], weights, 0.0), axis=-1),
    }
    queries = jnp.broadcast_to(jnp.sum(counts, axis=-1), weights.shape[:2])
    return {name: jnp.stack([jnp.sum(x * counts, axis=-1), queries], axis=-1) for name, x in by_query.items()}


def repeated(view: View, settings: AttentionSettings) -> Batch:
    """Return rows of a first token and n different random ones that are said twice, [rows, 2 n], the repetition counting.

    The same for every checkpoint, drawn from `random_text.vocabulary`.
    """
    first = 0 if view.tokenizer is None else view.tokenizer.bos_id
    known, rng = np.setdiff1d(vocabulary(view), [first]), np.random.default_rng(0)
    count = max(1, min(settings.repeated, (view.rows.tokens.shape[1] - 1) // 2, len(known)))
    said = np.stack([drawn(known, count, rng) for _ in range(settings.rows)])
    row = np.concatenate([np.full((settings.rows, 1), first), said, said], axis=1).astype(np.int32)
    positions = np.broadcast_to(np.arange(2 * count, dtype=np.int32), (settings.rows, 2 * count))
    weights = np.broadcast_to(positions >= count, positions.shape).astype(np.float32)
    return Batch(row[:, :-1], row[:, 1:], weights, np.ones_like(positions), positions.copy())


def induction(seen: dict[str, Array], at: Tokens) -> dict[str, Array]:
    """Return the mean attention [R, heads] of each token of the repetition to the one after its first occurrence."""
    weights = jax.reshard(seen["attention"], jax.P())
    count = weights.shape[2] // 2  # places 1 .. n, then again from n + 1: a row ends one before the last of them
    queries = jnp.arange(weights.shape[2])
    target = (queries[:, None] - (count - 1) == queries[None, :]) & (queries[:, None] > count)
    score = jnp.sum(jnp.where(target[None, None], weights, 0.0), axis=(2, 3))
    return {"score": score / max(1, count - 1)}


def _copying(view: View, twice: Batch) -> dict[str, Measure | float]:
    """Return how well the repetition is foretold, and how much better than the first time; its first token cannot be."""
    scores, count = view.scores(batch=twice), twice.tokens.shape[1] // 2
    first, again = scores.loss[:, :count].mean(), scores.loss[:, count + 1 :].mean() if count > 1 else np.nan
    accuracy = scores.correct[:, count + 1 :].mean() if count > 1 else np.nan
    return {
        "repeated_tokens": Measure(count, unit="tokens", about="different random tokens that are said twice in a row"),
        "copying_accuracy": Measure(accuracy, about="share of repeated random tokens that are foretold"),
        "copying_gain": Measure(first - again, unit="nats", about="loss of random tokens the first time, less when repeated"),
    }
