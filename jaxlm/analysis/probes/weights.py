"""Weights and their updates: norms, ranks and spectra of every matrix, by kind and layer.

Stable rank is |W|_F^2 / |W|_2^2; effective rank the exponential of the entropy of the normalised singular values (Roy &
Vetterli 2007). An update is what was added since an earlier checkpoint: the one before, and the first of the series.
"""

import math
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import numpy as np

from jaxlm.analysis.measure import Measure
from jaxlm.analysis.spectra import Spectrum, singular_values, spectrum, tail_exponent
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.model.transformer import Transformer
from jaxlm.param import Param, named_leaves

_ABOUT = {
    "frobenius": "Frobenius norm, the root of the summed squares",
    "spectral": "the largest singular value",
    "stable_rank": "squared Frobenius over squared spectral norm",
    "effective_rank": "exp of the entropy of the normalised singular values",
}


@config
class WeightsConfig:
    """What is measured of weights."""

    largest: Annotated[int, Range(1)] = 1024
    """Matrices whose smaller side is above this get norms alone, the spectral one by power iteration."""
    since_first: bool = True
    """Also the update since the first checkpoint."""
    heads: bool = True
    """Also each head's part of the attention's matrices."""
    tail: bool = False
    """Also the exponent of the eigenvalues' power-law tail (arXiv:1901.08276)."""


SETTINGS = WeightsConfig()


class Placed(NamedTuple):
    """One kind of weight: its matrices [..., m, n] by layer; the layer None for what lies outside of the layers.

    Before the matrix stands one more dimension for experts, where there are any; `heads` is the axis of the matrix that divides
    into heads, and their number.
    """

    name: str
    layer: int | None
    matrix: np.ndarray
    heads: tuple[int, int] | None


def matrices(params: Transformer, spec: Mapping[str, Param]) -> list[Placed]:
    """Return every matrix and embedding of a model on the host, its layers apart: name "attention.q", layer 3, [m, n]."""
    leaves, period, found = named_leaves(params), len(params.blocks), []
    for name, param in spec.items():
        if param.kind not in ("matrix", "embedding"):
            continue
        values = np.asarray(leaves[name])
        if not name.startswith("blocks."):
            found.append(Placed(name, None, _as_matrix(values, param, 0), None))
            continue
        _, place, kind = name.split(".", 2)
        matrix = _as_matrix(values, param, param.stack)
        heads = _heads(param)
        found += [Placed(kind, int(place) + period * repeat, part, heads) for repeat, part in enumerate(matrix)]
    return sorted(found, key=lambda each: (each.name, each.layer or 0))


def _as_matrix(values: np.ndarray, param: Param, stack: int) -> np.ndarray:
    inward = stack + param.inputs
    return values.reshape(*param.shape[:stack], math.prod(param.shape[stack:inward]), math.prod(param.shape[inward:]))


def _heads(param: Param) -> tuple[int, int] | None:
    for place, axis in enumerate(param.axes):
        if axis in ("heads", "kv_heads"):
            return (-2 if place < param.stack + param.inputs else -1), param.shape[place]
    return None


def probe(view: View, settings: WeightsConfig) -> dict[str, Measure]:
    """Return norms and ranks of every matrix, and of what was added since the checkpoint before and the first."""
    own = matrices(view.params, view.spec)
    found = _measures(own, "", "", settings)
    if settings.heads:
        found |= _of_heads(own, settings)
    if settings.tail:
        alphas = [_tail(each.matrix) for each in own]
        found |= _by_layer("tail", own, alphas, "", "exponent of the power-law tail of the squared singular values")
    earlier = [("update", "since the checkpoint before", view.previous)]
    if settings.since_first and view.step != view.steps_so_far[0]:
        earlier.append(("update_since_first", "since the first checkpoint", view.first))
    for prefix, when, before in earlier:
        if before is not None:
            then = matrices(before.params, view.spec)
            pairs = list(zip(own, then, strict=True))
            change = [now._replace(matrix=now.matrix - past.matrix) for now, past in pairs]
            found |= _measures(change, f"{prefix}_", f" of the update {when}", settings)
            relative = [_over(_norm(moved.matrix), _norm(past.matrix)) for moved, (_, past) in zip(change, pairs, strict=True)]
            about = f"norm of the update {when} over that of the weights then"
            found |= _by_layer(f"{prefix}_relative", own, relative, "", f"{about}; none where those were all 0")
            found[f"mean_{prefix}_relative"] = _mean_of(relative, f"mean over matrices: {about}")
    return found


def _over(top: float, bottom: float) -> float:
    return top / bottom if bottom else math.nan


def _mean_of(values: list[float], about: str) -> Measure:
    """Return the mean of what is known, as a number; none where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return Measure(sum(known) / len(known) if known else math.nan, about=about)


def _norm(matrix: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(matrix, dtype=np.float64))))


def _tail(matrix: np.ndarray) -> float:
    return float(np.mean([tail_exponent(singular_values(part)) for part in matrix.reshape(-1, *matrix.shape[-2:])]))


def _measures(placed: list[Placed], prefix: str, of: str, settings: WeightsConfig) -> dict[str, Measure]:
    spectra = [spectrum(each.matrix, settings.largest) for each in placed]
    above = any(min(each.matrix.shape[-2:]) > settings.largest for each in placed)
    found = {}
    for field in Spectrum._fields:
        values = [getattr(one, field) for one in spectra]
        about = _ABOUT[field] + of
        if above and field != "frobenius":
            about += f"; of matrices above {settings.largest} wide by power iteration, effective ranks left out"
        means = [float(np.mean(value)) for value in values]
        found |= _by_layer(prefix + field, placed, means, "", about)
        if field in ("stable_rank", "effective_rank") and not prefix:
            found[f"mean_{field}"] = _mean_of(means, f"mean over matrices: {about}")
        experts = [(each, value) for each, value in zip(placed, values, strict=True) if np.ndim(value)]
        if experts and not prefix:
            found |= _by_layer(f"{field}_of_experts", [each for each, _ in experts], [value for _, value in experts], "", about)
    return found


def _of_heads(placed: list[Placed], settings: WeightsConfig) -> dict[str, Measure]:
    """Return norm and effective rank of each head's part; layers' parts are [m, n] with heads along one of the two."""
    with_heads = [each for each in placed if each.heads is not None]
    found = {}
    for name in dict.fromkeys(each.name for each in with_heads):
        of_name = [each for each in with_heads if each.name == name]
        spectra = [
            spectrum(np.stack(np.split(each.matrix, each.heads[1], axis=each.heads[0])), settings.largest) for each in of_name
        ]
        layers = [str(each.layer) for each in of_name]
        for field in ("frobenius", "effective_rank"):
            values = np.stack([getattr(one, field) for one in spectra])
            about = f"{_ABOUT[field]} of each head's part of {name}"
            found[f"{field}_of_heads.{name}"] = Measure(values, ("layer", "head"), {"layer": layers}, "", about)
    return found


def _by_layer(name: str, placed: list[Placed], values: list, unit: str, about: str) -> dict[str, Measure]:
    """Return one measure [weight, layer, ...] of what lies in layers, and one [weight] of what does not."""
    found = {}
    inside = [(each, value) for each, value in zip(placed, values, strict=True) if each.layer is not None]
    outside = [(each, value) for each, value in zip(placed, values, strict=True) if each.layer is None]
    if inside:
        weights, layers = ([*dict.fromkeys(key)] for key in zip(*((each.name, each.layer) for each, _ in inside), strict=True))
        layers = sorted(layers)
        grid = np.full((len(weights), len(layers), *np.shape(inside[0][1])), np.nan)
        for each, value in inside:
            grid[weights.index(each.name), layers.index(each.layer)] = value
        axes = ("weight", "layer", "expert")[: grid.ndim]
        found[name] = Measure(grid, axes, {"weight": weights, "layer": list(map(str, layers))}, unit, about)
    if outside:
        tables = [each.name for each, _ in outside]
        found[f"{name}_of_tables"] = Measure([value for _, value in outside], ("weight",), {"weight": tables}, unit, about)
    return found
