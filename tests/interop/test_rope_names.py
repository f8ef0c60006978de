"""Context extension under Hugging Face's names: both spellings are read, the newer is written, what has no name is refused."""

import dataclasses
import json

import numpy as np
import pytest
from families import config_json

from jaxlm.errors import ConfigError
from jaxlm.interop.families.family import function_of
from jaxlm.interop.families.find import FAMILIES, family_for, family_of
from jaxlm.model.extension import Extension
from jaxlm.model.rope import frequencies
from jaxlm.model.rope_config import RopeScaling, SelfExtend

LLAMA = family_of({"model_type": "llama"})
PAIRS = (1.0, 1.5, 2.5, 4.0)
# Each kind of scaling, and what of it stands in `rope_parameters` beside its name and the base.
WRITTEN = {
    "linear": ({"factor": 4.0}, {"factor": 4.0}),
    "dynamic": ({"factor": 4.0}, {"factor": 4.0}),
    "yarn": (
        {"factor": 4.0, "mscale": 0.8, "mscale_all_dim": 0.5, "beta_fast": 16.0, "truncate": False},
        {
            "factor": 4.0, "mscale": 0.8, "mscale_all_dim": 0.5, "beta_fast": 16.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 64,
        },
    ),
    "longrope": (
        {"factor": 4.0, "short_factor": PAIRS, "long_factor": PAIRS[::-1], "attention_factor": 1.2},
        {
            "factor": 4.0, "short_factor": list(PAIRS), "long_factor": list(PAIRS[::-1]), "attention_factor": 1.2,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "proportional": ({"factor": 2.0}, {"factor": 2.0}),
}  # fmt: skip


def llama():
    return LLAMA.read(config_json("llama"))


def extended(**scaling):
    """A Llama trained at 64 tokens, read as this says."""
    return Extension(rope_scaling=RopeScaling(**scaling)).applied(llama())


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_kind_is_written_in_full_and_read_in_both_spellings(kind):
    ours, theirs = WRITTEN[kind]
    model = extended(kind=kind, **ours)
    fields = json.loads(json.dumps(LLAMA.write(model)))
    assert fields["rope_parameters"] == {"rope_type": kind, "rope_theta": 10_000.0} | theirs
    assert "rope_theta" not in fields and "rope_scaling" not in fields
    # What dynamic scaling counts from is their longest row; all others name the new one.
    assert fields["max_position_embeddings"] == (64 if kind == "dynamic" else model.max_length)
    older = {name: value for name, value in fields.items() if name != "rope_parameters"} | {"rope_theta": 10_000.0}
    for name in ("type", "rope_type"):
        for read in (fields, older | {"rope_scaling": {name: kind} | theirs}):
            found = LLAMA.read(read)
            assert function_of(found) == function_of(model) and found.rope_scaling.kind == kind
            assert found.max_length == model.max_length
    assert function_of(model) != function_of(llama())


def test_static_ntk_is_written_as_the_base_it_is():
    model = extended(kind="ntk", factor=4.0)
    fields = json.loads(json.dumps(LLAMA.write(model)))
    assert fields["rope_parameters"].keys() == {"rope_type", "rope_theta"}
    assert fields["rope_parameters"]["rope_type"] == "default" and fields["max_position_embeddings"] == 256
    np.testing.assert_allclose(fields["rope_parameters"]["rope_theta"], 10_000.0 * 4.0 ** (8 / 6), rtol=1e-12)
    found = LLAMA.read(fields)
    assert function_of(found) == function_of(model) != function_of(llama())
    np.testing.assert_array_equal(frequencies(found), frequencies(model))
    with pytest.raises(ConfigError, match="rope_type = 'ntk' is not supported"):
        LLAMA.read(config_json("llama") | {"rope_parameters": {"rope_type": "ntk", "factor": 4.0, "rope_theta": 1e4}})


def test_static_ntk_where_a_part_of_a_head_turns_and_where_layers_differ():
    for name, kept in (("gpt_neox", {}), ("gemma3", {"sliding_rope_theta": 10_000.0})):
        family = family_of(config_json(name))
        plain = dataclasses.replace(family.read(config_json(name)), rope_scaling=RopeScaling())
        model = Extension(rope_scaling=RopeScaling(kind="ntk", factor=2.0)).applied(plain)
        found = family.read(family.write(model))
        assert found.rope_theta == plain.rope_theta * 2.0 ** (plain.rotary_dim / (plain.rotary_dim - 2))
        assert function_of(found) == function_of(model) and {key: getattr(found, key) for key in kept} == kept


def test_self_extend_is_refused_with_the_reason():
    model = Extension(self_extend=SelfExtend(group_size=4, window_size=16)).applied(llama())
    for export in (LLAMA.write, family_for):
        with pytest.raises(ConfigError, match=r"a way of reading a trained model.*window_size = 0"):
            export(model)


def test_alibi_belongs_to_the_family_that_has_it():
    model = dataclasses.replace(llama(), positions="alibi")
    with pytest.raises(ConfigError, match="LlamaForCausalLM cannot hold positions = 'alibi'.* have 'rope'"):
        LLAMA.write(model)
    with pytest.raises(ConfigError, match="MptForCausalLM cannot hold") as fault:
        family_for(model)
    assert all(family.architecture in str(fault.value) for family in FAMILIES)
    mpt = family_of({"model_type": "mpt"}).read(config_json("mpt"))
    assert mpt.positions == "alibi" and family_for(mpt).architecture == "MptForCausalLM"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_config": {"alibi": False}}, "attn_config: alibi = false is not supported"),
        ({"attn_config": {"alibi_bias_max": 16}}, "attn_config: alibi_bias_max = 16"),
        ({"attn_config": {"clip_qkv": 6.0}}, "attn_config: clip_qkv = 6.0"),
        ({"attn_config": {"attn_type": "multiquery_attention"}}, "attn_type = 'multiquery_attention'"),
        ({"attn_config": {"qk_ln": True}}, "attn_config: qk_ln = true"),
        ({"attn_config": {"qk_layernorm": True}}, "'qk_layernorm' = true.*Did you mean 'qk_ln'"),
        ({"expansion_ratio": 2}, "expansion_ratio = 2"),
        ({"no_bias": False}, "no_bias = false"),
        ({"norm_type": "rmsnorm"}, "norm_type = 'rmsnorm' is not supported"),
        ({"logit_scale": "inv_sqrt_d_model"}, "logit_scale = 'inv_sqrt_d_model'"),
        ({"n_heads": 7}, "d_model = 24 does not divide by n_heads = 7"),
    ],
)
def test_what_mpt_has_otherwise_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        family_of({"model_type": "mpt"}).read(config_json("mpt") | changes)
