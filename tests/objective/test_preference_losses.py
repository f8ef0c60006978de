"""Every loss against stored values of TRL and of the DPO authors' function as others reproduce it, and what each wants."""

import json
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.errors import ConfigError
from jaxlm.objective.preference_config import OF_SCORES, Loss, PreferenceConfig
from jaxlm.objective.preference_losses import Pair, label_losses, pair_losses, rewards

STORED = np.load(Path(__file__).parents[1] / "reference" / "preferences.npz")
CASES = json.loads(str(STORED["cases"]))


def of(columns) -> Pair:
    return Pair(columns[:, 0], columns[:, 1])


def losses_of(config, policy, reference=None):
    reference = jnp.asarray(STORED["reference"]) if reference is None else reference
    if config.form == "labels":
        kl = jnp.maximum(jnp.mean(STORED["mismatched"][:, 0] - STORED["mismatched"][:, 1]), 0.0)
        return label_losses(config, policy[:, 0], reference[:, 0], jnp.asarray(STORED["labels"]), kl)
    return pair_losses(config, of(policy), of(reference), of(jnp.asarray(STORED["lengths"])))


def of_difference(config, h):
    """Return the loss at policies whose log ratios differ by h."""
    zeros = jnp.zeros_like(h)
    return pair_losses(config, Pair(h / 2, -h / 2), Pair(zeros, zeros), Pair(zeros + 1, zeros + 1))


def test_losses_and_gradients_are_those_of_trl_and_of_the_authors_function():
    configs = [PreferenceConfig(**case["config"]) for case in CASES]

    @jax.jit
    def every(policy):
        return [jax.vjp(lambda p, c=c: losses_of(c, p), policy) for c in configs]

    @jax.jit
    def values_and_gradients(policy):
        pulled = [(value, back(jnp.ones_like(value))[0]) for value, back in every(policy)]
        return jnp.stack([value for value, _ in pulled]), jnp.stack([gradient for _, gradient in pulled])

    losses, gradients = values_and_gradients(jnp.asarray(STORED["policy"]))
    for i, case in enumerate(CASES):
        np.testing.assert_allclose(losses[i], STORED["losses"][i], rtol=1e-6, atol=1e-7, err_msg=str(case))
        expected = STORED["gradients"][i]
        np.testing.assert_allclose(gradients[i], expected, rtol=2e-6, atol=1e-7 * np.abs(expected).max(), err_msg=str(case))
    assert {case["source"] for case in CASES} == {"trl", "official"}
    assert {config.loss for config in configs} == set(PreferenceConfig.__annotations__["loss"].__args__)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "robust", "sigmoid_norm", "discopop", "exo_pair", "hinge", "ipo_sum"])
def test_at_the_reference_nothing_is_preferred(loss):
    config = PreferenceConfig(loss=loss, beta=0.2, label_smoothing=0.2 if loss in ("robust", "exo_pair") else 0.0)
    policy = jnp.asarray(STORED["policy"])
    even = np.log(2)
    at_rest = {"ipo": 6.25, "ipo_sum": 6.25, "hinge": 1.0, "discopop": 0.5 * even + 0.5, "exo_pair": -even - np.log(0.16) / 2}
    expected = np.full(len(policy), at_rest.get(loss, even), np.float32)
    np.testing.assert_allclose(losses_of(config, policy, policy), expected, rtol=1e-6)
    assert not np.any(rewards(config, policy, policy, policy))


def test_swapped_responses_turn_the_margin_round():
    policy, reference = jnp.asarray(STORED["policy"]), jnp.asarray(STORED["reference"])
    swapped = losses_of(PreferenceConfig(), policy[:, ::-1], reference[:, ::-1])
    h = (policy - reference)[:, 0] - (policy - reference)[:, 1]
    np.testing.assert_allclose(swapped, -jax.nn.log_sigmoid(-0.1 * h), rtol=1e-6)


def minimum(config, low=-60.0, high=60.0):
    """Return where the loss of a difference is least, by bisection of its slope."""
    slope = jax.jit(jax.grad(lambda h: of_difference(config, h[None])[0]))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(jnp.float32(middle)) < 0 else (low, middle)
    return (low + high) / 2


def test_stationary_points():
    for beta, smoothing in ((0.1, 0.1), (0.5, 0.3)):
        conservative = PreferenceConfig(beta=beta, label_smoothing=smoothing)
        np.testing.assert_allclose(minimum(conservative), np.log((1 - smoothing) / smoothing) / beta, rtol=1e-4)
        np.testing.assert_allclose(minimum(PreferenceConfig(loss="ipo", beta=beta)), 1 / (2 * beta), rtol=1e-4)
    assert minimum(PreferenceConfig()) == pytest.approx(60.0)  # none: ever further


@pytest.mark.parametrize(("divergence", "inverse"), [("reverse_kl", np.log), ("forward_kl", lambda t: -1 / t)])
def test_the_optimum_on_an_enumerable_space_is_the_closed_form(divergence, inverse):
    """Over 5 responses with Bradley-Terry labels of known rewards, beta f'(policy / reference) = reward + a constant."""
    rng = np.random.default_rng(1)
    reward, start = rng.normal(0, 1, 5), jax.nn.log_softmax(jnp.asarray(rng.normal(0, 1, 5), jnp.float32))
    first, second = np.nonzero(~np.eye(5, dtype=bool))
    probability = jnp.asarray(1 / (1 + np.exp(reward[second] - reward[first])), jnp.float32)
    config = PreferenceConfig(beta=0.5, divergence=divergence)

    def expected_loss(table):
        policy, ones = jax.nn.log_softmax(table), jnp.ones(first.shape)
        pairs = [Pair(a[first], a[second]) for a in (policy, start)]
        return jnp.mean(probability * pair_losses(config, *pairs, Pair(ones, ones)))

    @jax.jit
    def optimise(table):
        one = lambda _, table: table - 4.0 * jax.grad(expected_loss)(table)  # noqa: E731
        return jax.nn.log_softmax(jax.lax.fori_loop(0, 4000, one, table))

    ratio = np.exp(np.asarray(optimise(start), np.float64) - np.asarray(start, np.float64))
    left = 0.5 * inverse(ratio) - reward
    np.testing.assert_allclose(left, np.full(5, left.mean()), atol=1e-3)


def test_deterministic_preferences_have_an_optimum_for_ipo_alone():
    """One response always wins: DPO drives the other's probability to nothing whatever beta is, IPO stops."""
    start = jnp.log(jnp.asarray([0.5, 0.5]))
    one = jnp.ones(1)

    def probabilities(config, steps):
        def loss(table):
            policy = jax.nn.log_softmax(table)
            return pair_losses(config, Pair(policy[:1], policy[1:]), Pair(start[:1], start[1:]), Pair(one, one))[0]

        # of constant length, for a loss that flattens out
        step = lambda _, t: t - 0.01 * jnp.sign(jax.grad(loss)(t))  # noqa: E731
        return np.asarray(jax.nn.log_softmax(jax.jit(lambda t: jax.lax.fori_loop(0, steps, step, t))(jnp.zeros(2))))

    dpo, ipo = (
        [probabilities(PreferenceConfig(loss=loss, beta=1.0), steps) for steps in (500, 2000)] for loss in ("sigmoid", "ipo")
    )
    assert dpo[0][1] < -9 and dpo[1][1] < -35
    for found in ipo:  # h = 1 / (2 beta)
        np.testing.assert_allclose(found[0] - found[1], 0.5, atol=0.03)


@pytest.mark.parametrize("loss", ["orpo", "simpo", "cpo", "discopop", "sigmoid"])
def test_filling_has_finite_gradients(loss):
    config = PreferenceConfig(loss=loss)
    zero = Pair(jnp.zeros(1), jnp.zeros(1))
    gradient = jax.grad(lambda policy: pair_losses(config, policy, zero, zero)[0])(zero)
    assert np.all(np.isfinite(np.concatenate(gradient)))


def test_nothing_overflows_however_far_the_policy_is_from_its_reference():
    far = np.array([0.0, 60.0, -100.0, 1000.0, -1000.0], np.float32)
    ratios = np.stack(np.meshgrid(far, far), axis=-1).reshape(-1, 2)
    policy, reference = Pair(*jnp.asarray(np.minimum(ratios - 2000.0, -1.0).T)), Pair(*jnp.full((2, len(ratios)), -2000.0))
    lengths = Pair(*jnp.full((2, len(ratios)), 3.0))
    for loss in get_args(Loss):
        if loss == "kto":
            continue
        smoothing = {"label_smoothing": 0.001} if loss == "exo_pair" else {}
        for divergence in ("reverse_kl", "forward_kl", "js", "alpha") if loss in OF_SCORES else ("reverse_kl",):
            config = PreferenceConfig(loss=loss, divergence=divergence, **smoothing)
            gradients = jax.grad(lambda p, c=config: jnp.sum(pair_losses(c, p, reference, lengths)))(policy)
            for found in (pair_losses(config, policy, reference, lengths), *gradients):
                assert np.all(np.isfinite(found)), (loss, divergence)


def test_contradictions_are_refused():
    for fields, words in [
        ({"loss": "exo_pair"}, "label-smoothing 1e-3"),
        ({"loss": "robust", "label_smoothing": 0.5}, "below 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "choose a loss that reads it"),
        ({"loss": "simpo", "reference": "live"}, "has no reference"),
        ({"loss": "kto", "divergence": "js"}, "no meaning"),
        ({"loss": "orpo", "sft_weight": 1.0}, "count twice"),
        ({"alpha": 0.3}, "divergence alpha"),
        ({"beta": 0.0}, "0.1"),
        ({"loss": "dpo"}, "none of"),
    ]:
        with pytest.raises(ConfigError, match=words):
            PreferenceConfig(**fields)
    assert PreferenceConfig(loss="kto").form == "labels" and not PreferenceConfig(loss="cpo").needs_reference
