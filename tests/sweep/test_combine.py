"""Combinators: how many, which, in which order; and what they refuse."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError
from jaxlm.experiment import Experiment
from jaxlm.sweep.combine import chain, grid, named, product, seeds, subsample, trials, zipped

VALUES = st.lists(st.integers(0, 99) | st.floats(0, 1) | st.text(max_size=3), max_size=4, unique_by=repr)
GRIDS = st.dictionaries(st.sampled_from(["a", "a.b", "c.d", "e"]), VALUES, max_size=3)


def base(**changes):
    data = DataConfig(tokenizer=TokenizerConfig(kind="byte", vocab_size=259), sequence_length=32)
    return Experiment(**({"name": "base", "steps": 10, "batch_size": 8, "model": tiny(vocab_size=259), "data": data} | changes))


@settings(max_examples=40)
@given(GRIDS)
def test_a_grid_holds_every_combination_once(fields):
    found = grid(fields)
    assert found == [dict(zip(fields, chosen, strict=True)) for chosen in itertools.product(*fields.values())]
    assert len(found) == np.prod([len(values) for values in fields.values()], dtype=int)


@settings(max_examples=40)
@given(st.lists(VALUES, max_size=3))
def test_a_product_is_as_large_as_the_product_of_its_lists(columns):
    lists = [grid({f"field{k}": values}) for k, values in enumerate(columns)]
    merged = product(*lists)
    assert len(merged) == np.prod([len(values) for values in columns], dtype=int)
    assert merged == grid({f"field{k}": values for k, values in enumerate(columns)})


@settings(max_examples=60)
@given(GRIDS, st.integers(0, 5), st.data())
def test_a_subsample_is_drawn_without_repeats_and_grows(fields, seed, data):
    variants = grid(fields)
    number = data.draw(st.integers(0, len(variants)))
    drawn = subsample(variants, number, seed)
    assert len(drawn) == number and drawn == subsample(variants, number, seed)
    spelled = list(map(repr, variants))  # 0 and 0.0 are two values, and equal
    places = [spelled.index(repr(variant)) for variant in drawn]
    assert places == sorted(set(places)), "in their order, none twice"
    more = subsample(variants, min(number + 1, len(variants)), seed)
    assert all(variant in more for variant in drawn)


def test_a_subsample_depends_on_its_seed():
    variants = grid({"a": range(20)})
    assert len({str(subsample(variants, 5, seed)) for seed in range(8)}) > 4
    assert subsample(variants, 3)[0] is not variants[0], "a copy"


def test_lists_are_put_together():
    assert zipped({"a": (1, 2), "b": (3, 4)}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert chain(grid({"a": (1,)}), grid({"b": (2,)})) == [{"a": 1}, {"b": 2}]
    assert [made["seed"] for made in product(grid({"a": (1, 2)}), seeds(2))] == [0, 1, 0, 1]
    arms = product(named({"dense": {"a": 0}, "mixture": {"a": 8}}), grid({"c.rate": (0.1, 0.3)}))
    assert [arm["arm"] for arm in arms] == ["dense, rate=0.1", "dense, rate=0.3", "mixture, rate=0.1", "mixture, rate=0.3"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: zipped({"a": (1, 2), "b": (3,)}), "a has 2, b has 1"),
        (lambda: product(grid({"a": (1,)}), grid({"a": (2,)})), "sets a twice, to 1 and to 2"),
        (lambda: product(seeds(2), seeds(2)), "sets seed twice"),
        (lambda: grid({"a": 3}), r"the values of a are 3: give several, for example {'a': \(3,\)}"),
        (lambda: grid({"a": "abc"}), "the values of a are 'abc'"),
        (lambda: subsample([{}], 2), "2 of 1 variants: give 0 to 1"),
        (lambda: seeds(0), "whole number of 1 or more"),
        (lambda: named({"dense": 3}), "takes names and their changes"),
        (lambda: list(trials(base(), [])), "no variants"),
        (lambda: list(trials(base(), grid({"model.num_layer": (1,)}))), "no field 'model.num_layer'. .* 'model.num_layers'"),
        (lambda: list(trials(base(), grid({"num_layers": (1,)}))), "no field 'num_layers'"),
        (lambda: list(trials(base(), grid({"model.num_heads": (8, 7)}))), "arm 'num_heads=7': .*num_kv_heads"),
        (lambda: list(trials(base(), grid({"steps": (5, "x")}))), "arm 'steps=x': Experiment.steps = 'x' must be"),
        (lambda: list(trials(base(), grid({"steps": (5, 6)}), control="steps=7")), "none of the arms. Did you mean 'steps=6'"),
        (lambda: list(trials(base(), seeds(2), seeds=2)), "seeds of their own"),
        (lambda: list(trials(base(), [{"steps": 5}, {"steps": 5}])), "'steps=5' has seed 0 twice"),
        (lambda: list(trials(base(), [{"arm": "a", "steps": 5}, {"arm": "a", "steps": 6}])), "two sets of changes"),
        (lambda: list(trials(base(), grid({"checkpoint.every": (5, 6)}))), "are one run, .* checkpoint.every does not decide"),
        (lambda: list(trials(base(), named({"a": {"steps": 5}, "b": {"steps": 5}}))), "'a' and 'b' are one.*nothing differs"),
        (lambda: list(trials(base(), grid({"steps": (5,)}), seeds=0.5)), "seeds = 0.5 is no number"),
    ],
)  # fmt: skip
def test_faults_name_the_field_and_the_fix(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_trials_come_seed_by_seed_with_the_control_marked():
    made = list(trials(base(seed=5), grid({"model.intermediate_size": (48, np.int64(64))}), seeds=np.int64(2)))
    assert [(t.arm, t.experiment.seed, t.control) for t in made] == [
        ("intermediate_size=48", 5, True), ("intermediate_size=64", 5, False),
        ("intermediate_size=48", 6, True), ("intermediate_size=64", 6, False),
    ]  # fmt: skip
    assert made[1].experiment.model.intermediate_size == 64 and made[1].changes == {"model.intermediate_size": 64}
    assert made[0].experiment.name == "base: intermediate_size=48"
    (drawn,) = trials(base(), [{"seed": np.int64(7)}])
    assert type(drawn.experiment.seed) is int and drawn.experiment.seed == 7


def test_the_control_may_be_an_arm_of_its_own_or_one_that_is_there():
    wide = grid({"model.intermediate_size": (56, 64)})
    assert next((t.arm, t.control) for t in trials(base(), wide, control={})) == ("base", True)
    found = [(t.arm, t.control) for t in trials(base(), wide, control={"model.intermediate_size": 64})]
    assert found == [("intermediate_size=56", False), ("intermediate_size=64", True)]
    as_it_is = grid({"model.intermediate_size": (64, tiny().intermediate_size)})  # the base is one of the arms
    assert [(t.arm, t.control) for t in trials(base(), as_it_is, control={})] == [
        ("intermediate_size=64", False), ("intermediate_size=48", True),
    ]  # fmt: skip
    found = [
        (t.arm, t.experiment.seed, t.control) for t in trials(base(), product(wide, seeds(2)), control="intermediate_size=64")
    ]
    assert found[2:] == [("intermediate_size=64", 0, True), ("intermediate_size=64", 1, True)]


def test_names_of_arms_are_as_short_as_they_can_be():
    rates = grid({"optimizer.learning_rate": (1e-3,), "model.rope_theta": (1e4,)})
    assert [t.arm for t in trials(base(), rates)] == ["learning_rate=0.001, rope_theta=10000"]
    whole = {"data.sequence_length": (16,), "mesh.data": (1,), "data.validation_fraction": (0.1,)}
    assert [t.arm for t in trials(base(), grid(whole))] == ["sequence_length=16, data=1, validation_fraction=0.1"]
    both = [{"checkpoint.every": 5, "evaluation.every": 5}]
    assert [t.arm for t in trials(base(), both)] == ["checkpoint.every=5, evaluation.every=5"]


def test_a_whole_part_may_be_changed_and_then_its_fields():
    variant = {"model.num_layers": 3, "model": tiny(vocab_size=300), "arm": "other"}
    (made,) = trials(base(), [variant])
    assert (made.experiment.model.vocab_size, made.experiment.model.num_layers) == (300, 3)
