"""Heads whose habits are known: planted ones, and one that attends alike to all."""

import numpy as np
import pytest
from planted import L, config, induction_head, nothing, rows

from jaxlm.analysis.probes.attention import AttentionSettings, probe
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
    assert before["copying_accuracy"].values > 0.99  # all logits are alike, and none is likelier
    assert before["copying_gain"].values == pytest.approx(0, abs=1e-5)


def test_a_planted_induction_head(looked):
    before, after = looked
    assert after["previous_by_head"].values[0, 0] > 0.99 and after["distance_by_head"].values[0, 0] == pytest.approx(
        1, abs=0.01
    )
    assert after["induction_by_head"].values[0, 0] < 0.1
    assert after["entropy_by_head"].values[0, 0] < 0.05 < before["entropy_by_head"].values[0, 0]
    # Where a random token comes twice before it is repeated, the head rightly attends to both.
    assert after["best_induction"].values > 0.6
    assert after["best_induction"].values == after["induction_by_head"].values[1, 0]
    assert after["best_induction_heads"].values[1].startswith("head 0 (0.")
    assert after["best_previous_heads"].values[0] in ("head 0 (1.00)", "head 0 (0.99)")
    assert after["copying_gain"].values > 2  # nats


def test_repeated_tokens_without_duplicates_are_copied_wholly():
    """With tokens that come but once before they are repeated, score and accuracy are 1."""
    from jaxlm.analysis.probes import attention
    from jaxlm.data.packing import Batch

    view = View.of({0: induction_head(MODEL)}, MODEL, rows())
    said = np.stack([np.random.default_rng(seed).permutation(np.arange(1, 13)) for seed in range(4)]).astype(np.int32)
    row = np.concatenate([np.zeros((4, 1), np.int32), said, said], axis=1)
    place = np.broadcast_to(np.arange(24, dtype=np.int32), (4, 24)).copy()
    batch = Batch(row[:, :-1], row[:, 1:], (place >= 12).astype(np.float32), np.ones_like(place), place)
    score = view.reduced(attention.induction, "attention", batch=batch)["score"]
    assert score[1].min() > 0.98 and score[0].max() < 0.05
    found = attention._copying(view, batch)
    assert found["copying_accuracy"].values == 1 and found["copying_gain"].values > 3
