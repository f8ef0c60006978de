"""What an extension makes of a trained model, and what it refuses."""

import dataclasses

import pytest
from models import tiny

from jaxlm.data.data_config import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError
from jaxlm.experiment import Experiment
from jaxlm.model.extension import Extension
from jaxlm.model.rope_config import RopeScaling, SelfExtend

MODEL = tiny(max_length=256)


@pytest.mark.parametrize(
    ("extension", "length", "label"),
    [
        (Extension(), 256, "plain"),
        (Extension(max_length=1000), 1000, "plain"),
        (Extension(rope_scaling=RopeScaling(kind="linear", factor=4.0)), 1024, "pi x4"),
        (Extension(rope_scaling=RopeScaling(kind="yarn", factor=2.5, original_length=128)), 320, "yarn x2.5"),
        (Extension(self_extend=SelfExtend(group_size=4, window_size=64)), 832, "self-extend 4/64"),
        (Extension(self_extend=SelfExtend(group_size=4, window_size=64), max_length=512), 512, "self-extend 4/64"),
        (Extension(attention_window=256, max_length=2048), 2048, "last 256"),
    ],
)
def test_reach_and_name(extension, length, label):
    model = extension.applied(MODEL)
    assert (model.max_length, extension.label) == (length, label)
    changed = dataclasses.replace(
        model, max_length=256, rope_scaling=RopeScaling(), self_extend=SelfExtend(), attention_pattern=("global",),
        sliding_window=0,
    )  # fmt: skip
    assert changed == MODEL


def test_lengths_before_are_those_of_the_trained_model():
    scaled = Extension(rope_scaling=RopeScaling(kind="yarn", factor=4.0)).applied(MODEL)
    grouped = Extension(self_extend=SelfExtend(group_size=4, window_size=64)).applied(MODEL)
    assert scaled.rope_scaling.original_length == grouped.self_extend.original_length == 256
    both = Extension(rope_scaling=RopeScaling(kind="ntk", factor=2.0), self_extend=SelfExtend(group_size=4, window_size=64))
    assert both.applied(MODEL).max_length == 4 * (512 - 64) + 64
    # What a model was scaled from does not move with the length that it is read at.
    trained = dataclasses.replace(MODEL, rope_scaling=RopeScaling(kind="dynamic", factor=2.0))
    assert Extension(max_length=1024).applied(trained).rope_scaling.original_length == 256


def test_a_scaled_model_goes_on_from_its_own_scaling():
    """A greater factor of the kind that it has keeps the length before it, and all else that was not asked for."""
    own = RopeScaling(kind="yarn", factor=4.0, original_length=64, beta_fast=16.0)
    read = Extension(rope_scaling=RopeScaling(kind="yarn", factor=8.0)).applied(dataclasses.replace(MODEL, rope_scaling=own))
    assert read.rope_scaling == dataclasses.replace(own, factor=8.0) and read.max_length == 512


@pytest.mark.parametrize(
    ("extend", "message"),
    [
        (lambda: SelfExtend(group_size=3, window_size=64), "multiple of group_size = 3.* take 63"),
        (lambda: SelfExtend(group_size=4, window_size=2), "multiple of group_size = 4.* take 4"),
        (lambda: SelfExtend(group_size=4), "needs window_size"),
        (lambda: SelfExtend(scale_base=16.0), "turns Self-Extend off"),
        (lambda: SelfExtend(group_size=2, window_size=4, scale_base=0.5), "above 1"),
        (
            lambda: Extension(self_extend=SelfExtend(group_size=4, window_size=64), max_length=2000).applied(MODEL),
            "reach: 832 tokens, of a model trained at 256. Take group_size = 10 with window_size = 60",
        ),
        (
            lambda: Extension(self_extend=SelfExtend(group_size=2, window_size=4), max_length=9999).applied(tiny(max_length=8)),
            "reach: 12 tokens, of a model trained at 8. Take a shorter max_length",
        ),
        (lambda: Extension(self_extend=SelfExtend(group_size=1, window_size=300)).applied(MODEL), "more than the length"),
        (
            lambda: Extension(self_extend=SelfExtend(group_size=2, window_size=4)).applied(tiny(positions="alibi")),
            "groups the positions of RoPE, and this model has positions = 'alibi'",
        ),
        (
            lambda: Extension(self_extend=SelfExtend(group_size=2, window_size=4)).applied(
                tiny(attention_pattern=("global", "sliding"), sliding_window=8)
            ),
            "sliding layers never see the far keys",
        ),
        (lambda: tiny(causal=False, self_extend=SelfExtend(group_size=2, window_size=4)), "bidirectional"),
        (lambda: Extension(rope_scaling=RopeScaling(factor=4.0)), "set extend.rope_scaling.kind"),
        (
            lambda: Extension(attention_window=16).applied(tiny(attention_pattern=("sliding",), sliding_window=8)),
            "trained to see 8 tokens",
        ),
        (
            lambda: tiny(rope_scaling=RopeScaling(kind="dynamic"), self_extend=SelfExtend(group_size=2, window_size=4)),
            "changes positions by length already",
        ),
        (lambda: Extension(attention_window=8, self_extend=SelfExtend(group_size=2, window_size=4)), "hides the far keys"),
        (lambda: Extension(max_length=999).applied(tiny(positions="learned")), "learned positions, .* none beyond"),
        (
            lambda: Extension(rope_scaling=RopeScaling(kind="ntk", factor=2.0)).applied(tiny(positions="none")),
            "changes rotary frequencies; this model has positions = 'none'",
        ),
        (
            lambda: Extension(rope_scaling=RopeScaling(kind="ntk", factor=2.0)).applied(
                dataclasses.replace(MODEL, rope_scaling=RopeScaling(kind="llama3", factor=8.0))
            ),
            "trained with 'llama3', which this would undo",
        ),
    ],
)
def test_what_cannot_be_says_why_and_what_can(extend, message):
    with pytest.raises(ConfigError, match=message):
        extend()


def test_nothing_is_trained_with_self_extend():
    data = DataConfig(sources=("stdlib",), tokenizer=TokenizerConfig(kind="byte", vocab_size=259), sequence_length=32)
    model = tiny(vocab_size=259, self_extend=SelfExtend(group_size=2, window_size=8))
    with pytest.raises(ConfigError, match=r"a way of reading a trained model.*--extend.self-extend.group-size"):
        Experiment(name="no", steps=1, batch_size=1, model=model, data=data)
