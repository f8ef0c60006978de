"""CKA of features whose likeness is known, and of a model with itself and with another."""

import numpy as np
import pytest
from mixtures import draw
from models import batch_of, tiny

from jaxlm.analysis.probes.cka import CkaConfig, grams_of, probe
from jaxlm.analysis.similarity import cka, evenly, gram, pairwise
from jaxlm.analysis.view import View

RNG = np.random.default_rng(1)


def test_rotated_scaled_and_moved_features_are_the_same():
    features = RNG.standard_normal((60, 10))
    rotation = np.linalg.qr(RNG.standard_normal((10, 10)))[0]
    found = pairwise([gram(features), gram(7 * features @ rotation + 3)])
    np.testing.assert_allclose(found, 1, atol=1e-9)


def test_independent_features_are_not_alike_however_few_the_tokens():
    found = [cka(gram(RNG.standard_normal((20, 200))), gram(RNG.standard_normal((20, 200)))) for _ in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found)) + 1e-3
    # The plain estimate is far from 0 here.
    left, right = (gram(RNG.standard_normal((20, 200))) for _ in range(2))
    assert np.vdot(left, right) / np.sqrt(np.vdot(left, left) * np.vdot(right, right)) > 0.5


def test_a_shared_part_counts_by_its_share_of_the_variance():
    shared, noise = RNG.standard_normal((2000, 5)), RNG.standard_normal((2000, 5))
    # K of the sum is that of both parts, so CKA = |K_s|^2 / (|K_s| |K_s + K_n|), which tends to 1 / sqrt 2.
    assert cka(gram(shared), gram(np.concatenate([shared, noise], axis=1))) == pytest.approx(1 / np.sqrt(2), abs=0.03)


def test_features_that_never_change_have_no_likeness():
    assert np.isnan(cka(gram(np.ones((8, 3))), gram(RNG.standard_normal((8, 3)))))


def test_places_are_spread_evenly():
    assert evenly(np.arange(10, 20), 4).tolist() == [10, 13, 16, 19]
    assert evenly(np.arange(3), 9).tolist() == [0, 1, 2]


def test_tokens_are_of_all_rows_also_in_pieces(monkeypatch):
    config, rows = tiny(), batch_of(rows=4)
    view = View.of({0: draw(config)}, config, rows)
    places = evenly(np.flatnonzero(rows.segments), 8)
    assert {int(place) // rows.tokens.shape[1] for place in places} == {0, 1, 2, 3}
    _, whole = grams_of(view, places)
    expected = view.activations("resid")["resid"][1].reshape(-1, 32)[places]
    np.testing.assert_allclose(whole[2], gram(expected), atol=1e-4)
    monkeypatch.setattr("jaxlm.analysis.view.BYTES_OF_ACTIVATIONS", 3 * 4 * 24 * 3 * 32)
    again = View.of({0: view.params}, config, rows)
    assert len(list(again.pieces("embed", "resid"))) == 2
    for one, other in zip(grams_of(again, places)[1], whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_model_is_like_itself_and_not_like_another():
    config = tiny()
    same, other = draw(config), draw(config, seed=1)
    found = probe(View.of({0: same, 1: same, 2: other}, config, batch_of(), step=1), CkaConfig(tokens=64))
    assert found["layers"].values.shape == (3, 3)
    np.testing.assert_allclose(np.diagonal(found["layers"].values), 1)
    np.testing.assert_allclose(found["previous"].values, 1)
    assert np.all(found["last"].values < 0.9)
    assert found["last"].labels["layer"] == ("embed", "0", "1")
