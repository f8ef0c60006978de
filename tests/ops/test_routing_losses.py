"""Losses and statistics of routers, against stored values and by hand."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import routing

REFERENCE = Path(__file__).parents[1] / "reference"
PRIORITIES = {"token": "token_major", "choice": "choice_major", "confidence": "batch_prioritised"}


def statistics_of(logits, experts, real=None, over="batch", renormalize=False, kept=None):
    logits, experts = jnp.asarray(logits, jnp.float32), jnp.asarray(experts, jnp.int32)
    real = np.ones(logits.shape[:2], bool) if real is None else real
    kept = np.ones(experts.shape, bool) if kept is None else kept
    return compiled_statistics(logits, experts, jnp.asarray(real), jnp.asarray(kept), over, renormalize)


@functools.partial(jax.jit, static_argnums=(4, 5))
def compiled_statistics(logits, experts, real, kept, over, renormalize):
    probabilities = jax.nn.softmax(logits, axis=-1)
    experts = jnp.where(real[..., None], experts, logits.shape[-1])
    gates = routing.gates(probabilities, experts, renormalize=renormalize, scale=1.0)
    kept &= experts < logits.shape[-1]
    return routing.statistics(logits, probabilities, experts, gates, kept, real, balance_over=over)


@pytest.mark.parametrize("over", ["batch", "row"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_balanced_load_costs_exactly_k(k, over):
    experts = (np.arange(8)[:, None] + np.arange(k)) % 4
    found = statistics_of(np.zeros((2, 8, 4)), np.broadcast_to(experts, (2, 8, k)), over=over)
    assert float(found.balance / found.tokens) == k
    # Where the load is even, the probabilities do not matter.
    logits = np.random.default_rng(0).standard_normal((2, 8, 4))
    found = statistics_of(logits, np.broadcast_to(experts, (2, 8, k)), over=over)
    np.testing.assert_allclose(found.balance / found.tokens, k, rtol=1e-6)


@pytest.mark.parametrize("over", ["batch", "row"])
def test_all_to_one_expert_costs_the_number_of_experts(over):
    logits = np.where(np.arange(4) == 2, 1e3, 0.0) * np.ones((2, 8, 1))
    found = statistics_of(logits, np.full((2, 8, 1), 2), over=over)
    assert float(found.balance / found.tokens) == 4.0


def test_two_rows_that_balance_each_other_cost_by_row_and_not_by_batch():
    logits = np.stack([np.tile([1e3, 0], (6, 1)), np.tile([0, 1e3], (6, 1))])
    experts = np.stack([np.full((6, 1), 0), np.full((6, 1), 1)])
    found = {over: statistics_of(logits, experts, over=over) for over in ("batch", "row")}
    assert {over: float(s.balance / s.tokens) for over, s in found.items()} == {"batch": 1.0, "row": 2.0}


def random_case(k=2, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((3, 10, 4)) + np.array([0.7, 0, 0, -0.4])
    real = np.arange(10) < np.array([[10], [6], [3]])
    return logits, np.argsort(-logits, axis=-1)[..., :k], real


def test_padding_counts_nowhere():
    logits, experts, real = random_case()
    padded = statistics_of(logits, experts, real)
    alone = statistics_of(logits[real][None], experts[real][None])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), padded, alone)
    other = statistics_of(np.where(real[..., None], logits, 50.0), np.where(real[..., None], experts, 0), real)
    jax.tree.map(np.testing.assert_array_equal, padded, other)

    def total(logits):
        s = statistics_of(logits, experts, real)
        return s.balance + s.z + s.importance

    slopes = np.asarray(jax.grad(total)(jnp.asarray(logits, jnp.float32)))
    assert (slopes[~real] == 0).all() and (slopes[real] != 0).any(-1).all()


def test_the_loss_by_row_is_the_mean_over_rows_weighted_by_their_tokens():
    logits, experts, real = random_case()
    found = statistics_of(logits, experts, real, over="row")
    rows = [statistics_of(logits, experts, real & (np.arange(3) == r)[:, None]) for r in range(3)]
    expected = np.average([float(s.balance / s.tokens) for s in rows], weights=real.sum(1))
    np.testing.assert_allclose(found.balance / found.tokens, expected, rtol=1e-6)


def test_statistics_of_no_token_at_all_are_finite():
    found = statistics_of(*random_case()[:2], np.zeros((3, 10), bool))
    assert all(np.isfinite(x).all() for x in found) and float(found.tokens) == 0


LOSSES = {
    "z": (1, False, lambda s: s.z),
    **{f"switch_top{k}": (k, False, lambda s: s.balance) for k in (1, 2)},
    **{f"mixtral_top{k}{end}": (k, bool(end), lambda s: s.balance) for k in (1, 2) for end in ("", "_masked")},
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_transformers(name):
    stored = np.load(REFERENCE / "moe_losses.npz")
    k, masked, part = LOSSES[name]
    over = "row" if name.startswith("switch") else "batch"

    def loss(logits):
        found = statistics_of(logits, stored[f"experts_top{k}"], stored["mask"] if masked else None, over)
        return part(found) / found.tokens

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(stored["logits"]))
    np.testing.assert_allclose(value, stored[name], rtol=1e-6)
    np.testing.assert_allclose(slope, stored[f"g/{name}"], rtol=1e-4, atol=1e-7)


def noisy_parts(clean, noise_logits, noise):
    """Return gates [N, E], probabilities [N, E], and both squared variations, of a noisy router of 2 experts a token."""
    scale = routing.noise_scale(noise_logits)
    noisy = clean + noise * scale
    experts = routing.top_k(noisy[None], 2)
    gates = routing.gates(jax.nn.softmax(noisy, axis=-1)[None], experts, renormalize=True, scale=1.0)[0]
    spread = jnp.sum(jax.nn.one_hot(experts[0], 6) * gates[..., None], axis=1)
    probability = routing.smooth_load(clean[None], noisy[None], scale[None], 2)[0]
    return spread, probability, routing.variation(spread.sum(0)), routing.variation(probability.sum(0))


def test_noisy_gates_and_loads_are_the_stored_ones():
    stored = np.load(REFERENCE / "moe_noisy.npz")
    gates, probability, importance, load = jax.jit(noisy_parts)(
        *(jnp.asarray(stored[x]) for x in ("clean", "noise_logits", "noise"))
    )
    np.testing.assert_allclose(gates, stored["gates"], atol=1e-5)
    np.testing.assert_allclose(probability, stored["probability"], atol=2e-5)
    np.testing.assert_allclose(importance, stored["importance_cv2"], rtol=1e-4)
    np.testing.assert_allclose(load, stored["load_cv2"], rtol=1e-4)


@pytest.mark.parametrize("name", ["importance_loss", "load_loss", "loss"])
def test_gradients_of_noisy_losses_are_the_stored_ones(name):
    stored = np.load(REFERENCE / "moe_noisy.npz")

    def loss(clean, noise_logits):
        *_, importance, load = noisy_parts(clean, noise_logits, jnp.asarray(stored["noise"]))
        return 0.1 * {"importance_loss": importance, "load_loss": load, "loss": importance + load}[name]

    slopes = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(stored["clean"]), jnp.asarray(stored["noise_logits"]))
    for found, leaf in zip(slopes, ("clean", "noise_logits"), strict=True):
        expected = stored[f"g/{name}/{leaf}"]
        np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_importance_is_of_the_gates_that_tokens_use():
    stored = np.load(REFERENCE / "moe_noisy.npz")
    found = statistics_of(stored["H"][None], routing.top_k(jnp.asarray(stored["H"])[None], 2), renormalize=True)
    np.testing.assert_allclose(found.importance / found.tokens, stored["importance_cv2"], rtol=1e-5)


def test_statistics_add_up_over_batches():
    logits, experts, real = random_case()
    whole = statistics_of(logits, experts, real, over="row")
    parts = [statistics_of(logits, experts, real & (np.arange(3) % 2 == odd)[:, None], over="row") for odd in (0, 1)]
    added = jax.tree.map(lambda a, b: a + b, *parts)
    for name in ("tokens", "load", "kept", "probability", "entropy", "gate", "balance", "z"):
        np.testing.assert_allclose(getattr(added, name), getattr(whole, name), rtol=1e-6, err_msg=name)


def test_a_summary_worked_by_hand():
    experts = np.array([[[0], [0], [0], [1]]])
    logits = np.log(np.array([[[0.5, 0.25, 0.25]] * 4]))
    found = statistics_of(logits, experts, kept=np.array([[[True], [True], [False], [True]]]))
    summary = {name: float(x[0]) for name, x in routing.summarize(jax.tree.map(lambda x: x[None], found)).items()}
    expected = {
        "router_dropped": 0.25,
        "router_load_max": 2.25,
        "router_load_cv": np.std([3, 1, 0]) / (4 / 3),
        "router_entropy": 0.5 * np.log(2) + 0.5 * np.log(4),
        "router_gate": (3 * 0.5 + 0.25) / 4,
        "router_dead": 1.0,
        "router_balance_loss": 3 * (0.75 * 0.5 + 0.25 * 0.25),
        "router_z_loss": 0.0,
        "router_importance_loss": np.var([1.5, 0.25, 0]) / np.mean([1.5, 0.25, 0]) ** 2,
        "router_load_loss": 0.0,
    }
    assert summary.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(summary[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
