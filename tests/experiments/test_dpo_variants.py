"""Labels come from the reward, best of n is exact, and the bandit ends where its paper says."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from bandit import optimise
from dpo_variants import best_of, label, prompts
from reviews import score

from jaxlm.objective.preference_config import PreferenceConfig


def test_labels_follow_the_reward_as_bradley_and_terry_have_it():
    good, bad = " It was bright and superb, and she used it.", " It was dull and heavy, and she used it."
    groups = [("Ada the cook bought a lamp.", [good, bad, good, ""])] * 3000
    rows = label(groups, seed=0)
    assert score(good) - score(bad) == 3 and len(rows["preferences"]) == 6000 and len(rows["labels"]) == 9000
    assert np.mean([pair["chosen"] == good for pair in rows["preferences"]]) == pytest.approx(1 / (1 + np.exp(-3)), abs=0.01)
    wanted = 1 / (1 + np.exp(-(2 - (2 - 1 + 2 + 0) / 4)))
    assert np.mean([row["label"] for row in rows["labels"] if row["response"] == good]) == pytest.approx(wanted, abs=0.02)


def test_best_of_n_is_the_mean_over_all_choices():
    scores = np.random.default_rng(0).integers(-3, 4, (5, 6)).astype(float)
    for n in (1, 2, 4, 6):
        slow = [np.mean([max(chosen) for chosen in itertools.combinations(row, n)]) for row in scores]
        np.testing.assert_allclose(best_of(scores, n), slow, rtol=1e-12)


def test_beginnings_asked_about_are_in_no_training_text():
    assert not {*prompts(500, 1)} & {*prompts(200, 2, kept_out=True)}


def test_ipo_stops_where_least_squares_say_and_dpo_goes_on():
    beta = 0.5
    ipo = optimise(PreferenceConfig(loss="ipo_sum", beta=beta), after=(1500, 3000))
    np.testing.assert_allclose(np.diff(ipo[-1]), -1 / (3 * beta), atol=1e-3)
    np.testing.assert_allclose(ipo[0], ipo[1], atol=1e-3)
    dpo = optimise(PreferenceConfig(loss="sigmoid", beta=beta), after=(1000, 2000, 3000))[:, 2]
    assert dpo[0] - 0.3 > dpo[1] > dpo[2] + 0.1
