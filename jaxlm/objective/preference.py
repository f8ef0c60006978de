"""Preferences: a policy learns from pairs of responses, or from labelled ones, beside what a reference says of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.data.pairs import PairBatch
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.edit import Edit, unchanged
from jaxlm.model.moe import Decisions, Routed
from jaxlm.objective.language_model import router_loss
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.objective.preference_losses import Pair, label_losses, log_ratios, pair_losses, rewards
from jaxlm.ops.log_probs import TokenScores, compare, target_log_probs
from jaxlm.ops.masks import Tokens
from jaxlm.ops.routing import Statistics


class Responses(NamedTuple):
    """Sums over responses of one kind, float32 scalars."""

    number: Array
    log_probs: Array
    rewards: Array


class PreferenceSums(NamedTuple):
    """Sums over a batch's real pairs (float32 scalars): they add up over microbatches, batches and processes.

    Of labels, `pairs` are labelled examples, `chosen` the desirable ones, `rejected` the others; what comes with them only for
    the baseline counts nowhere. Of a mixture of experts also `router`, over all tokens it saw, and where they were asked for
    its `decisions`, which alone do not add up.
    """

    pairs: Array
    loss: Array  # without what routers add
    chosen: Responses
    rejected: Responses
    right: Array  # pairs whose chosen response has the greater reward; examples on their side of the baseline
    tokens: Array  # of responses
    entropy: Array  # over these tokens, nats
    chosen_tokens: Array
    correct: Array  # of the chosen tokens, those that no other is likelier than
    kl: Array | None  # over tokens of responses, to a live reference
    baseline: Array | None  # KTO's, times pairs
    router: Statistics | None = None
    decisions: Decisions | None = None

    @property
    def weight(self) -> Array:
        """The real pairs: the loss is a mean over them."""
        return self.pairs

    @property
    def total(self) -> Array:
        """The summed loss, without what routers add."""
        return self.loss

    def metrics(self) -> dict[str, Array]:
        """Return means by the names of the field; what there was none of gives 0.

        Of pairs: loss, rewards/margins, rewards/accuracies (strictly greater; also as accuracy), kto_kl (the baseline). Of
        responses: rewards/ and logps/ of chosen and rejected (log-probabilities are sums over tokens, for every loss). Of their
        tokens: entropy and kl, in nats, the latter where a live reference is. Of chosen tokens: mean_token_accuracy. And
        two numbers: tokens (of responses), pairs.
        """
        chosen, rejected = (
            Responses(each.number, *(_mean(value, each.number) for value in each[1:])) for each in (self.chosen, self.rejected)
        )
        both = (chosen.number > 0) & (rejected.number > 0)
        right = _mean(self.right, self.pairs)
        named = {
            "loss": _mean(self.loss, self.pairs),
            "accuracy": right,
            "tokens": self.tokens,
            "pairs": self.pairs,
            "rewards/chosen": chosen.rewards,
            "rewards/rejected": rejected.rewards,
            "rewards/margins": jnp.where(both, chosen.rewards - rejected.rewards, 0.0),
            "rewards/accuracies": right,
            "logps/chosen": chosen.log_probs,
            "logps/rejected": rejected.log_probs,
            "entropy": _mean(self.entropy, self.tokens),
            "mean_token_accuracy": _mean(self.correct, self.chosen_tokens),
        }
        named |= {} if self.kl is None else {"kl": _mean(self.kl, self.tokens)}
        named |= {} if self.baseline is None else {"kto_kl": _mean(self.baseline, self.pairs)}
        return named


def _mean(total: Array, number: Array) -> Array:
    return total / jnp.maximum(number, 1.0)


def loss(
    params: transformer.Transformer,
    batch: PairBatch,
    config: ModelConfig,
    layout: Layout,
    preference: PreferenceConfig,
    *,
    reference_params: transformer.Transformer | None = None,
    remat: transformer.Remat = "none",
    edit: Edit = unchanged,
    record: bool = False,
) -> tuple[Array, PreferenceSums]:
    """Return the summed loss of a batch, to be divided by `PreferenceSums.pairs` of the whole step, and its parts.

    Both responses of a pair go through one forward pass, in which all that belongs to training alone (dropout, jitter, noise,
    the training capacity) is off: policy and reference are to be the same function of the same weights. The reference's
    log-probabilities are `batch.reference`, or, with `reference_params`, those of its own forward pass, without `edit`; its
    KL divergence is then known too. Pairs without weights are filling and change nothing.

    A router's losses enter once for every pair. What is a mean over tokens (`sft_weight`, and orpo's own part) is one over the
    tokens of this (micro)batch, as in TRL, and enters once for every pair; so is the mean of KTO's baseline.
    """
    x_BLD, routed = _hidden(params, batch, config, layout, remat, edit)
    head, cap, kl = transformer.head(params), config.logit_softcap, None
    if reference_params is None:
        scores, reference = target_log_probs(x_BLD, head, batch.targets, softcap=cap), batch.reference
    else:
        beside = jax.lax.stop_gradient(reference_params)
        other_BLD, _ = _hidden(beside, batch, config, layout, remat)
        scores, other, kl = compare(x_BLD, head, other_BLD, transformer.head(beside), batch.targets, softcap=cap)
        reference = _of_rows(other, batch)
    total, sums = _combine(batch, scores, reference, kl, preference)
    if routed is None:
        return total, sums
    if preference.router_losses:
        total = total + sums.pairs * router_loss(routed.statistics, config.moe)
    routed = jax.lax.stop_gradient(routed)
    return total, sums._replace(router=routed.statistics, decisions=routed.decisions if record else None)


def reference_log_probs(params: transformer.Transformer, batch: PairBatch, config: ModelConfig, layout: Layout) -> Array:
    """Return the log-probability of each row's response, float32 [2B]: of a reference, what `PairBatch.reference` holds."""
    x_BLD, _ = _hidden(params, batch, config, layout, "none")
    scores = target_log_probs(x_BLD, transformer.head(params), batch.targets, softcap=config.logit_softcap)
    return _of_rows(scores.log_probs, batch)


def _hidden(
    params: transformer.Transformer, batch: PairBatch, config: ModelConfig, layout: Layout, remat: transformer.Remat,
    edit: Edit = unchanged,
) -> tuple[Array, Routed | None]:  # fmt: skip
    at = Tokens(batch.positions, batch.segments)
    return transformer.forward(params, batch.tokens, at, config, layout, edit=edit, remat=remat)


def _of_rows(values_BL: Array, batch: PairBatch) -> Array:
    """Return the sum over each row's response, [2B]."""
    return jnp.sum(values_BL * batch.weights, axis=1)


def _paired(rows: Array) -> Pair:
    """Return [B] of the even rows and [B] of the odd ones; a pair lies on one device, so that nothing moves."""
    spec = jax.typeof(rows).sharding.spec
    both = jax.lax.reshape(rows, (rows.shape[0] // 2, 2), out_sharding=jax.P(spec[0], None))
    return Pair(both[:, 0], both[:, 1])


def _combine(
    batch: PairBatch, scores: TokenScores, reference: Array, kl_BL: Array | None, preference: PreferenceConfig
) -> tuple[Array, PreferenceSums]:
    """Return the summed loss without that of routers, and its parts."""
    lengths, policy = _paired(_of_rows(jnp.ones_like(batch.weights), batch)), _paired(_of_rows(scores.log_probs, batch))
    is_real = lengths.chosen + lengths.rejected > 0
    reference = jax.tree.map(lambda r: jnp.where(is_real, r, 0.0), _paired(reference))
    real, unpaired, baseline = is_real.astype(jnp.float32), preference.form == "labels", None
    pairs, which = jnp.sum(real), Pair(real, real)
    if unpaired:
        labels = _paired(batch.labels).chosen
        ratios = log_ratios(policy.rejected, reference.rejected, lengths.rejected)
        baseline = jnp.maximum(_mean(jnp.sum(real * ratios), pairs), 0.0)
        which = Pair(real * labels, real * (1.0 - labels))
        lengths, policy, reference = (Pair(each.chosen, each.chosen) for each in (lengths, policy, reference))
        losses = label_losses(preference, policy.chosen, reference.chosen, labels, baseline)
    else:
        losses = pair_losses(preference, policy, reference, lengths)
    gained = Pair(*(rewards(preference, *of) for of in zip(policy, reference, lengths, strict=True)))
    compared_with = gained.rejected if baseline is None else preference.beta * baseline
    right = gained.chosen > compared_with
    if unpaired:
        right = jnp.where(labels > 0.5, right, gained.chosen < compared_with)

    def over_tokens(values_BL: Array) -> Pair:
        """Return the sums over all tokens of each kind of response."""
        of_rows = _paired(_of_rows(values_BL, batch))
        of_rows = Pair(of_rows.chosen, of_rows.chosen) if unpaired else of_rows
        return jax.tree.map(lambda chosen, values: jnp.sum(chosen * values), which, of_rows)

    total = jnp.sum(real * losses)
    tokens, log_probs = (over_tokens(values) for values in (jnp.ones_like(batch.weights), scores.log_probs))
    if preference.sft_weight:
        total -= preference.sft_weight * pairs * _mean(log_probs.chosen, tokens.chosen)
    if preference.loss == "orpo":
        total -= pairs * _whole_rows(scores.log_probs, batch)
    sums = PreferenceSums(
        pairs,
        total,
        *(Responses(jnp.sum(n), log_prob, jnp.sum(n * r)) for n, log_prob, r in zip(which, log_probs, gained, strict=True)),
        right=jnp.sum(real * right),
        tokens=sum(tokens),
        entropy=sum(over_tokens(scores.entropy)),
        chosen_tokens=tokens.chosen,
        correct=over_tokens(scores.correct).chosen,
        kl=None if kl_BL is None else sum(over_tokens(kl_BL)),
        baseline=None if baseline is None else baseline * pairs,
    )
    return total, jax.lax.stop_gradient(sums)


def _whole_rows(log_probs_BL: Array, batch: PairBatch) -> Array:
    """Return the mean log-probability of all tokens of prompts and chosen responses (orpo's first part)."""
    last = jnp.max(jnp.where(batch.weights > 0, batch.positions, -1), axis=1, keepdims=True)
    counts = ((batch.segments != 0) & (batch.positions <= last)).astype(jnp.float32)
    return _mean(*(jnp.sum(_paired(jnp.sum(a, axis=1)).chosen) for a in (counts * log_probs_BL, counts)))
