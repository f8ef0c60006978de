"""The two-mode world, and what is measured in it, against numbers worked out by hand."""

import dataclasses
import random
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from clean_and_rubbish import LONGEST, draw, held_out
from dpo_perplexity import base, judge
from measured import bits_per_byte, closest, compare_on, lay
from reviews import draw_body, draw_prompt, keeps_to_grammar, score

from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.param import abstract


def test_reviews_keep_to_their_grammar_and_spoilt_ones_do_not():
    rng = random.Random(0)
    for _ in range(200):
        prompt = draw_prompt(rng)
        body = draw_body(prompt, rng)
        assert keeps_to_grammar(prompt, body) and -3 <= score(body) <= 3
        assert not keeps_to_grammar(prompt, body.replace(" he ", " she ") if " he " in body else body.replace(" she ", " he "))
        other = body.replace(" but ", " and ") if " but " in body else body.replace(" and ", " but ", 1)
        assert not keeps_to_grammar(prompt, other)
    assert score(" It was bright and superb, and she hated it.") == 1 == 1 + 1 - 1


@pytest.mark.parametrize("world", ["grammar", "library"])
def test_nothing_held_out_begins_as_a_training_text_does(world):
    lines = draw(world, 0, (400, 100, 60, 20))
    assert {name: len(rows) for name, rows in lines.items()} == {
        "mixture": 400, "pairs": 100, "shuffled": 100, "random": 100, "held_out": 60, "held_out_pairs": 20,
    }  # fmt: skip
    assert all(held_out(line["prompt"]) for name in ("held_out", "held_out_pairs") for line in lines[name])
    assert not any(held_out(line["prompt"]) for name in ("pairs", "shuffled", "random") for line in lines[name])
    texts = [line["text"] for line in lines["mixture"]]
    assert not any(text.startswith(line["prompt"]) for text in texts for line in lines["held_out"])
    assert len(set(texts)) > 0.99 * len(texts) and max(map(len, texts)) <= LONGEST + 5


def test_pairs_and_their_controls_are_what_they_are_called():
    lines = draw("grammar", 1, (10, 300, 200, 10))
    for pair, shuffled, chance in zip(lines["pairs"], lines["shuffled"], lines["random"], strict=True):
        assert keeps_to_grammar(pair["prompt"], pair["chosen"]) and not keeps_to_grammar(pair["prompt"], pair["rejected"])
        assert {shuffled["chosen"], shuffled["rejected"]} == {pair["chosen"], pair["rejected"]}
        assert chance["prompt"] == pair["prompt"] and chance["chosen"] != chance["rejected"]
    swapped = np.mean([a != b for a, b in zip(lines["pairs"], lines["shuffled"], strict=True)])
    assert 0.4 < swapped < 0.6
    assert 0.4 < np.mean([line["clean"] for line in lines["held_out"]]) < 0.6
    assert draw("grammar", 1, (10, 300, 200, 10)) == lines


def test_mass_that_moves_from_one_mode_to_the_other_does_what_theory_says():
    # 200 documents of 80 bytes, 100 of each mode; the clean one's mass goes from 1/2 to 0.8, and nothing else changes.
    clean, size, rng = np.arange(200) < 100, np.full(200, 80), np.random.default_rng(0)
    within = -rng.uniform(20, 40, 200)
    before, after = within + np.log(0.5), within + np.log(np.where(clean, 0.8, 0.2))
    change = bits_per_byte(after, size) - bits_per_byte(before, size)
    nats = change * 80 * np.log(2)
    assert nats[clean].mean() == pytest.approx(-0.470, abs=5e-4) == pytest.approx(-np.log(1.6), abs=5e-4)
    assert nats.mean() == pytest.approx(0.223, abs=5e-4) == pytest.approx(-0.5 * np.log(4 * 0.8 * 0.2), abs=5e-4)
    on_u, on_h, on_l, holds = judge(np.stack([change, change]), clean)
    assert on_u.startswith("+") and on_h.startswith("-") and on_l.startswith("+") and holds == "2 of 2"
    displaced = bits_per_byte(within + np.log(np.where(clean, 0.3, 0.05)), size) - bits_per_byte(before, size)
    assert judge(np.stack([change, displaced]), clean)[3] == "1 of 2"


def test_checkpoints_are_taken_by_their_divergence():
    assert closest({2: 0.1, 4: 0.32, 6: 1.1}, 0.3) == 4 and closest({2: 0.1, 4: 0.32, 6: 1.1}, 1.0) == 6
    assert closest({2: 0.1}, 0.3) is None and closest({}, 0.3) is None


def test_two_models_are_compared_token_by_token():
    model = dataclasses.replace(base().model, num_layers=1, hidden_size=16, num_heads=2, intermediate_size=16, vocab_size=11)
    model, rng = model.for_platform("cpu"), np.random.default_rng(0)
    shapes = abstract(transformer.spec(model), Layout(), jax.sharding.get_mesh())
    one, other = (
        jax.tree.map(lambda s: jax.device_put(rng.normal(size=s.shape).astype(s.dtype), s.sharding), shapes) for _ in range(2)
    )
    rows = lay([((1, 5), (6, 7, 2)), ((1,), (3, 2)), ((1, 4, 4), (9, 2))], 6)
    assert rows.response.sum(axis=1).tolist() == [3, 2, 2] and rows.real.sum(axis=1).tolist() == [4, 2, 4]
    assert rows.tokens[0].tolist() == [1, 5, 6, 7, 0, 0] and rows.targets[0].tolist() == [5, 6, 7, 2, 0, 0]
    found = compare_on(one, other, rows, model, Layout(), batch_size=2)
    same = compare_on(one, one, rows, model, Layout(), batch_size=2)
    assert np.all(found.kl[rows.real > 0] > 0) and not np.any(found.kl[rows.real == 0]) and np.max(np.abs(same.kl)) < 1e-6
    np.testing.assert_array_equal(same.log_probs, found.log_probs)
    np.testing.assert_array_equal(same.reference, same.log_probs)
    alone = compare_on(one, other, lay([((1, 4, 4), (9, 2))], 6), model, Layout(), batch_size=2)
    np.testing.assert_allclose(alone.log_probs[0], found.log_probs[2], atol=1e-6)
    with pytest.raises(ValueError, match="rows hold 5"):
        lay([((1, 2), (3, 4, 5, 6))], 4)
