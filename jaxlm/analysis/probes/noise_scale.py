"""Gradient noise scale: at what batch size more rows stop making the gradient better, for the model and its parts.

B_simple = tr(S) / |G|^2 with S the covariance of single rows' gradients and G the true gradient, both estimated without bias
from gradient norms at two batch sizes (McCandlish et al. 2018, arXiv:1812.06162, appendix A.1); intervals by the jackknife. The
loss is that of the next token: routers' losses, which hold for whole batches, are left out. Of a run that trains adapters it is
the noise of the merged model, all of whose weights count.
"""

import functools
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.analysis.activations import placed
from jaxlm.analysis.measure import Measure, NotSuited
from jaxlm.analysis.similarity import evenly
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.data.packing import Batch
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.ops.cross_entropy import cross_entropy
from jaxlm.ops.masks import Tokens
from jaxlm.param import named_leaves, split


@config
class NoiseScaleConfig:
    """What the noise is measured on."""

    rows: Annotated[int, Range(3)] = 8
    """Rows whose gradients are taken, one by one; the interval narrows with their number."""


SETTINGS = NoiseScaleConfig()


class Norms(NamedTuple):
    """Of n rows' gradients, by group: float64 [groups] for their mean, [groups, n] for each."""

    mean: np.ndarray
    """Squared norm of the mean."""
    each: np.ndarray
    """Squared norm of each row's."""
    along: np.ndarray
    """Inner product of each row's with the mean."""

    def summed(self) -> "Norms":
        """Return them for all groups together, as one."""
        return Norms(*(x.sum(axis=0, keepdims=True) for x in self))


class NoiseScale(NamedTuple):
    """Estimates by group, each [groups]; rows are the unit of a batch size."""

    scale: np.ndarray
    """tr(S) / |G|^2, in rows; NaN where the estimate of |G|^2 is not above 0: the noise hides the gradient."""
    low: np.ndarray
    high: np.ndarray
    """Its 95 % interval, by the jackknife over rows; infinite where noise may hide the gradient."""
    noise: np.ndarray
    """tr(S), of one row."""
    signal: np.ndarray
    """|G|^2; it may come out below 0."""


def noise_scale(norms: Norms) -> NoiseScale:
    """Return the noise scale of groups of weights, from norms of n rows' gradients, n > 2.

    |G|^2 = (n |G_n|^2 - |G_1|^2) / (n - 1) and tr(S) = (|G_1|^2 - |G_n|^2) / (1 - 1 / n), where |G_1|^2 is a mean over rows.
    The interval is that of signal / noise, whose estimate is the nearer to normal, turned over.
    """
    n = norms.each.shape[1]
    noise, signal = _estimates(norms.mean, norms.each.mean(axis=1), n)
    # Without row i the mean is (n G - g_i) / (n - 1).
    means = (n**2 * norms.mean[:, None] - 2 * n * norms.along + norms.each) / (n - 1) ** 2
    others = (norms.each.sum(axis=1, keepdims=True) - norms.each) / (n - 1)
    without = _ratio(*reversed(_estimates(means, others, n - 1)))
    spread = np.sqrt((n - 1) * np.mean((without - without.mean(axis=1, keepdims=True)) ** 2, axis=1))
    inverse = _ratio(signal, noise)
    low, high = (_inverted(inverse + 1.96 * sign * spread) for sign in (1, -1))
    # Identical rows have no noise, but for rounding.
    none = noise <= 1e-6 * np.abs(signal)
    scale = _ratio(noise, np.where(signal > 0, signal, np.nan))
    return NoiseScale(*(np.where(none, 0.0, x) for x in (scale, low, high)), noise, signal)


def _estimates(mean: np.ndarray, single: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    return (single - mean) / (1 - 1 / n), (n * mean - single) / (n - 1)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)


def _inverted(values: np.ndarray) -> np.ndarray:
    return np.divide(1.0, values, out=np.full(values.shape, np.inf), where=values > 0)


def probe(view: View, settings: NoiseScaleConfig) -> dict[str, Measure]:
    """Return the noise scale of the whole model, and of each kind of weight."""
    if (form := view.experiment.data.form) in ("preferences", "labels"):
        raise NotSuited(f"rows of {form} are compared with each other: none has a loss, and a gradient, of its own")
    if objective := view.experiment.objective:
        raise NotSuited(f"objective = {objective!r} may hold for whole batches alone: its rows have no gradients that add up")
    counted = np.flatnonzero(view.rows.weights.any(axis=1))
    if len(counted) < 3:
        raise NotSuited(f"the noise scale needs three rows with targets or more, and there are {len(counted)}: --rows 8")
    picked = evenly(counted, settings.rows)
    names, norms = gradient_norms(view, Batch(*(x[picked] for x in view.rows[:5])))
    weights = [name.split(".", 2)[-1] if name.startswith("blocks.") else name for name in names]
    kinds = list(dict.fromkeys(weights))
    by_kind = Norms(*(np.stack([x[[w == kind for w in weights]].sum(axis=0) for kind in kinds]) for x in norms))
    whole, parts = noise_scale(norms.summed()), noise_scale(by_kind)
    tokens = float(view.rows.weights[picked].sum() / len(picked))
    about = f"tr(S) / |G|^2 from {len(picked)} rows of {tokens:.0f} targets" + _of_what(view)
    found = {
        "noise_scale": Measure(whole.scale[0], unit="rows", about=about),
        "noise_scale_tokens": Measure(whole.scale[0] * tokens, unit="tokens", about=f"the same in targets; {about}"),
        "low": Measure(whole.low[0], unit="rows", about="lower end of its 95 % interval, by the jackknife"),
        "high": Measure(whole.high[0], unit="rows", about="upper end; none where noise may hide the gradient altogether"),
        "signal": Measure(whole.signal[0], about="estimated squared norm of the true gradient"),
        "noise": Measure(whole.noise[0], about="estimated trace of the covariance of single rows' gradients"),
    }
    for name, values in (("scale", parts.scale), ("low", parts.low), ("high", parts.high)):
        found[f"{name}_by_weight"] = Measure(values, ("weight",), {"weight": kinds}, "rows", f"{name} of each kind of weight")
    return found


def _of_what(view: View) -> str:
    """Return what the gradients are of, where that is not plainly the training's."""
    mixture = "; without the routers' losses" if view.model.moe_layers else ""
    return mixture + ("; of the merged model, not of its adapters" if view.experiment.lora.rank else "")


def gradient_norms(view: View, batch: Batch) -> tuple[list[str], Norms]:
    """Return the names of all trained weights, and the norms of the gradients of rows [R, L] for each.

    The loss is that of training without dropout, the routers' noise and their losses. A row's gradient is that of its summed
    loss times R over all targets, so that their mean is the batch's own. Rows are gone through twice: no two rows'
    gradients are in memory.
    """
    rows, total = len(batch.tokens), float(batch.weights.sum())
    gradient = functools.partial(_gradient, model=view.model, layout=view.layout, z_loss=view.experiment.z_loss)

    def part_of(row: int) -> Any:
        """Return a row's gradient over the number of rows: what it adds to the mean."""
        one = Batch(*(x[row : row + 1] for x in batch[:5]))
        return gradient(view.params, placed(one, view.layout), jnp.float32(1 / total))

    mean = functools.reduce(_added, map(part_of, range(rows)))
    products = [jax.device_get(_products(part_of(row), mean)) for row in range(rows)]
    each, along = (np.stack([jax.tree.leaves(pair[which]) for pair in products], axis=1).astype(float) for which in (0, 1))
    own = np.array(jax.tree.leaves(jax.device_get(_products(mean, mean)[0])), float)
    return list(named_leaves(mean)), Norms(own, rows**2 * each, rows * along)


@functools.partial(jax.jit, static_argnames=("model", "layout", "z_loss"))
def _gradient(params: Any, batch: Batch, factor: Array, model: ModelConfig, layout: Layout, z_loss: float) -> Any:
    def scaled(params: Any) -> Array:
        at = Tokens(batch.positions, batch.segments)
        x_BLD, _ = transformer.forward(params, batch.tokens, at, model, layout)
        head, softcap = transformer.head(params), model.logit_softcap
        return factor * cross_entropy(x_BLD, head, batch.targets, batch.weights, softcap=softcap, z_loss=z_loss)[0]

    spec = transformer.spec(model)
    return split(jax.grad(scaled)(params), spec)[0]


@jax.jit
def _added(left: Any, right: Any) -> Any:
    return jax.tree.map(jnp.add, left, right)


@jax.jit
def _products(left: Any, right: Any) -> tuple[Any, Any]:
    """Return |left|^2 and left . right, leaf by leaf."""
    return jax.tree.map(lambda x: jnp.sum(x * x), left), jax.tree.map(lambda x, y: jnp.sum(x * y), left, right)
