"""Routing against serial loops, worked cases, and stored places of an independent implementation."""

import functools
from fractions import Fraction
from math import ceil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxlm.ops import routing

REFERENCE = Path(__file__).parents[1] / "reference"
PRIORITIES = {"token": "token_major", "choice": "choice_major", "confidence": "batch_prioritised"}
GROUPS, TOKENS, EXPERTS = 2, 12, 5


# Who gets a place.


def serial(experts, capacity, num_experts, priority, confidence):
    """Return {(token, choice): place} of one group, filled one assignment at a time."""
    tokens, k = experts.shape
    order = range(tokens) if priority != "confidence" else sorted(range(tokens), key=lambda t: (-confidence[t], t))
    pairs = [(t, r) for t in order for r in range(k)] if priority == "token" else [(t, r) for r in range(k) for t in order]
    filled, places = [0] * num_experts, {}
    for t, r in pairs:
        expert = experts[t, r]
        if expert < num_experts and filled[expert] < capacity:
            places[t, r] = filled[expert]
            filled[expert] += 1
    return places


@functools.cache
def positions_of(priority):
    return jax.jit(lambda experts, confidence: routing.queue_positions(experts, priority, confidence))


def placed_by_us(experts, capacity, num_experts, priority, confidence):
    """The same of [groups, tokens, choices], a dictionary a group."""
    positions = np.asarray(positions_of(priority)(experts.astype(np.int32), confidence.astype(np.float32)))
    kept = (positions < capacity) & (experts < num_experts)
    return [{tuple(map(int, at)): int(positions[g][tuple(at)]) for at in np.argwhere(kept[g])} for g in range(len(experts))]


@pytest.mark.parametrize("priority", PRIORITIES)
@settings(max_examples=250)
@given(
    scores=arrays(np.int8, (GROUPS, TOKENS, EXPERTS), elements=st.integers(0, 6)),
    real=arrays(bool, (GROUPS, TOKENS), elements=st.booleans(), fill=st.just(True)),
    k=st.integers(1, 3),
    capacity=st.integers(1, 9),
)
def test_places_are_those_of_a_serial_loop(priority, scores, real, k, capacity):
    experts = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    experts = np.where(real[..., None], experts, EXPERTS)
    confidence = scores.max(-1)  # of few values: they tie
    found = placed_by_us(experts, capacity, EXPERTS, priority, confidence)
    assert found == [serial(experts[g], capacity, EXPERTS, priority, confidence[g]) for g in range(GROUPS)]


@pytest.mark.parametrize("priority", PRIORITIES)
def test_places_are_the_stored_ones(priority):
    stored = np.load(REFERENCE / "moe_slots.npz")
    for case in range(len(stored["tokens"])):
        tokens, count, k, capacity = (int(stored[name][case]) for name in ("tokens", "num_experts", "k", "capacity"))
        real = stored["mask"][case, :tokens]
        experts = np.where(real[:, None], stored["experts"][case, :tokens, :k], count)[None]
        confidence = stored["probs"][case, :tokens].max(-1)[None]
        # All shapes at once, of 20 tokens and 3 choices: what is beyond is of no expert, and comes last.
        experts = np.pad(experts, ((0, 0), (0, 20 - tokens), (0, 3 - k)), constant_values=count)
        experts = np.where(experts == count, 6, experts)
        confidence = np.pad(confidence, ((0, 0), (0, 20 - tokens)), constant_values=-1)
        slots, kept = (stored[f"{what}/{PRIORITIES[priority]}"][case] for what in ("slot", "kept"))
        expected = {tuple(map(int, at)): int(slots[tuple(at)]) for at in np.argwhere(kept)}
        assert placed_by_us(experts, capacity, 6, priority, confidence) == [expected]


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("capacity", [1, 4, TOKENS])
def test_where_all_want_one_expert_exactly_its_capacity_is_kept(priority, capacity):
    experts, confidence = np.full((GROUPS, TOKENS, 1), 3), np.arange(GROUPS * TOKENS).reshape(GROUPS, TOKENS)
    for places in placed_by_us(experts, capacity, EXPERTS, priority, confidence):
        assert sorted(places.values()) == list(range(capacity))
        first = 0 if priority != "confidence" else TOKENS - capacity
        assert sorted(t for t, _ in places) == list(range(first, first + capacity))


@pytest.mark.parametrize(
    ("factor", "k", "tokens", "experts", "least", "expected"),
    [
        (1.0, 1, 12, 4, 1, 3),
        (1.0, 1, 13, 4, 1, 4),  # rounds up
        (1.25, 1, 8, 4, 1, 3),
        (1.25, 2, 24, 8, 4, 8),  # counts all k assignments
        (1.0, 1, 10, 8, 4, 4),  # the least
        (1.0, 1, 10, 8, 1, 2),
        (0.01, 1, 1, 64, 1, 1),
        (1.1, 1, 10, 11, 1, 1),  # 1.0000000000000002 in floats
        (2.0, 1, 512, 1, 4, 1024),
    ],
)
def test_capacities(factor, k, tokens, experts, least, expected):
    assert routing.capacity(factor, k, tokens, experts, least) == expected


@given(st.integers(1, 400), st.integers(1, 8), st.integers(1, 8192), st.integers(1, 512), st.integers(1, 8))
def test_a_capacity_in_hundredths_is_that_of_exact_fractions(hundredths, k, tokens, experts, least):
    exact = max(least, ceil(Fraction(hundredths, 100) * k * tokens / experts))
    assert routing.capacity(hundredths / 100, k, tokens, experts, least) == exact


# Which experts a token chooses, or is chosen by.


def test_the_lower_expert_wins_a_tie():
    scores = jnp.array([[[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]]])
    assert routing.top_k(scores, 1).tolist() == [[[1], [0]]]
    assert routing.top_k(scores, 3).tolist() == [[[1, 2, 3], [0, 1, 2]]]


def test_gates_are_raw_scores_or_shares_of_the_chosen_and_zero_without_an_expert():
    scores, experts = jnp.array([[[0.1, 0.2, 0.3, 0.4]] * 2]), jnp.array([[[3, 1], [4, 4]]])
    raw = routing.gates(scores, experts, renormalize=False, scale=1.0)
    np.testing.assert_allclose(raw, [[[0.4, 0.2], [0, 0]]], rtol=1e-6)
    shares = routing.gates(scores, experts, renormalize=True, scale=2.5)
    np.testing.assert_allclose(shares, [[[2.5 * 2 / 3, 2.5 / 3], [0, 0]]], rtol=1e-6)


@settings(max_examples=200)
@given(
    scores=arrays(np.int8, (GROUPS, TOKENS, EXPERTS), elements=st.integers(0, 8)),
    real=arrays(bool, (GROUPS, TOKENS), elements=st.booleans(), fill=st.just(True)),
    places=st.sampled_from([1, 4, TOKENS]),
)
def test_experts_choose_their_likeliest_tokens_one_by_one(scores, real, places):
    probabilities = (scores / 8).astype(np.float32)
    expected = np.zeros(scores.shape, bool)
    for g in range(GROUPS):
        for e in range(EXPERTS):
            candidates = [t for t in range(TOKENS) if real[g, t]]
            for _ in range(min(places, len(candidates))):
                best = max(candidates, key=lambda t: (probabilities[g, t, e], -t))
                candidates.remove(best)
                expected[g, best, e] = True
    found = chosen_by_experts(places)(probabilities, real)
    np.testing.assert_array_equal(found, expected)


@functools.cache
def chosen_by_experts(places):
    return jax.jit(lambda probabilities, real: routing.expert_choice(probabilities, real, places))


def test_a_group_of_experts_counts_by_its_two_best_alone():
    scores = jnp.array([[[0.8, 0.8, 0.8, 1.0, 0.0, 1.0]]])  # all three of the first add up to more
    assert np.isfinite(routing.limit_groups(scores, 2, 1)).tolist() == [[[False] * 3 + [True] * 3]]


@pytest.mark.parametrize(("groups", "kept"), [(4, 1), (4, 2), (4, 4), (12, 3), (6, 2)])
def test_limited_groups_are_those_of_a_loop(groups, kept):
    scores = np.random.default_rng(groups).standard_normal((3, 40, 12)).astype(np.float32)
    size, expected = 12 // groups, np.full_like(scores, -np.inf)
    for at in np.ndindex(3, 40):
        worth = [sum(sorted(scores[at][g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        for g in sorted(range(groups), key=lambda g: -worth[g])[:kept]:
            expected[at][g * size : (g + 1) * size] = scores[at][g * size : (g + 1) * size]
    np.testing.assert_array_equal(routing.limit_groups(jnp.asarray(scores), groups, kept), expected)
