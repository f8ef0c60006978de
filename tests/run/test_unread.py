"""Fields without effect are told of, and no others."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
from models import tiny

from jaxlm.data.data_config import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError
from jaxlm.experiment import Experiment
from jaxlm.model.lora import LoraConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.model.rope_config import RopeScaling
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.run.unread import describe_unread, unread_fields
from jaxlm.train.optimizer import OptimizerConfig

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
DATA = DataConfig(sequence_length=8, tokenizer=TokenizerConfig(kind="byte", vocab_size=259))


def experiment(**changes):
    return Experiment(name="x", steps=10, batch_size=2, model=tiny(vocab_size=259), data=DATA, **changes)


CASES = {
    "lora.alpha": {"lora": LoraConfig(alpha=8.0)},
    "preference.reference_run": {"preference": PreferenceConfig(reference_run="nowhere")},
    "optimizer.decay_fraction": {"optimizer": OptimizerConfig(decay_fraction=0.5)},
    "optimizer.b2": {"optimizer": OptimizerConfig(kind="sgd", b2=0.5)},
    "model.moe.router": {"model": tiny(vocab_size=259, moe=MoeConfig(router="sigmoid"))},
    "model.rope_scaling.factor": {"model": tiny(vocab_size=259, rope_scaling=RopeScaling(factor=4.0))},
    "data.validation_fraction": {
        "data": dataclasses.replace(DATA, validation_sources=("text:LICENSE",), validation_fraction=0.1)
    },
}


@pytest.mark.parametrize("field", CASES)
def test_a_field_that_nothing_reads_is_told_of(field):
    found = unread_fields(dataclasses.replace(experiment(), **CASES[field]))
    assert list(found.values()) == [[field]]


def test_what_is_read_is_not_told_of():
    assert not unread_fields(experiment())
    assert not unread_fields(experiment(optimizer=OptimizerConfig(schedule="wsd", decay_fraction=0.5, b2=0.99)))
    mixture = tiny(vocab_size=259, moe=MoeConfig(num_experts=4, router="sigmoid", bias_update_rate=1e-2))
    assert not unread_fields(dataclasses.replace(experiment(), model=mixture))


@pytest.mark.parametrize("file", ["quickstart", "switch_base", "llama_8b", "mixtral_8x7b"])
def test_our_own_experiments_have_none(file):
    spec = importlib.util.spec_from_file_location(file, EXPERIMENTS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert describe_unread(module.experiment()) == []


def test_the_line_says_why():
    line = describe_unread(experiment(lora=LoraConfig(alpha=8.0)))
    assert line == ["lora.alpha has no effect: lora.rank is 0: all weights are trained"]


def test_targets_without_a_rank_are_refused():
    with pytest.raises(ConfigError, match=r"all weights would be trained: set --lora\.rank 16"):
        LoraConfig(targets=("q",))
