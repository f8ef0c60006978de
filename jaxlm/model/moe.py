"""A mixture-of-experts layer: its weights, and the way from a token to its experts and back."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn import initializers

from jaxlm.function_file import names_function
from jaxlm.layout import Layout
from jaxlm.model import functions, layers
from jaxlm.model.config import ModelConfig
from jaxlm.model.edit import Edit, unchanged
from jaxlm.model.functions import Rows, Scores, Token
from jaxlm.model.moe_config import MoeConfig
from jaxlm.ops import routing
from jaxlm.ops.experts import Assignments, apply_experts
from jaxlm.ops.grouped import ExpertWeights
from jaxlm.param import Param, tree_map


@struct.dataclass
class Moe:
    """A router and the experts it chooses from."""

    router: Array  # DE
    noise: Array | None  # DE: how much noise each logit has
    bias: Array | None  # E: state, moved by `rebalance`
    experts: layers.Mlp  # leaves with a leading E
    shared: layers.Mlp | None  # what every token visits


class Decisions(NamedTuple):
    """Where tokens went, [B, L, K] (for all mixture layers: one more leading dimension)."""

    experts: Array  # int32, before dropping; the number of experts at padding
    gates: Array  # float32
    kept: Array  # bool


class Routed(NamedTuple):
    """What a layer's router did."""

    statistics: routing.Statistics
    decisions: Decisions


def spec(config: ModelConfig) -> Moe:
    """Return the spec of one mixture layer. An expert's fan-in is its own: the number of experts does not enter."""
    settings, D = config.moe, config.hidden_size
    E, F = settings.num_experts, settings.expert_size or config.intermediate_size
    noisy, biased = settings.router == "noisy", settings.router == "sigmoid" or names_function(settings.router)
    start = initializers.zeros if noisy else initializers.normal(settings.router_init_std)
    return Moe(
        router=Param((D, E), ("embed", None), start),
        noise=Param((D, E), ("embed", None), initializers.zeros) if noisy else None,
        bias=Param((E,), (None,), initializers.zeros, "state") if biased else None,
        experts=tree_map(lambda p: p.stacked(E, "expert"), layers.mlp_spec(config, F)),
        shared=layers.mlp_spec(config, F * settings.shared_experts) if settings.shared_experts else None,
    )


def moe(
    p: Moe,
    x_BLD: Array,
    real_BL: Array,
    layer: Array | int,
    config: ModelConfig,
    layout: Layout,
    *,
    edit: Edit = unchanged,
    key: Array | None = None,
    decoding: bool = False,
    rows: Rows | None = None,
) -> tuple[Array, Routed]:
    """Return the layer's output [B, L, D] and what its router did.

    `real_BL` is False at padding, which takes no place and counts in no loss. `key` means training: jitter, noise, expert
    dropout, and the training capacity; `decoding` with a cache never drops. `edit` sees and may change `router_logits`
    [B, L, E], `experts` [B, L, K] and `gates` [B, L, K], which are those of the experts as edited. The output of a token all
    of whose assignments were dropped is exactly zero: only the residual carries it. A rule of the user's own needs `rows`.
    """
    # Training's rows divide into groups; an evaluation's need not.
    group = math.gcd(config.moe.rows_per_group, x_BLD.shape[0])
    settings, E = dataclasses.replace(config.moe, rows_per_group=group), config.moe.num_experts
    router_keys, dropout_key = (None, None) if key is None else jax.random.split(key)
    jitter_key, noise_key = (None, None) if key is None else jax.random.split(router_keys)
    logits_BLE, smooth_BLE = _logits(p, x_BLD, settings, jitter_key, noise_key)
    logits_BLE = edit("router_logits", layer, logits_BLE)
    if names_function(settings.router):
        token = Token(*rows, layer, p.bias.reshape(1, 1, -1), noise_key, settings.experts_per_token)
        judged = functions.route(settings.router, logits_BLE, token, whole=settings.allow_leaks)
    else:
        judged = _scores(p, logits_BLE, settings)
    scores_BLE, _, probabilities_BLE = judged
    places = None if decoding else _places(x_BLD, settings, training=key is not None)
    if settings.router == "expert_choice":
        experts_BLK = _chosen_by_experts(probabilities_BLE, real_BL, places, settings)
    else:
        experts_BLK = _selection(judged, settings)
    experts_BLK = jnp.where(real_BL[..., None], edit("experts", layer, experts_BLK), E)
    gates_BLK = routing.gates(scores_BLE, experts_BLK, renormalize=settings.renormalize, scale=settings.gate_scale)
    gates_BLK = edit("gates", layer, gates_BLK)
    positions_BLK, kept_BLK = _queue(experts_BLK, jnp.max(scores_BLE, axis=-1), places, settings)
    statistics = routing.statistics(
        logits_BLE, probabilities_BLE, experts_BLK, gates_BLK, kept_BLK, real_BL,
        balance_over=settings.balance_over, smooth_load_BLE=smooth_BLE,
    )  # fmt: skip
    assigned = Assignments(
        jnp.where(kept_BLK, experts_BLK, E), gates_BLK, positions_BLK, _hidden_scale(experts_BLK, config, layout, dropout_key)
    )
    y_BLD = apply_experts(
        x_BLD, assigned, ExpertWeights(**vars(p.experts)), layers.activation(config.activation), capacity=places,
        rows_per_group=settings.rows_per_group, kernel=settings.kernel, expert_axis=layout.expert, model_axis=layout.ffn,
    )  # fmt: skip
    if p.shared is not None:
        y_BLD = y_BLD + layers.mlp(p.shared, x_BLD, config, layout)
    return y_BLD, Routed(statistics, Decisions(experts_BLK, gates_BLK, kept_BLK))


def _logits(
    p: Moe, x_BLD: Array, settings: MoeConfig, jitter_key: Array | None, noise_key: Array | None
) -> tuple[Array, Array | None]:
    """Return the router's float32 logits [B, L, E] and, of a noisy router in training, the smooth load [B, L, E]."""
    x_BLD = x_BLD.astype(jnp.float32)
    sharding = jax.typeof(x_BLD).sharding
    if settings.jitter and jitter_key is not None:
        # On what the router reads alone: the experts' input stays as it is.
        low, high = 1.0 - settings.jitter, 1.0 + settings.jitter
        x_BLD = x_BLD * jax.random.uniform(jitter_key, x_BLD.shape, jnp.float32, low, high, out_sharding=sharding)
    out = jax.P(*sharding.spec[:2], None)

    def project(weights: Array) -> Array:
        return layers.flat_einsum("td,de->te", x_BLD, weights, out, precision=jax.lax.Precision.HIGHEST)

    clean_BLE = project(p.router)
    if settings.router != "noisy" or noise_key is None:
        return clean_BLE, None
    scale_BLE = routing.noise_scale(project(p.noise))
    noise = jax.random.normal(noise_key, clean_BLE.shape, jnp.float32, out_sharding=jax.typeof(clean_BLE).sharding)
    noisy_BLE = clean_BLE + noise * scale_BLE
    if settings.experts_per_token == settings.num_experts:
        return noisy_BLE, None
    return noisy_BLE, routing.smooth_load(clean_BLE, noisy_BLE, scale_BLE, settings.experts_per_token)


def _scores(p: Moe, logits_BLE: Array, settings: MoeConfig) -> Scores:
    """Return what our own rules make of the logits; the ranking is by them or, with a balancing bias, by biased scores."""
    if settings.router != "sigmoid":
        probabilities = jax.nn.softmax(logits_BLE, axis=-1)
        return Scores(probabilities, logits_BLE, probabilities)
    scores = jax.nn.sigmoid(logits_BLE)
    biased = scores + p.bias.reshape(1, 1, -1)
    if settings.expert_groups > 1:
        biased = routing.limit_groups(biased, settings.expert_groups, settings.groups_per_token)
    biased = jnp.where(logits_BLE > routing.EXCLUDED, biased, -jnp.inf)
    return Scores(scores, biased, scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20))


def _selection(judged: Scores, settings: MoeConfig) -> Array:
    """Return the experts of the highest ranks [B, L, K]; in a rule of the user's own those of rank minus infinity are none."""
    experts_BLK = routing.top_k(judged.ranking, settings.experts_per_token)
    if not names_function(settings.router):
        return experts_BLK
    allowed_BLE = (judged.ranking > -jnp.inf).astype(jnp.float32)
    allowed_BLK = routing.gates(allowed_BLE, experts_BLK, renormalize=False, scale=1.0) > 0
    return jnp.where(allowed_BLK, experts_BLK, settings.num_experts)


def _places(x_BLD: Array, settings: MoeConfig, *, training: bool) -> int | None:
    """Return how many tokens of a group an expert takes; None where nothing is dropped."""
    factor = settings.capacity_factor if training else settings.evaluation_capacity_factor
    if factor is None:
        return None
    tokens = settings.rows_per_group * x_BLD.shape[1]
    places = routing.capacity(factor, settings.experts_per_token, tokens, settings.num_experts, settings.min_capacity)
    return min(places, tokens)  # a token visits an expert once at most


def _by_group(x_BL: Array, settings: MoeConfig) -> Array:
    """Return [B, L, ...] as [groups, tokens of a group, ...]: whole rows, for a queue is one over all of a group."""
    rows, _, *rest = jax.typeof(x_BL).sharding.spec
    x_BL = jax.reshard(x_BL, jax.P(rows, None, *rest))
    shape = (x_BL.shape[0] // settings.rows_per_group, settings.rows_per_group * x_BL.shape[1], *x_BL.shape[2:])
    return jax.lax.reshape(x_BL, shape, out_sharding=jax.P(rows, None, *rest))


def _chosen_by_experts(probabilities_BLE: Array, real_BL: Array, places: int | None, settings: MoeConfig) -> Array:
    """Return, for each token, expert e in column e where e chose the token, and none (E) elsewhere."""
    E, tokens = settings.num_experts, _by_group(real_BL, settings).shape[1]
    chosen = routing.expert_choice(
        _by_group(probabilities_BLE, settings), _by_group(real_BL, settings), min(places or tokens, tokens)
    )
    spec = jax.typeof(probabilities_BLE).sharding.spec
    chosen_BLE = jax.lax.reshape(chosen, probabilities_BLE.shape, out_sharding=jax.P(*spec))
    return jnp.where(chosen_BLE, jax.lax.broadcasted_iota(jnp.int32, chosen_BLE.shape, 2, out_sharding=jax.P(*spec)), E)


def _queue(experts_BLK: Array, best_BL: Array, places: int | None, settings: MoeConfig) -> tuple[Array, Array]:
    """Return each assignment's place in its expert's queue, and whether it gets one; `best_BL` is a token's best score."""
    assigned = experts_BLK < settings.num_experts
    if places is None:
        return jnp.zeros_like(experts_BLK), assigned
    # An expert never chooses more tokens than it has places for.
    priority = "token" if settings.router == "expert_choice" else settings.priority
    confidence = _by_group(jax.lax.stop_gradient(best_BL), settings)
    positions = routing.queue_positions(_by_group(experts_BLK, settings), priority, confidence)
    positions_BLK = jax.lax.reshape(positions, experts_BLK.shape, out_sharding=jax.typeof(experts_BLK).sharding)
    return positions_BLK, assigned & (positions_BLK < places)


def _hidden_scale(experts_BLK: Array, config: ModelConfig, layout: Layout, key: Array | None) -> Array | None:
    """Return expert dropout's factors on hidden activations, [B, L, K, F]; they do not depend on who computes where."""
    rate = config.moe.expert_dropout
    if key is None or not rate:
        return None
    shape = (*experts_BLK.shape, config.moe.expert_size or config.intermediate_size)
    keep = jax.random.bernoulli(key, 1.0 - rate, shape, out_sharding=layout.spec("batch", "length", None, "ffn"))
    return keep.astype(jnp.dtype(config.compute_dtype)) / (1.0 - rate)


def rebalance(blocks: tuple[Any, ...], load_LE: Array, config: ModelConfig) -> tuple[Any, ...]:
    """Return the blocks with every balancing bias moved one step against the load of its expert.

    b += rate x sign(mean load - load), loads [mixture layers, E] counted over the whole step's tokens before dropping
    (arXiv:2408.15664); an expert with exactly the mean load stays.
    """
    moved = []
    for place, block in enumerate(blocks):
        if block.moe is not None and block.moe.bias is not None:
            of_place = [config.moe_layers.index(layer) for layer in range(place, config.num_layers, config.period)]
            load = load_LE[jnp.array(of_place)]
            against = jnp.sign(jnp.mean(load, axis=-1, keepdims=True) - load)
            bias = block.moe.bias + config.moe.bias_update_rate * against
            block = block.replace(moe=block.moe.replace(bias=bias))
        moved.append(block)
    return tuple(moved)
