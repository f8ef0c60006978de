"""Parameters between and among checkpoints: points on a line, running averages; and the loss along the way."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@jax.jit
def between(start: Any, end: Any, part: Array) -> Any:
    """Return (1 - part) start + part end, leaf by leaf: a point on the straight line between two trees of weights."""
    # Written so that equal ends give back themselves, to the bit.
    return jax.tree.map(lambda a, b: a + part * (b - a), start, end)


class Path(NamedTuple):
    """The loss along a straight line of weights."""

    parts: np.ndarray
    losses: np.ndarray
    barrier: float
    """How far the loss rises above the line between those of the ends, at most; 0 where it never does."""


def along(loss_of: Callable[[Any], float], start: Any, end: Any, points: int) -> Path:
    """Return the loss at `points` places (2 or more) from one tree of weights to another, both ends included.

    The barrier is max over t of L(t) - ((1 - t) L(0) + t L(1)) (arXiv:2110.06296): between ends of equal loss it is the error
    barrier of linear mode connectivity (Frankle et al. 2019, arXiv:1912.05671).
    """
    parts = np.linspace(0.0, 1.0, points)
    # The end itself, for a + (b - a) is b only up to rounding.
    inner = [loss_of(between(start, end, jnp.float32(part))) for part in parts[1:-1]]
    losses = np.array([loss_of(start), *inner, loss_of(end)])
    return Path(parts, losses, float(np.max(losses - ((1 - parts) * losses[0] + parts * losses[-1]))))


class Running(NamedTuple):
    """Averages over a series of trees of weights so far."""

    count: int
    mean: Any
    """Of all with equal weight."""
    decayed: dict[float, Any]
    """By decay d: of all, the first with weight d^(n-1), and each later one (1 - d) times d for each that came after it."""
    latest: tuple[Any, ...]
    """The last few, oldest first."""


def begun(weights: Any, decays: Sequence[float]) -> Running:
    """Return the averages over one tree of weights."""
    return Running(1, weights, dict.fromkeys(decays, weights), (weights,))


def joined_by(running: Running, weights: Any, keep: int) -> Running:
    """Return the averages with one more tree of weights, keeping the last `keep`."""
    count = running.count + 1
    mean = between(running.mean, weights, jnp.float32(1 / count))
    decayed = {decay: between(average, weights, jnp.float32(1 - decay)) for decay, average in running.decayed.items()}
    return Running(count, mean, decayed, (*running.latest, weights)[-max(keep, 1) :])


def mean_of(trees: Sequence[Any]) -> Any:
    """Return the mean of one or more trees of weights."""
    steps = enumerate(trees[1:], start=2)
    return functools.reduce(lambda mean, step: between(mean, step[1], jnp.float32(1 / step[0])), steps, trees[0])
