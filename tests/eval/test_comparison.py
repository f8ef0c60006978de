"""Comparisons over seeds: what intervals promise, and what the smallest detectable difference does, held by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxlm.eval.comparison import Effect, adjusted, bootstrap_items, describe, detectable, paired, summary


def test_seeds_are_paired():
    control = {0: 3.0, 1: 4.0, 2: 5.0, 7: 1.0}
    arm = {0: 2.9, 1: 3.95, 2: 4.85, 5: 0.0}
    found = paired(arm, control)
    test = stats.ttest_rel([arm[s] for s in range(3)], [control[s] for s in range(3)])
    low, high = test.confidence_interval(0.95)
    assert found[:3] == pytest.approx((-0.1, low, high)) and found.p == pytest.approx(test.pvalue)
    assert (found.seeds, found.method) == (3, "t")
    assert paired({1: 0.0}, {2: 0.0}) is None and paired({}, control) is None
    assert describe(found, 3) == "-0.100 (-0.224 to 0.024), detectable 0.163, 3 seeds"
    # The noise that arms share is no part of it: apart, the same values say nothing.
    assert summary(arm[s] for s in range(3)).high - summary(arm[s] for s in range(3)).low > 4


def test_one_seed_has_no_interval():
    found = paired({4: 2.0}, {4: 2.5})
    assert (found.mean, found.seeds, found.method) == (-0.5, 1, "single")
    assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.detectable) and math.isnan(found.p)
    assert describe(found, 2) == "-0.50, 1 seed: no interval"
    with pytest.raises(ValueError):
        summary([])


def test_a_run_that_diverged_is_not_left_out():
    found = paired({0: 2.0, 1: math.nan, 2: 2.0}, {0: 2.5, 1: 2.5, 2: 2.5})
    assert math.isnan(found.mean) and math.isnan(found.low) and describe(found) == "not finite, 3 seeds"


def test_differences_all_alike():
    """No spread is no certainty: two seeds that differ by the same would otherwise be significant at any level."""
    same = paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert (same.mean, same.p, same.method) == (0.0, 1.0, "none") and np.isnan(same[1:4]).all()
    assert describe(same) == "0.0000, 2 seeds: no difference in any"
    for seeds in (2, 12):
        control = {seed: 3.0 + 0.1 * seed for seed in range(seeds)}
        shifted = paired({seed: value - 0.1 for seed, value in control.items()}, control)  # alike but for their last bits
        assert shifted.mean == pytest.approx(-0.1) and np.isnan([*shifted[1:4], shifted.p]).all()
        assert describe(shifted, 2) == f"-0.10, {seeds} seeds: no spread to judge by"
    assert adjusted([shifted, same]) == pytest.approx([math.nan, 1.0], nan_ok=True)
    assert summary([2.0, 2.0]).method == "none" and math.isnan(summary([2.0, 2.0]).low)
    assert paired({0: 1e-9, 1: 3e-9}, {0: 0.0, 1: 0.0}).method == "t"  # small is not alike
    one_of_eight = summary([0.0] * 7 + [1.0])  # a third of the resamples would be all zeros
    assert one_of_eight.method == "t" and one_of_eight.low < 0 < one_of_eight.high


DISTRIBUTIONS = {
    "normal": (lambda generator, shape: generator.normal(size=shape), 0.0),
    "skewed": (lambda generator, shape: generator.exponential(size=shape), 1.0),
}


def coverage(name, seeds, trials, draws=600):
    """Return how often the interval holds the truth, and how often Student's would."""
    draw, truth = DISTRIBUTIONS[name]
    values = draw(np.random.default_rng(3), (trials, seeds))
    found = [summary(row, draws=draws) for row in values]
    half = stats.t.ppf(0.975, seeds - 1) * values.std(axis=1, ddof=1) / math.sqrt(seeds)
    student = np.abs(values.mean(axis=1) - truth) <= half
    return np.mean([effect.low <= truth <= effect.high for effect in found]), student.mean()


@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
def test_coverage_of_normal_differences(seeds):
    held, _ = coverage("normal", seeds, 1500)
    assert 0.93 <= held <= 0.97, held


def test_coverage_of_skewed_differences():
    few, student_few = coverage("skewed", 5, 1500)
    many, student_many = coverage("skewed", 10, 1500)
    assert few == student_few and 0.86 <= few <= 0.91  # Student's t promises more than it holds here
    assert many > student_many + 0.02 and 0.92 <= many <= 0.97, (many, student_many)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_smallest_detectable_difference_is_found_in_four_of_five(seeds):
    spread, trials = 0.3, 2000 if seeds == 10 else 4000
    true = detectable(spread, seeds, method="bootstrap" if seeds == 10 else "t")
    values = np.random.default_rng(11).normal(true, spread, (trials, seeds))
    found = np.mean([summary(row, draws=600).low > 0 for row in values])
    assert 0.78 <= found <= 0.82, found
    sample = values[0]
    effect = paired(dict(enumerate(sample)), dict.fromkeys(range(seeds), 0.0))
    assert effect.detectable == pytest.approx(detectable(sample.std(ddof=1), seeds, method=effect.method))


def test_detectable_against_published_tables():
    # Cohen's d of a one-sample t-test at 5 %, 80 % power: G*Power gives n = 34 for 0.5 and n = 15 for 0.8 (rounded up).
    assert detectable(1.0, 34) < 0.5 < detectable(1.0, 33) and detectable(1.0, 15) < 0.8 < detectable(1.0, 14)
    assert math.isnan(detectable(1.0, 1)) and detectable(0.0, 3) == 0


def test_p_and_interval_agree():
    generator = np.random.default_rng(5)
    for seeds in (3, 12):
        for row in generator.normal(0.5, 0.7, (60, seeds)):
            effect = summary(row, draws=2000)
            assert (effect.p < 0.05) == (effect.low > 0 or effect.high < 0), effect


def test_many_arms_are_looked_at_together():
    def of(p):
        return Effect(0.1, 0.0, 0.2, 0.1, 3, "t", p)

    effects = [of(0.04), of(0.01), None, of(math.nan), of(0.03), of(0.005)]
    found = adjusted(effects)
    assert [found[i] for i in (0, 1, 4, 5)] == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert math.isnan(found[2]) and math.isnan(found[3]) and adjusted([of(0.9), of(0.8)]) == [1.0, 1.0]
    # Ten arms that are all as good as the control: one is called different in 40 % of such sweeps, adjusted in 5 %.
    p = stats.ttest_1samp(np.random.default_rng(2).normal(size=(1000, 10, 4)), 0.0, axis=2).pvalue
    alone, together = np.mean(p.min(axis=1) < 0.05), np.mean([min(adjusted([of(v) for v in row])) < 0.05 for row in p])
    assert 0.35 < alone < 0.45 and 0.03 < together < 0.07


def test_bootstrap_over_items():
    generator = np.random.default_rng(0)
    items = generator.normal(0.2, 1.0, 400)
    found = bootstrap_items(np.stack([items + generator.normal(0, 0.1, 400) for _ in range(3)]))
    half = 1.96 * items.std() / 20  # seeds that answer the items alike do not make them more
    assert found.mean == pytest.approx(items.mean(), abs=0.02) and found.seeds == 3 and found.method == "bootstrap"
    assert found.high - found.mean == pytest.approx(half, rel=0.1) and found.mean - found.low == pytest.approx(half, rel=0.1)
    for row in generator.normal(0.4, 1.0, (200, 14)):
        effect = bootstrap_items(row, 999)
        near = 0.04 < effect.p < 0.06  # a single resample more or less decides
        assert near or (effect.p < 0.05) == (effect.low > 0 or effect.high < 0), effect
    assert 0 < bootstrap_items(np.arange(1.0, 41.0), 999).p < 0.01  # no resample reaches 0, which is not p = 0
    held = [(e := bootstrap_items(row, 500)).low <= 0 <= e.high for row in generator.normal(size=(800, 12))]
    assert 0.925 <= np.mean(held) <= 0.97, np.mean(held)
    with pytest.raises(ValueError):
        bootstrap_items(np.empty((2, 0)))
