"""Controls keep what they should, at their boundaries too, as transformers' processors do; draws follow the distribution."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decode.sampling import Controls, Sampling, choose, controls_of, filtered, penalized
from jaxlm.errors import ConfigError

STORED = json.loads((Path(__file__).parents[1] / "reference" / "generation.json").read_text())
compiled = jax.jit(filtered)


def controls(*rows: Sampling) -> Controls:
    return jax.tree.map(jnp.asarray, controls_of(list(rows)))


def kept(logits, **given):
    out = compiled(jnp.asarray([logits], jnp.float32), controls(Sampling(**given)))
    return np.flatnonzero(np.isfinite(out[0])).tolist()


def test_filters_at_their_boundaries():
    assert kept([1.0, 1.0, 0.0], top_k=1) == [0, 1]  # ties with the k-th are kept
    assert kept([3.0, 2.0, 1.0], top_k=2) == [0, 1]
    probabilities = np.log([0.5, 0.3, 0.2])
    for top_p, count in ((0.0, 1), (0.49, 1), (0.5, 1), (0.79, 2), (0.8, 2), (0.81, 3), (1.0, 3)):
        assert len(kept(probabilities, top_p=top_p)) == count, top_p
    assert kept(np.log([0.2, 0.5, 0.3]), top_p=0.6) == [1, 2]
    assert kept(np.log([0.5, 0.3, 0.2]), top_k=2, top_p=0.62) == [0]  # of what top-k left, renormalised: 0.625
    assert kept(np.log([0.5, 0.3, 0.2]), min_p=0.59) == [0, 1]
    assert kept(np.log([0.5, 0.3, 0.2]), min_p=0.61) == [0]
    assert kept([2.0, 2.0, 1.0], min_p=1.0) == [0, 1]
    # At a higher temperature, which comes first, more is probable enough.
    assert kept(np.log([0.5, 0.3, 0.2]), min_p=0.61, temperature=2.0) == [0, 1, 2]


@pytest.mark.parametrize("length", sorted({len(case["logits"]) for case in STORED["samplers"]}))
def test_equal_to_transformers(length):
    cases = [case for case in STORED["samplers"] if len(case["logits"]) == length]
    logits, rows = jnp.array([case["logits"] for case in cases]), controls(*(Sampling(**case["controls"]) for case in cases))
    seen = np.zeros((len(cases), length), bool)
    for row, case in enumerate(cases):
        seen[row, case["seen"]] = True
    out = compiled(penalized(logits, jnp.asarray(seen), jnp.zeros(logits.shape, jnp.int32), rows), rows)
    expected = np.array([[-np.inf if x is None else x for x in case["out"]] for case in cases])
    np.testing.assert_array_equal(np.isfinite(out), np.isfinite(expected), [case["controls"] for case in cases])
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_penalties_count_what_they_should():
    logits = jnp.array([[2.0, 2.0, -2.0, -2.0, 1.0]])
    prompt, counts = jnp.array([[True, False, True, False, False]]), jnp.array([[0, 3, 0, 1, 0]])
    repetition = penalized(logits, prompt, counts, controls(Sampling(repetition_penalty=2.0)))
    np.testing.assert_allclose(repetition[0], [1.0, 1.0, -4.0, -4.0, 1.0])
    others = penalized(logits, prompt, counts, controls(Sampling(frequency_penalty=0.5, presence_penalty=-1.0)))
    np.testing.assert_allclose(others[0], [2.0, 2.0 - 1.5 + 1.0, -2.0, -2.0 - 0.5 + 1.0, 1.0])
    together = Sampling(repetition_penalty=2.0, frequency_penalty=0.5)  # the repetition penalty comes first
    np.testing.assert_allclose(penalized(logits, prompt, counts, controls(together))[0], [1.0, -0.5, -4.0, -4.5, 1.0])


def test_draws_follow_the_distribution():
    draws = 100_000
    probabilities = np.array([0.5, 0.25, 0.2, 0.05])
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities, jnp.float32))[None], (draws, 4))

    def drawn(sampling):
        rows = Controls(*(jnp.broadcast_to(x, (draws,)) for x in controls(sampling)))
        return np.bincount(jax.jit(choose)(logits, jax.random.split(jax.random.key(0), draws), rows), minlength=4)

    squared = np.sqrt(probabilities) / np.sqrt(probabilities).sum()
    nucleus = np.array([0.5, 0.25, 0.0, 0.0]) / 0.75
    for sampling, expected in (
        (Sampling(), probabilities), (Sampling(temperature=2.0), squared), (Sampling(top_p=0.75), nucleus),
    ):  # fmt: skip
        real = expected > 0
        counts = drawn(sampling)
        assert counts[~real].sum() == 0
        wanted = draws * expected[real]
        assert ((counts[real] - wanted) ** 2 / wanted).sum() < 16.3, sampling  # chi-square, 3 degrees, p = 0.001


def test_each_row_has_its_own_controls():
    logits = jnp.tile(jnp.log(jnp.array([[0.4, 0.35, 0.25]])), (3, 1))
    rows = controls(Sampling(temperature=0.0), Sampling(top_k=1), Sampling(top_k=2))
    finite = np.isfinite(compiled(logits, rows))
    assert finite.sum(axis=1).tolist() == [3, 1, 2]
    token = choose(logits, jax.random.split(jax.random.key(5), 3), rows)
    assert token[:2].tolist() == [0, 0]


@pytest.mark.parametrize(
    "wrong", [{"top_p": 1.1}, {"temperature": -1.0}, {"repetition_penalty": 0.0}, {"presence_penalty": 3.0}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"Sampling.{next(iter(wrong))}.* out of range"):
        Sampling(**wrong)
