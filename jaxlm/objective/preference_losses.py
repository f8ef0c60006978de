"""The losses of preference optimisation, as functions of the log-probabilities of whole responses.

Throughout, a response's log-probability is the sum over its tokens (with what ends it), c and r are log(policy / reference) of
the chosen and the rejected one, h = c - r, s the logistic function, n_c and n_r numbers of tokens. All arrays are float32.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.objective.preference_config import PreferenceConfig

# Of an exponential's argument: its square is still a number in float32.
_LARGEST = 40.0


class Pair(NamedTuple):
    """One number for each response of P pairs, [P] each."""

    chosen: Array
    rejected: Array


def pair_losses(config: PreferenceConfig, policy: Pair, reference: Pair, lengths: Pair) -> Array:
    """Return the loss of each pair [P], from summed log-probabilities and numbers of tokens.

    Losses without a reference read `policy` alone. Of orpo this is the odds ratio's part: its other one is a mean over tokens
    of prompts and chosen responses, which `preference.loss` adds.
    """
    lengths = jax.tree.map(lambda n: jnp.maximum(n, 1.0), lengths)
    if not config.needs_reference:
        return _without_reference(config, policy, lengths)
    chosen, rejected = ratios = jax.tree.map(jnp.subtract, policy, reference)
    beta, log_s = config.beta, jax.nn.log_sigmoid
    match config.loss:
        case "bco_pair":
            return -log_s(beta * chosen) - log_s(-beta * rejected)
        case "sppo_hard":  # the probabilities of winning being 1 and 0
            return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
        case "apo_zero":
            return 1.0 - jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(beta * rejected)
        case "apo_down":
            return jax.nn.sigmoid(beta * chosen) + 1.0 - jax.nn.sigmoid(beta * (chosen - rejected))
        case "nca_pair":
            return -log_s(beta * chosen) - 0.5 * log_s(-beta * chosen) - 0.5 * log_s(-beta * rejected)
    scores = Pair(*(_score(config, ratio) for ratio in ratios))
    if config.loss in ("ipo", "sigmoid_norm"):
        scores = jax.tree.map(jnp.divide, scores, lengths)
    return _of_difference(config, scores.chosen - scores.rejected)


def _of_difference(config: PreferenceConfig, difference: Array) -> Array:
    """Return the losses that depend on the difference of two scores alone; with the reverse KL that is h."""
    beta, smoothing, log_s = config.beta, config.label_smoothing, jax.nn.log_sigmoid
    logits = beta * difference
    match config.loss:
        case "sigmoid" | "sigmoid_norm":
            return _smoothed(logits, smoothing)
        case "robust":  # unbiased where labels are swapped with this probability
            return ((1.0 - smoothing) * -log_s(logits) + smoothing * log_s(-logits)) / (1.0 - 2.0 * smoothing)
        case "hinge":
            return jax.nn.relu(1.0 - logits)
        case "ipo" | "ipo_sum":
            return (difference - 0.5 / beta) ** 2
        case "exo_pair":  # KL from the policy's preference to the labels', these being 1 - smoothing and smoothing
            for_chosen = jax.nn.sigmoid(logits) * (log_s(logits) - math.log1p(-smoothing))
            return for_chosen + jax.nn.sigmoid(-logits) * (log_s(-logits) - math.log(smoothing))
        case "discopop":
            blend = jax.nn.sigmoid(logits / config.temperature)
            return (1.0 - blend) * -log_s(logits) + blend * jnp.exp(jnp.minimum(-logits, _LARGEST))
    raise AssertionError(config.loss)


def _without_reference(config: PreferenceConfig, policy: Pair, lengths: Pair) -> Array:
    beta = config.beta
    if config.loss == "cpo":
        return _smoothed(beta * (policy.chosen - policy.rejected), config.label_smoothing)
    chosen, rejected = jax.tree.map(jnp.divide, policy, lengths)
    if config.loss == "simpo":
        return _smoothed(beta * (chosen - rejected) - config.margin, config.label_smoothing)
    return -beta * jax.nn.log_sigmoid(_log_odds(chosen) - _log_odds(rejected))


def _smoothed(logits: Array, smoothing: float) -> Array:
    """Return -log s(logits), or its mean over labels of which a fraction `smoothing` is swapped."""
    losses = -jax.nn.log_sigmoid(logits)
    return (1.0 - smoothing) * losses - smoothing * jax.nn.log_sigmoid(-logits) if smoothing else losses


def _log_odds(log_prob: Array) -> Array:
    """Return log(p / (1 - p)), p being held below 1."""
    log_prob = jnp.minimum(log_prob, -1e-7)
    return log_prob - jax.nn.log1mexp(-log_prob)


def _score(config: PreferenceConfig, ratio: Array) -> Array:
    """Return f'(policy / reference) of the divergence, its log being `ratio`, up to what cancels in a difference."""
    exponent = config.alpha - 1.0
    match config.divergence:
        case "forward_kl":
            return 1.0 - jnp.exp(jnp.minimum(-ratio, _LARGEST))
        case "js":
            return math.log(2.0) + jax.nn.log_sigmoid(ratio)
        case "alpha" if abs(exponent) >= 1e-6:
            return (jnp.exp(jnp.minimum(exponent * ratio, _LARGEST)) - 1.0) / exponent
    return ratio


def label_losses(config: PreferenceConfig, policy: Array, reference: Array, labels: Array, kl: Array) -> Array:
    """Return KTO's loss of each example [P] (arXiv:2402.01306), labels being 1 (desirable) or 0.

    w_D (1 - s(beta (q - kl))) or w_U (1 - s(beta (kl - q))), q being log(policy / reference) and `kl` a scalar, the baseline,
    through which no gradient flows.
    """
    above = config.beta * (policy - reference - jax.lax.stop_gradient(kl))
    desirable = config.desirable_weight * (1.0 - jax.nn.sigmoid(above))
    undesirable = config.undesirable_weight * (1.0 - jax.nn.sigmoid(-above))
    return jnp.where(labels > 0.5, desirable, undesirable)


def rewards(config: PreferenceConfig, policy: Array, reference: Array, lengths: Array) -> Array:
    """Return the implicit rewards of responses, beta x log(policy / reference), without a gradient.

    Without a reference: beta x the log-probability, simpo's and orpo's a token (divided by the response's length).
    """
    if config.needs_reference:
        return config.beta * log_ratios(policy, reference, lengths)
    if config.loss in ("simpo", "orpo"):
        policy = policy / jnp.maximum(lengths, 1.0)
    return config.beta * jax.lax.stop_gradient(policy)


def log_ratios(policy: Array, reference: Array, lengths: Array) -> Array:
    """Return log(policy / reference) of responses, 0 where rounding alone may have made it; it has no gradient.

    Two programs may add up one model's float32 numbers in two ways. A policy that is its reference has rewards of exactly 0 all
    the same, and is right about no pair.
    """
    policy, reference = jax.lax.stop_gradient((policy, reference))
    ratios = policy - reference
    return jnp.where(jnp.abs(ratios) > 2.0**-20 * (lengths + jnp.abs(reference)), ratios, 0.0)
