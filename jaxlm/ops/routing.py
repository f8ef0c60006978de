"""Which experts a token visits, who gets a place where places are few, and what keeps the experts equally busy.

Everything here is float32 or integer and sees the whole batch, whatever mesh it lies on: loads, losses and drops are global.
Letters: B rows, L length, G groups of T tokens that compete for places, E experts, K experts a token visits.
An assignment (a token's k-th expert) whose expert is E is none: of padding, or dropped.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Priority = Literal["token", "choice", "confidence"]
# A logit at or below this takes an expert out of the choice, whatever is added to its score.
EXCLUDED = -1e29


def capacity(factor: float, k: int, tokens: int, num_experts: int, least: int) -> int:
    """Return the places an expert has for a group of `tokens`: max(least, ceil(factor k tokens / num_experts)).

    The factor counts all k assignments of a token: 1.0 has just room for a balanced load (GShard, arXiv:2006.16668).
    """
    return max(least, math.ceil(round(factor * k * tokens / num_experts, 6)))


def top_k(scores_BLE: Array, k: int) -> Array:
    """Return the experts of the k highest scores, int32 [B, L, K], best first; the lower index wins a tie."""
    if k == 1:
        return jnp.argmax(scores_BLE, axis=-1, keepdims=True).astype(jnp.int32)
    return jax.lax.top_k(scores_BLE, k)[1].astype(jnp.int32)


def gates(scores_BLE: Array, experts_BLK: Array, *, renormalize: bool, scale: float) -> Array:
    """Return the weight of each chosen expert's output, [B, L, K]: its raw score, or that over the sum of the chosen.

    The score is the only way by which the router learns from the language-model loss. 0 where there is no expert.
    """
    # A sum over a comparison shards like its inputs and has a gradient without scatter, unlike a gather.
    chosen = _one_hot(experts_BLK, scores_BLE.shape[-1])
    values = jnp.sum(jnp.where(chosen, scores_BLE[:, :, None, :], 0.0), axis=-1)
    if renormalize:
        # The bound keeps the gradient finite where all chosen sigmoid scores underflow.
        values = values / jnp.maximum(jnp.sum(values, axis=-1, keepdims=True), 1e-12)
    return values * scale


def _one_hot(experts: Array, num_experts: int) -> Array:
    indices = jnp.arange(num_experts, dtype=jnp.int32).reshape((1,) * experts.ndim + (-1,))
    return experts[..., None] == indices


def limit_groups(scores_BLE: Array, groups: int, kept: int) -> Array:
    """Return the scores, minus infinity outside the `kept` groups of experts whose two best scores sum highest.

    Group-limited routing of DeepSeek-V3 (arXiv:2412.19437): a token's experts then live on few devices.
    """
    B, L, E = scores_BLE.shape
    size = E // groups
    by_group = scores_BLE.reshape(B, L, groups, size)
    best = jnp.sum(jax.lax.top_k(by_group, min(2, size))[0], axis=-1)
    allowed = jnp.any(_one_hot(top_k(best, kept), groups), axis=2)
    return jnp.where(allowed[..., None], by_group, -jnp.inf).reshape(B, L, E)


def noise_scale(noise_logits: Array) -> Array:
    """Return the standard deviation of a noisy router's noise (arXiv:1701.06538): softplus, never quite 0."""
    return jax.nn.softplus(noise_logits) + 1e-6


def smooth_load(clean_BLE: Array, noisy_BLE: Array, scale_BLE: Array, k: int) -> Array:
    """Return the probability, [B, L, E], that an expert is among the k best if its own noise were drawn again.

    Its sum over tokens is the differentiable load of arXiv:1701.06538, appendix A. Needs k < E.
    """
    highest = jax.lax.top_k(noisy_BLE, k + 1)[0]
    last_in, first_out = highest[..., k - 1 : k], highest[..., k : k + 1]
    # The k-th best of the others: for an expert that is in, the first that is out; for one that is out, the last that is in.
    threshold = jnp.where(noisy_BLE > first_out, first_out, last_in)
    return jax.scipy.stats.norm.cdf((clean_BLE - threshold) / scale_BLE)


def queue_positions(experts_GTK: Array, priority: Priority, confidence_GT: Array | None = None) -> Array:
    """Return the place of each assignment in its expert's queue, int32 [G, T, K], counting from 0 within its group.

    `token`: tokens in order, each with all its choices, so that no later token can come before an earlier one. `choice`: all
    first choices, then all second ones. `confidence`: the same over tokens sorted by falling `confidence_GT`
    (batch-prioritised routing, arXiv:2106.05974). Assignments to no expert (E) queue among themselves.
    """
    G, T, K = experts_GTK.shape
    if priority == "token":
        return _positions_in_order(experts_GTK.reshape(G, T * K)).reshape(G, T, K)
    columns = [experts_GTK[:, :, k] for k in range(K)]
    places = jax.lax.broadcasted_iota(jnp.int32, (G, T), 1, out_sharding=jax.typeof(experts_GTK[:, :, 0]).sharding)
    if priority == "confidence":
        _, places, *columns = jax.lax.sort((-confidence_GT, places, *columns), dimension=1, num_keys=1)
    queued = _positions_in_order(jnp.concatenate(columns, axis=1))
    ranks = [queued[:, k * T : (k + 1) * T] for k in range(K)]
    if priority == "confidence":
        _, *ranks = jax.lax.sort((places, *ranks), dimension=1, num_keys=1)
    return jnp.stack(ranks, axis=2)


def _positions_in_order(experts_GN: Array) -> Array:
    """Return how many earlier entries of its row each entry equals. By sorting: memory of one-hot counts would be N x E."""
    index = jax.lax.broadcasted_iota(jnp.int32, experts_GN.shape, 1, out_sharding=jax.typeof(experts_GN).sharding)
    ordered, origin = jax.lax.sort((experts_GN, index), dimension=1, num_keys=1, is_stable=True)
    starts = jnp.where(ordered[:, 1:] != ordered[:, :-1], index[:, 1:], 0)
    begun = jax.lax.cummax(jax.lax.pad(starts, jnp.int32(0), ((0, 0, 0), (1, 0, 0))), axis=1)
    return jax.lax.sort((origin, index - begun), dimension=1, num_keys=1)[1]


def expert_choice(probabilities_GTE: Array, real_GT: Array, places: int) -> Array:
    """Return bool [G, T, E]: whether an expert chose a token, each taking the `places` likeliest of its group.

    Expert choice (arXiv:2202.09368) is balanced by construction, and sees the future: a later token can take a place.
    """
    wanted = jnp.where(real_GT[..., None], probabilities_GTE, -1.0).swapaxes(1, 2)
    index = jax.lax.broadcasted_iota(jnp.int32, wanted.shape, 2, out_sharding=jax.typeof(wanted).sharding)
    _, origin = jax.lax.sort((-jax.lax.stop_gradient(wanted), index), dimension=2, num_keys=1, is_stable=True)
    rank = jax.lax.sort((origin, index), dimension=2, num_keys=1)[1]
    return (rank < places).swapaxes(1, 2) & real_GT[..., None]


class Statistics(NamedTuple):
    """Sums over the real tokens of a batch for one mixture layer, float32: they add up over microbatches and batches.

    Losses are means times `tokens`. Differentiable are `balance`, `z`, `importance` and `load_variation`.
    """

    tokens: Array
    load: Array  # E: assignments before dropping
    kept: Array  # E: assignments that got a place
    probability: Array  # E
    entropy: Array  # of the router's distribution, nats
    gate: Array  # gates of all assignments
    balance: Array  # load-balancing loss
    z: Array  # squared log-normaliser of the logits
    importance: Array  # squared coefficient of variation of the experts' summed gates
    load_variation: Array  # the same of their smooth load; 0 for a router without noise


def statistics(
    logits_BLE: Array, probabilities_BLE: Array, experts_BLK: Array, gates_BLK: Array, kept_BLK: Array, real_BL: Array,
    *, balance_over: Literal["batch", "row"], smooth_load_BLE: Array | None = None,
) -> Statistics:  # fmt: skip
    """Return what a layer's routing came to, and its losses.

    The load-balancing loss is E sum_e f_e P_e (arXiv:2101.03961, equation 4) with f the fraction of tokens that have e among
    their choices before any is dropped, P the mean probability: exactly k where the load is even. Padding counts nowhere.
    """
    E = logits_BLE.shape[-1]
    real = real_BL.astype(jnp.float32)
    tokens = jnp.sum(real)
    assigned_BLE = jnp.sum(_one_hot(experts_BLK, E), axis=2, dtype=jnp.float32) * real[..., None]
    kept_BLE = jnp.sum(_one_hot(experts_BLK, E) & kept_BLK[..., None], axis=2, dtype=jnp.float32) * real[..., None]
    probability_BLE = probabilities_BLE * real[..., None]
    load, probability = jnp.sum(assigned_BLE, axis=(0, 1)), jnp.sum(probability_BLE, axis=(0, 1))
    if balance_over == "batch":
        balance = E * jnp.sum(load * probability) / jnp.maximum(tokens, 1.0)
    else:
        row_tokens = jnp.sum(real, axis=1)
        products = jnp.sum(jnp.sum(assigned_BLE, axis=1) * jnp.sum(probability_BLE, axis=1), axis=-1)
        balance = E * jnp.sum(products / jnp.maximum(row_tokens, 1.0))
    gate_BLE = jnp.sum(jnp.where(_one_hot(experts_BLK, E), gates_BLK[..., None], 0.0), axis=2) * real[..., None]
    smooth = jnp.zeros(()) if smooth_load_BLE is None else variation(jnp.sum(smooth_load_BLE * real[..., None], axis=(0, 1)))
    return Statistics(
        tokens=tokens,
        load=load,
        kept=jnp.sum(kept_BLE, axis=(0, 1)),
        probability=probability,
        entropy=-jnp.sum(probability_BLE * jnp.log(jnp.maximum(probabilities_BLE, 1e-30))),
        gate=jnp.sum(gate_BLE),
        balance=balance,
        z=jnp.sum(jax.nn.logsumexp(logits_BLE, axis=-1) ** 2 * real),
        importance=variation(jnp.sum(gate_BLE, axis=(0, 1))) * tokens,
        load_variation=smooth * tokens,
    )


def variation(values: Array) -> Array:
    """Return the squared coefficient of variation, var / mean^2, over the last axis (arXiv:1701.06538)."""
    return jnp.var(values, axis=-1) / (jnp.mean(values, axis=-1) ** 2 + 1e-10)


def summarize(sums: Statistics) -> dict[str, Array]:
    """Return what is logged of the routers, each [mixture layers]; `sums` has that leading dimension.

    dropped: fraction of assignments without a place; load_max: the busiest expert's load over the mean; load_cv: coefficient
    of variation of the loads; entropy in nats; gate: the mean; dead: experts without a token; the losses before weighting.
    """
    tokens = jnp.maximum(sums.tokens, 1.0)
    load = jnp.maximum(jnp.sum(sums.load, axis=-1), 1.0)
    return {
        "router_dropped": 1.0 - jnp.sum(sums.kept, axis=-1) / load,
        "router_load_max": jnp.max(sums.load, axis=-1) * sums.load.shape[-1] / load,
        "router_load_cv": jnp.sqrt(variation(sums.load)),
        "router_entropy": sums.entropy / tokens,
        "router_gate": sums.gate / load,
        "router_dead": jnp.sum(sums.load == 0, axis=-1).astype(jnp.float32),
        "router_balance_loss": sums.balance / tokens,
        "router_z_loss": sums.z / tokens,
        "router_importance_loss": sums.importance / tokens,
        "router_load_loss": sums.load_variation / tokens,
    }
