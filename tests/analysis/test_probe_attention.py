"""Heads whose habits are known: planted ones, and one that attends alike to all."""

import numpy as np
import pytest
from models import batch_of, tiny
from planted import L, config, induction_head, nothing, rows

from jaxlm.analysis.probes.attention import AttentionSettings, probe, repeated
from jaxlm.analysis.view import View

MODEL = config()
SETTINGS = AttentionSettings(repeated=12, rows=4)


@pytest.fixture(scope="module")
def looked():
    """What the probe finds before and after an induction head is planted; one program serves both."""
    import jax

    from jaxlm.layout import make_mesh

    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        view = View.of({0: nothing(MODEL), 1: induction_head(MODEL)}, MODEL, rows())
        return [probe(view.at(step), SETTINGS) for step in (0, 1)]


def test_a_head_that_attends_alike(looked):
    before, _ = looked
    seen = np.arange(2, L + 1)  # tokens that a query sees, the first left out
    np.testing.assert_allclose(before["entropy_by_head"].values, np.log(seen).mean(), rtol=1e-5)
    np.testing.assert_allclose(before["evenness_by_head"].values, 1, rtol=1e-5)
    np.testing.assert_allclose(before["distance_by_head"].values, ((seen - 1) / 2).mean(), rtol=1e-5)
    for kind in ("previous", "first"):
        np.testing.assert_allclose(before[f"{kind}_by_head"].values, (1 / seen).mean(), rtol=1e-5)
    assert before["best_induction"].values < 0.1
    assert before["copying_accuracy"].values < 0.3  # all logits are alike, and only the first of them is the likeliest
    assert before["repeated_tokens"].values == 12
    assert before["copying_gain"].values == pytest.approx(0, abs=1e-5)


def test_a_planted_induction_head(looked):
    before, after = looked
    assert after["previous_by_head"].values[0, 0] > 0.99 and after["distance_by_head"].values[0, 0] == pytest.approx(
        1, abs=0.01
    )
    assert after["induction_by_head"].values[0, 0] < 0.1
    assert after["entropy_by_head"].values[0, 0] < 0.05 < before["entropy_by_head"].values[0, 0]
    assert after["best_induction"].values > 0.99 and after["copying_accuracy"].values == 1
    assert after["best_induction"].values == after["induction_by_head"].values[1, 0]
    assert after["best_induction_heads"].values[1].startswith("head 0 (")
    assert after["best_previous_heads"].values[0] in ("head 0 (1.00)", "head 0 (0.99)")
    assert after["copying_gain"].values > 2  # nats


def test_tokens_are_different_and_as_many_as_there_are():
    view = View.of({0: induction_head(MODEL)}, MODEL, rows(count=1, length=30))
    twice = repeated(view, AttentionSettings(repeated=64, rows=3))
    count = twice.tokens.shape[1] // 2
    assert count == 14  # (30 - 1) // 2
    for row in twice.tokens:
        assert row[0] == 0 and len(set(row[: count + 1])) == count + 1
        assert row[1:count].tolist() == row[count + 1 :].tolist()
    few = tiny(vocab_size=5, num_layers=1)
    assert repeated(View.of({0: None}, few, batch_of(rows=2, vocab=5)), AttentionSettings()).tokens.shape == (8, 8)
