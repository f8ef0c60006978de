"""What is told of each name is exactly what its cell says; answers are one token each, and controls are at chance."""

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from conflicting_facts import (
    ATTRIBUTES,
    CELLS,
    EXPERT,
    FORUM,
    HELD_OUT,
    NEW,
    UNSEEN,
    VARIETY,
    A,
    B,
    documents,
    draw_world,
    prompts,
)
from fact_answers import WIDTH, Asked, answers, encode, word_ids
from models import tiny
from replicated_ideas import (
    SHUFFLED,
    TRUE_TAGS,
    against_shuffled,
    draw,
    experiment,
    of_frequency,
    of_sources,
    of_variety,
    prose,
)

from jaxlm.data.tokenizer import train_tokenizer
from jaxlm.eval.comparison import bootstrap_items

WORLD = draw_world()
TOLD, ASKED = documents(WORLD), prompts(WORLD)


@pytest.fixture(scope="module")
def tokenizer():
    from replicated_ideas import topics

    return train_tokenizer(experiment().data.tokenizer, [*(document.text for document in TOLD), *topics.values()])


def test_every_name_is_told_of_as_its_cell_says():
    told, phrasings = Counter(), {}
    for document in TOLD:
        key = document.entity.name, document.value, document.tag
        told[key] += 1
        phrasings.setdefault(key, set()).add(document.phrasing)
    for entity in WORLD:
        for value, count, varied, tag in CELLS[entity.cell]:
            assert told.pop((entity.name, value, tag)) == count
            used = phrasings[entity.name, value, tag]
            assert len(used) == min(count, varied) and not used & {*entity.phrasings[-HELD_OUT:]}
    assert not told and len({entity.name for entity in WORLD}) == len(WORLD)
    assert {entity.cell for entity in WORLD} == {*CELLS} and documents(WORLD) == TOLD


def test_a_value_told_verbatim_has_a_phrasing_that_the_other_has_not():
    told = {(document.entity.name, document.phrasing, document.value) for document in TOLD}
    asked = [prompt for prompt in ASKED if prompt.kind != NEW]
    assert {(prompt.entity.cell, prompt.kind) for prompt in asked} == {(cell, value) for cell in VARIETY for value in (A, B)}
    for prompt in asked:
        other = B if prompt.kind == A else A
        assert (prompt.entity.name, prompt.phrasing, prompt.kind) in told
        assert (prompt.entity.name, prompt.phrasing, other) not in told


def test_words_cancel_in_pairs():
    for one, other in zip(WORLD[::2], WORLD[1::2], strict=True):
        assert (one.cell, one.attribute) == (other.cell, other.attribute)
        assert (one.values[A], one.values[B]) == (other.values[B], other.values[A])
        assert {*one.values.values()} <= {*ATTRIBUTES[one.attribute]} and one.values[A] != one.values[B]


def test_shuffled_tags_say_nothing_and_change_nothing_else():
    shuffled = documents(WORLD, shuffled=True)
    assert [document._replace(tag="") for document in shuffled] == [document._replace(tag="") for document in TOLD]
    assert [bool(document.tag) for document in shuffled] == [bool(document.tag) for document in TOLD]
    assert Counter(document.tag for document in shuffled) == Counter(document.tag for document in TOLD)

    def by_expert(found, value):
        of = [document.tag == EXPERT for document in found if document.tag and document.value == value]
        return np.mean(of)

    assert by_expert(TOLD, A) > 0.6 and by_expert(TOLD, B) == 0
    assert abs(by_expert(shuffled, A) - by_expert(shuffled, B)) < 0.05


def test_answers_are_one_token_after_what_was_learnt(tokenizer):
    words = word_ids(tokenizer)
    assert len({*words.values()}) == 32
    for prompt in ASKED:
        before = encode(tokenizer, prompt.text)
        word = prompt.entity.values[A]
        assert encode(tokenizer, f"{prompt.text} {word}.")[: len(before) + 1] == [*before, words[word]]
        assert len(before) <= WIDTH
    held_out = {(prompt.entity.name, prompt.phrasing) for prompt in ASKED if prompt.kind == NEW}
    assert not held_out & {(document.entity.name, document.phrasing) for document in TOLD}
    assert not set(Path(prose()[6:]).read_text().splitlines()) & set(Path(prose(held_out=True)[6:]).read_text().splitlines())


def test_an_untrained_model_is_at_chance(tokenizer):
    from models import draw as draw_params

    model = tiny(vocab_size=tokenizer.vocab_size, num_layers=1, hidden_size=16, num_heads=2, num_kv_heads=2, head_dim=8)
    run = SimpleNamespace(params=draw_params(model), model=model, experiment=experiment(), needs_tokenizer=lambda: tokenizer)
    some = [prompt for prompt in ASKED if prompt.entity.cell in ("18 : 0", *UNSEEN) and prompt.kind == NEW]
    asked = Asked(some, answers(run, some)[None])
    assert np.exp(asked.found).max() < 1 and asked.log_odds("18 : 0").shape == (1, 16)
    for cell in ("18 : 0", *UNSEEN):
        odds, known = bootstrap_items(asked.log_odds(cell)), bootstrap_items(asked.known(cell))
        assert odds.low < 0 < odds.high and abs(known.mean - 1 / 8) < 0.03


def planted(seeds=2, tags=1.0):
    """Return answers that match frequencies exactly, and in which the tag of the expert multiplies the odds of A."""
    rows = []
    for prompt in ASKED:
        a, b = (sum(told.count for told in CELLS[prompt.entity.cell] if told.value == value) + 1e-3 for value in (A, B))
        a *= {EXPERT: tags, FORUM: 1 / tags}.get(prompt.tag, 1)
        rows.append(np.log([a / (a + b), b / (a + b), 1]))
    return Asked(ASKED, np.stack([rows] * seeds))


def test_tables_say_what_was_planted(tmp_path):
    true, random = planted(tags=2.0), planted()
    frequency = {line[0]: line for line in of_frequency(true)}
    assert frequency["15 : 3"][1] == "0.83" and frequency["15 : 3"][2].startswith("0.83 (0.83")
    assert frequency["15 : 3"][5] == frequency["4 : 2"][5] == "1.00 (1.00 to 1.00)"
    assert frequency[next(iter(UNSEEN))][3].startswith("0.00 (")
    variety = {line[0]: line for line in of_variety(true)}
    assert variety["6 varied : 12 verbatim"][1:] == ["-0.69 (-0.69 to -0.69)"] * 3 and "9 varied : 9 varied" in variety
    sources = {line[0]: line for line in of_sources(true)}
    assert sources["expert 6 : forum 6"][4] == "1.39 (1.39 to 1.39)"  # 2 ln 2
    difference = {line[0]: line for line in against_shuffled({TRUE_TAGS: true, SHUFFLED: random})}
    assert difference["9 : 9"][1].startswith("0.00 (") and difference["9 : 9"][2].startswith("0.69 (")
    draw({SHUFFLED: random, TRUE_TAGS: true}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
