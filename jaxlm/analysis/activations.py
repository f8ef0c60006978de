"""Activations of a whole forward pass, by name: what runs through a scan over layers leaves it as an output."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.analysis.measure import NotSuited
from jaxlm.data.packing import Batch
from jaxlm.errors import ConfigError, suggest
from jaxlm.layout import Layout
from jaxlm.model import layers, transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.edit import Edit, unchanged
from jaxlm.model.functions import Rows
from jaxlm.model.rope import slopes
from jaxlm.ops.attention_kernels import alibi_bias, attention_logits
from jaxlm.ops.masks import Tokens, visible

# Sites of model/edit.py, and besides what a layer reads of the residual stream, and the softmax of its attention.
ENDS = ("embed", "final")
OF_EVERY_LAYER = ("layer_in", "attn_in", "q", "k", "v", "attention", "heads", "attn_out", "ffn_in", "ffn_out", "resid")
OF_MIXTURES = ("router_logits", "experts", "gates")
SITES = (ENDS[0], *OF_EVERY_LAYER[:-2], *OF_MIXTURES, *OF_EVERY_LAYER[-2:], ENDS[1])

Activations = dict[str, dict[int, np.ndarray]]
"""site -> layer -> [R, L, ...]; embed and final have layer 0 alone."""
Reduce = Callable[[dict[str, Array], Tokens], dict[str, Array]]
"""reduce(seen, at) -> numbers [R, ...] by name, made on the device of what was seen in one layer, or at one end."""


def capture(
    params: Any, batch: Batch, sites: Sequence[str], model: ModelConfig, layout: Layout, edit: Edit = unchanged,
    reduce: Reduce | None = None,
) -> Activations:  # fmt: skip
    """Return what the sites of a forward pass held, as numpy arrays, float32 where the model computes in less.

    `edit` changes activations first: what is captured is what it made of them. "layer_in" is the residual stream that a layer
    reads, "attention" its softmax, [R, heads, L, L]. With `reduce`, a module-level function, what it makes of each layer's
    sites comes back in their place, by the names that it gives. `batch` has numpy arrays [R, L]; the mesh is the current one.
    Raises ConfigError for a site that does not exist, and NotSuited for one that this model has not.
    """
    check_sites(sites, model)
    ends, places, rest = _captured(params, placed(batch, layout), as_partial(edit), frozenset(sites), model, layout, reduce)
    found: Activations = {site: {0: _numpy(x)} for site, x in ends.items()}
    for place, stacked in enumerate(places):
        for site, x in stacked.items():
            layers_of = found.setdefault(site, {})
            for repeat, one in enumerate(_numpy(x)):
                layers_of[repeat * len(places) + place] = one
    first = model.num_layers - len(rest)
    for place, single in enumerate(rest):
        for site, x in single.items():
            found.setdefault(site, {})[first + place] = _numpy(x)
    return {site: dict(sorted(found[site].items())) for site in (sites if reduce is None else found)}


def check_sites(sites: Sequence[str], model: ModelConfig) -> None:
    """Raise ConfigError for a site that does not exist, and NotSuited for one that this model has not."""
    for site in sites:
        if site not in SITES:
            raise ConfigError(f"there is no site {site!r}.{suggest(site, SITES)} Sites: {', '.join(SITES)}")
        if site in OF_MIXTURES and not model.moe_layers:
            raise NotSuited(f"{site} is what a router gives, and no layer of this model is a mixture of experts")
    if "attention" in sites and model.self_extend.on:
        raise NotSuited("under Self-Extend attention is merged of near and far keys: there is no single softmax to look at")


def placed(batch: Batch, layout: Layout) -> Batch:
    """Return rows of numpy arrays [R, L] on the current mesh."""
    return jax.device_put(Batch(*batch[:5]), jax.NamedSharding(jax.sharding.get_mesh(), layout.spec("batch", "length")))


def as_partial(edit: Edit) -> jax.tree_util.Partial:
    """Return an edit as an argument of a compiled program: arrays of a `jax.tree_util.Partial` are inputs, the rest is fixed.

    So a program is compiled once for a function, whatever arrays go with it.
    """
    if not isinstance(edit, jax.tree_util.Partial):
        return jax.tree_util.Partial(edit)
    whole = jax.NamedSharding(jax.sharding.get_mesh(), jax.P())
    return jax.tree.map(lambda x: x if isinstance(x, Array) else jax.device_put(x, whole), edit)


def attention_weights(q_BLNH: Array, k_BSKH: Array, at: Tokens, window: int, model: ModelConfig) -> Array:
    """Return softmax(scale q k^T, masked) of queries and keys that are rotated already, float32 [B, N, L, S].

    The same masks, soft cap and slopes as `ops.attention`; rows and heads are computed whole.
    """
    q_BLNH, k_BSKH, at = jax.reshard((q_BLNH, k_BSKH, at), jax.P())
    batch, length, heads, size = q_BLNH.shape
    groups = k_BSKH.shape[2]
    q = q_BLNH.reshape(batch, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    bias = alibi_bias(slopes(model), at, at, groups) if model.positions == "alibi" else None
    seen = visible(at, at, causal=model.causal, window=window)
    logits = attention_logits(
        q, k_BSKH.transpose(0, 2, 1, 3), seen, scale=model.attention_scale, softcap=model.attention_softcap, bias=bias
    )
    return jax.nn.softmax(logits, axis=-1).reshape(batch, heads, length, -1)


@functools.partial(jax.jit, static_argnames=("sites", "model", "layout", "reduce"))
def _captured(
    params: Any, batch: Batch, edit: Any, sites: frozenset[str], model: ModelConfig, layout: Layout, reduce: Reduce | None
) -> tuple[dict[str, Array], list[dict[str, Array]], list[dict[str, Array]]]:
    """Return what was seen outside the layers; at each place of the pattern, stacked over repeats; and in layers left over."""
    at = Tokens(batch.positions, batch.segments)
    mixers = {kind: transformer.mixer(at, kind, model) for kind in sorted(set(model.attention_pattern))}
    real_BL, rows, ends = batch.segments != 0, Rows(batch.tokens, batch.positions), {}

    def one_layer(x_BLD: Array, weights: transformer.Block, layer: Array, place: int) -> tuple[Array, dict[str, Array]]:
        rope, mix = mixers[model.attention_kind(place)]
        seen: dict[str, Array] = {}

        def look(site: str, layer: Array | int, x: Array) -> Array:
            x = edit(site, layer, x)
            if site in sites:
                seen[site] = x
            return x

        def attend(q: Array, k: Array, v: Array) -> Array:
            if "attention" in sites:
                seen["attention"] = attention_weights(q, k, at, model.window(place), model)
            return mix(q, k, v)

        if "layer_in" in sites:
            seen["layer_in"] = x_BLD
        x_BLD, _ = transformer.block(weights, x_BLD, attend, rope, real_BL, layer, model, layout, look, rows=rows)
        return x_BLD, seen if reduce is None else reduce(seen, at)

    def one_period(x: Array, scanned: tuple[tuple[transformer.Block, ...], Array]) -> tuple[Array, list[dict[str, Array]]]:
        weights, first = scanned
        seen = []
        for place, block in enumerate(weights):
            x, found = one_layer(x, block, first + place, place)
            seen.append(found)
        return x, seen

    ends["embed"] = x = edit("embed", 0, transformer.embed(params, batch.tokens, at, model, layout))
    period = len(params.blocks)
    whole = model.num_layers // period
    stacked = jax.tree.map(lambda w: w[:whole], params.blocks)
    x, places = jax.lax.scan(one_period, x, (stacked, period * jnp.arange(whole)))
    rest = []
    for place in range(model.num_layers % period):
        weights = jax.tree.map(lambda w: w[whole], params.blocks[place])
        x, found = one_layer(x, weights, jnp.asarray(whole * period + place), place)
        rest.append(found)
    ends["final"] = edit("final", 0, layers.norm(params.final_norm, x, model))
    ends = {site: x for site, x in ends.items() if site in sites}
    return (ends if reduce is None or not ends else reduce(ends, at)), places, rest


def _numpy(x: Array) -> np.ndarray:
    found = np.asarray(x)
    return found.astype(np.float32) if found.dtype.kind not in "iub" else found
