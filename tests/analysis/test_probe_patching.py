"""Patching and steering where the result is known: all of the last residual, an untouched place, no strength."""

import json

import numpy as np
import pytest
from mixtures import draw
from models import VOCAB, batch_of, tiny

from jaxlm.analysis.interventions import adding, direction, logit_difference, pairs_of, patched, repetitions, steer
from jaxlm.analysis.interventions import batch_of as rows_of
from jaxlm.analysis.measure import NotSuited
from jaxlm.analysis.probes.patching import PatchingConfig, probe
from jaxlm.analysis.view import View
from jaxlm.data.byte_tokenizer import BYTE_VOCAB_SIZE, ByteTokenizer
from jaxlm.errors import DataError

CONFIG = tiny(vocab_size=BYTE_VOCAB_SIZE, attention_kernel="plain")


def looked_at(**given):
    return View.of({0: draw(CONFIG)}, CONFIG, batch_of(rows=4, vocab=12), tokenizer=ByteTokenizer(), **given)


def test_repetitions_differ_in_the_token_to_be_copied():
    pairs = repetitions(range(3, VOCAB), 5, 8, start=(1,))
    for clean, corrupted, length, answer, wrong in zip(*pairs, strict=True):
        differ = np.flatnonzero(clean != corrupted)
        assert len(differ) == 1
        assert (clean[differ[0]], corrupted[differ[0]]) == (answer, wrong)
        assert clean[1 : length - 8].tolist() == clean[9:length].tolist()  # begun again, and cut before the answer
        assert differ[0] == length - 8
    groups = pairs.groups
    assert groups["changed"].sum() == groups["last"].sum() == 5
    assert not np.any(groups["between"] & (groups["changed"] | groups["last"]))


def test_what_is_patched_decides_what_comes_back():
    view, pairs = looked_at(), repetitions(range(3, VOCAB), 4, 6, start=(1,))
    place = np.arange(pairs.clean.shape[1])[None]
    before = place < (pairs.clean != pairs.corrupted).argmax(axis=1)[:, None]
    groups = pairs.groups | {"untouched": before, "nowhere": np.zeros_like(before)}
    found = patched(view, pairs, groups=groups)
    recovered = dict(zip(groups, np.moveaxis(found.recovered, 1, 0), strict=True))  # [sites, layers] each
    assert abs(found.clean - found.corrupted) > 1e-3
    assert found.error > 0
    np.testing.assert_allclose(recovered["all"][0], 1, atol=1e-4)  # the whole residual, after any layer
    np.testing.assert_allclose(recovered["last"][0, -1], 1, atol=1e-4)  # nothing else is read after the last layer
    np.testing.assert_allclose(recovered["changed"][0, -1], 0, atol=1e-4)
    np.testing.assert_allclose(recovered["untouched"], 0, atol=1e-4)
    assert np.all(recovered["nowhere"] == 0)
    assert abs(recovered["changed"][0, 0]) > 1e-2
    # The clean end is the model's own.
    assert found.clean == pytest.approx(
        float(logit_difference(view, rows_of(pairs.clean, pairs.lengths), pairs).mean()), rel=1e-4
    )
    same = patched(view, pairs._replace(corrupted=pairs.clean), ("resid",), {"all": groups["all"]})
    assert same.clean == same.corrupted
    assert same.error == 0
    assert np.isnan(same.recovered).all()
    np.testing.assert_allclose(same.differences, same.clean, atol=1e-5)


def test_pairs_must_be_as_long():
    with pytest.raises(DataError, match="pair 1 has 2 clean and 3 corrupted tokens"):
        pairs_of([((1, 2), (1, 3), 4, 5), ((1, 2), (1, 2, 3), 4, 5)])


def test_steering_by_nothing_changes_nothing_and_by_the_head_what_it_names():
    view, batch = looked_at(), batch_of(rows=4, vocab=12)
    arrow = np.asarray(view.params.embed)[7]  # the output head is the embedding
    changes = steer(view, arrow, CONFIG.num_layers - 1, (0.0, 3.0, -3.0), batch)
    assert np.all(changes[0] == 0)
    counted = (batch.weights != 0) & (batch.targets == 7)
    assert changes[1][counted].min() > 0 > changes[2][counted].max()
    unedited = view.losses(batch=batch)
    np.testing.assert_array_equal(unedited, view.losses(edit=adding(0, arrow, 0.0), batch=batch))


def test_a_direction_is_a_difference_of_means():
    view, batch = looked_at(), batch_of(rows=2)
    masks = np.zeros((2, 2, 24), bool)
    masks[0, 0, 3] = masks[1, 1, 5] = True
    x = view.activations("resid", batch=batch)["resid"][1]
    np.testing.assert_allclose(direction(view, 1, batch, batch, (masks[0], masks[1])), x[0, 3] - x[1, 5], rtol=1e-5)
    with pytest.raises(DataError, match="a token on either side"):
        direction(view, 1, batch, batch, (masks[0], masks[1] & False))


def test_texts_are_read_from_files(tmp_path):
    pairs, steering = tmp_path / "pairs.jsonl", tmp_path / "steering.jsonl"
    pairs.write_text(json.dumps({"clean": "abcab", "corrupted": "abdab", "answer": "c", "wrong": "d"}) + "\n")
    steering.write_text(json.dumps({"toward": "aaaa", "away": "bbb", "prompt": "x", "target": "aa"}) + "\n")
    found = probe(looked_at(), PatchingConfig(pairs=str(pairs), steering=str(steering)))
    assert found["recovered"].values.shape == (3, 4, 2)
    assert found["steered"].values.shape == (3,)
    assert np.isfinite(found["steered"].values).all()
    assert np.any(found["steered"].values != 0)
    same = {"clean": "abcab", "corrupted": "abcab", "answer": "c", "wrong": "d"}
    pairs.write_text((json.dumps(same) + "\n") * 2)
    unknown = probe(looked_at(), PatchingConfig(pairs=str(pairs)))
    assert unknown["effect"].values == unknown["effect_error"].values == 0
    assert np.isnan(unknown["recovered"].values).all()
    pairs.write_text('{"clean": "a"}\n')
    with pytest.raises(DataError, match=r'pairs\.jsonl:1 needs a text "corrupted"'):
        probe(looked_at(), PatchingConfig(pairs=str(pairs)))
    with pytest.raises(DataError, match="cannot read"):
        probe(looked_at(), PatchingConfig(pairs=str(tmp_path / "none")))
    with pytest.raises(NotSuited, match="without a tokenizer"):
        probe(View.of({0: None}, CONFIG, batch_of()), PatchingConfig(pairs=str(pairs)))
