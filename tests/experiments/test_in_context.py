"""Questions can be answered from their examples alone, rows count only answers, and an untrained model is at chance."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from in_context import MEASURES, SIZE, at_the_end, by_examples, curves, draw, draw_pairs, experiment, sweep
from models import draw as draw_params
from models import tiny
from probes.few_shot import EXAMPLES, KINDS, PERIOD, FewShotConfig, draw_question, induction_score, probe, rows_of

from jaxlm.analysis.measure import NotSuited
from jaxlm.analysis.store import path_of
from jaxlm.analysis.view import View
from jaxlm.data.tokenizer import train_tokenizer
from jaxlm.sweep.read import Entry, Record


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(experiment().data.tokenizer, ())


def kind_of(letter):
    return next(number for number, letters in enumerate(KINDS) if letter in letters)


def test_documents_are_rows_whose_labels_agree():
    labels = set()
    for seed in range(40):
        text = draw_pairs(random.Random(seed))
        assert len(text) == SIZE
        found = {}
        for letter, label in text.split():
            assert found.setdefault(kind_of(letter), label) == label
        assert len({*found.values()}) == len(found) == len(KINDS)
        labels.add(tuple(sorted(found.items())))
    assert len(labels) > 30


@pytest.mark.parametrize("examples", EXAMPLES)
def test_a_question_is_answered_by_others_of_its_kind(examples):
    for seed in range(40):
        text, answer = draw_question(examples, random.Random(seed))
        *shown, letter = text.split()
        assert len(shown) == examples * len(KINDS) and len(text) + 2 <= SIZE
        assert letter not in {pair[0] for pair in shown}
        assert [kind_of(pair[0]) for pair in shown].count(kind_of(letter)) == examples
        assert {pair[1] for pair in shown if kind_of(pair[0]) == kind_of(letter)} <= {answer}


def test_only_answers_count(tokenizer):
    rows = rows_of([("a1 b2 c", "2"), ("abcd", "efg")], tokenizer, 16)
    counted = [tokenizer.decode(targets[weights > 0]) for targets, weights in zip(rows.targets, rows.weights, strict=True)]
    assert counted == ["2", "efg"]
    assert tokenizer.decode(rows.tokens[0][rows.segments[0] > 0]) == "a1 b2 c"
    assert rows.positions[1].tolist()[:8] == [0, 1, 2, 3, 4, 5, 6, 0]


def test_an_untrained_model_is_at_chance(tokenizer):
    model = tiny(vocab_size=259, num_layers=1, hidden_size=16, num_heads=2, num_kv_heads=2, head_dim=8, max_length=128)
    rows = rows_of([("a", "b")] * 2, tokenizer, 128)
    view = View.of({0: draw_params(model)}, model, rows, tokenizer=tokenizer)
    found = probe(view, FewShotConfig(tasks=16))
    assert found["few_shot_accuracy"].values.shape == (len(EXAMPLES),) and found["few_shot_accuracy"].values.max() < 0.2
    assert found["induction_score"] < 0.1  # evenly, 1 in 31 to 61
    assert found["copy_accuracy"] < 0.1 and abs(found["in_context_score"].values) < 0.5
    planted = [np.zeros((2, 2, 128, 128), np.float32) for _ in range(2)]
    planted[1][:, 1, np.arange(31, 61), np.arange(2, 32)] = 0.8
    seen = SimpleNamespace(activations=lambda site, batch: {site: dict(enumerate(planted))})
    assert induction_score(seen, rows, 1) == pytest.approx(0.8)
    with pytest.raises(NotSuited, match="120"):
        probe(View.of({0: None}, model, rows_of([("a", "b")], tokenizer, 4 * PERIOD - 1), tokenizer=tokenizer), FewShotConfig())


def test_tables_and_the_picture_are_of_all_runs(tmp_path):
    """Of two arms of two seeds the first never copies, the second does from step 20 on."""
    entries = []
    for arm in ("1 layer", "2 layers"):
        for seed in range(2):
            run = tmp_path / f"{arm} {seed}"
            for step in (10, 20):
                right = 0.9 + seed / 50 if arm == "2 layers" and step == 20 else 0.1
                values = {measure: {"values": right} for measure in MEASURES.values()}
                values["few_shot_accuracy"] = {"values": [0.0, 0.0, 0.0, 0.0, right]}
                path = path_of(run, "few_shot", step)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"settings": {}, "code": "", "version": "", "measures": values}))
            entries.append(Entry(arm, seed, {}, arm == "1 layer", run, ""))
    record = Record(tmp_path, "in_context", "", "", "1 layer", tuple(entries), "", "")
    found = curves(record)
    assert found["copies right"]["2 layers"] == {10: [0.1, 0.1], 20: [0.9, 0.92]}
    lines = at_the_end(record, found)
    assert lines[1][-1] == "never" and lines[2][-1] == "20" and lines[2][2] == "0.91 (0.78 to 1.04)"  # Student's, of two
    assert [cell.partition(" ")[0] for cell in by_examples(record)[2][1:]] == ["0.00"] * 4 + ["0.91"]
    draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_all_sizes_read_the_same_rows_and_the_control_has_one_layer():
    trials = [*sweep()]
    assert len(trials) == 18 and {trial.experiment.data for trial in trials} == {experiment().data}
    assert {trial.experiment.model.num_layers for trial in trials if trial.control} == {1}
    assert all(trial.experiment.checkpoint.keep_every == trial.experiment.checkpoint.every for trial in trials)
