"""The residual stream: norms, what layers add to it, massive activations.

By layer: the norm of a token's residual stream, how much of it attention and feed-forward layer have written, and the cosine
between what a layer reads and what it leaves (1: it changed nothing). An activation is massive where its magnitude is above 100
and above 1,000 times the median magnitude of its token's (Sun et al. 2024, arXiv:2402.17762).
"""

import functools
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.analysis.measure import Measure
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.ops.masks import Tokens


@config
class ResidualSettings:
    """What counts as massive."""

    magnitude: Annotated[float, Range(0)] = 100.0
    """Above this."""
    ratio: Annotated[float, Range(0)] = 1000.0
    """And above the median of the token's magnitudes times this."""
    listed: Annotated[int, Range(0)] = 5
    """Dimensions and positions that are named."""


SETTINGS = ResidualSettings()
READ = ("layer_in", "attn_out", "ffn_out", "resid")


def probe(view: View, settings: ResidualSettings) -> dict[str, Measure | float]:
    """Return means over real tokens by layer, and where massive activations are."""
    found = view.reduced(statistics_in_parallel if view.model.parallel_residual else statistics, *READ)
    real = view.rows.segments != 0
    by_layer = {
        name: np.array([_mean(of[layer][real]) for layer in of])
        for name, of in found.items()
        if name not in ("top", "median", "norm")
    }
    norms = np.array([found["norm"][layer][real] for layer in found["norm"]])
    growth = norms[-1].mean() / norms[0].mean()
    massive, where = _massive(found, real, view.rows.positions, settings)

    def of_layers(values: np.ndarray, unit: str, about: str) -> Measure:
        return Measure(values, ("layer",), unit=unit, about=about)

    return {
        "norm_by_layer": of_layers(norms.mean(axis=1), "", "mean norm of the residual stream after a layer"),
        "largest_norm_by_layer": of_layers(norms.max(axis=1), "", "the greatest of any token"),
        "growth": Measure(growth, about="mean norm after the last layer over that after the first"),
        "cosine_by_layer": of_layers(by_layer["cosine"], "", "cosine between what a layer reads and what it leaves"),
        "attention_share_by_layer": of_layers(
            by_layer["attention"], "", "norm of what attention writes over that of what it finds"
        ),
        "feed_forward_share_by_layer": of_layers(
            by_layer["feed_forward"], "", "the same of the feed-forward layer, which finds what attention left"
        ),
        "largest_by_layer": of_layers(
            np.array([found["top"][layer][real][:, 0].max() for layer in found["top"]]), "", "the greatest magnitude"
        ),
        "massive_by_layer": of_layers(massive, "activations a token", "massive activations, mean"),
        "massive": Measure(massive.sum(), unit="activations a token", about="massive activations of all layers, mean"),
        "massive_where": Measure(where, about="the dimensions and positions with most of them"),
    }


TOP = 4  # a token's greatest activations: where more are massive, the norm says so


def _mean(values: np.ndarray) -> float:
    """Return the mean of what is finite: a layer without a norm of its own may read a row of zeros, whose shares are 0 / 0."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def statistics(seen: dict[str, Array], at: Tokens, parallel: bool = False) -> dict[str, Array]:
    """Return of each token [R, L]: norms and shares of a layer, its greatest magnitudes [R, L, 2 x TOP: values, dimensions].

    A feed-forward layer finds what attention left, or where it runs beside attention (`parallel`) what that found itself.
    """
    before, written, after = (seen[site].astype(jnp.float32) for site in ("layer_in", "attn_out", "resid"))

    def norm(x: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1))

    sizes = jnp.abs(after)
    greatest = []
    for _ in range(TOP):
        place = jnp.argmax(sizes, axis=-1)
        greatest.append((jnp.max(sizes, axis=-1), place.astype(jnp.float32)))
        sizes = jnp.where(jnp.arange(sizes.shape[-1])[None, None] == place[..., None], -1.0, sizes)
    values, places = zip(*greatest, strict=True)
    return {
        "norm": norm(after),
        "cosine": jnp.sum(before * after, axis=-1) / (norm(before) * norm(after)),
        "attention": norm(written) / norm(before),
        "feed_forward": norm(seen["ffn_out"]) / norm(before if parallel else before + written),
        "top": jnp.stack([*values, *places], axis=-1),
        "median": jnp.median(jnp.abs(after), axis=-1),
    }


statistics_in_parallel = functools.partial(statistics, parallel=True)  # one object, so that one program serves all checkpoints


def _massive(
    found: dict[str, dict[int, np.ndarray]], real: np.ndarray, positions: np.ndarray, settings: ResidualSettings
) -> tuple[np.ndarray, str]:
    """Return massive activations a token by layer, and the dimensions and positions that have most, in words."""
    counts, dimensions, places = [], [], []
    for layer, top in found["top"].items():
        least = np.maximum(settings.magnitude, settings.ratio * found["median"][layer])
        there = (top[..., :TOP] > least[..., None]) & real[..., None]
        known = np.isfinite(found["median"][layer][real]).all()
        counts.append(there.sum() / real.sum() if known else np.nan)
        dimensions.append(top[..., TOP:][there].astype(int))
        places.append(np.broadcast_to(positions[..., None], there.shape)[there])
    if not np.all(np.isfinite(counts)):
        return np.array(counts), "not known: activations are not finite"
    if not np.any(counts):
        return np.array(counts), "none"
    named = ", ".join(f"{what} {_most(np.concatenate(of), settings.listed)}" for what, of in (
        ("dimensions", dimensions), ("positions", places)))  # fmt: skip
    return np.array(counts), named


def _most(numbers: np.ndarray, listed: int) -> str:
    values, counts = np.unique(numbers, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:listed]
    return " ".join(f"{values[place]} ({counts[place] / len(numbers):.0%})" for place in order)
