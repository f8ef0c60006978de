"""Configurations and tables of families without a device: what is read, what is refused, and which tensor is at fault."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from families import REFERENCE, InMemory, cases, config_json, opened, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm import param
from jaxlm.errors import CheckpointError, ConfigError, JaxlmError
from jaxlm.interop import table as tables
from jaxlm.interop.axes import axes
from jaxlm.interop.families.family import function_of
from jaxlm.interop.families.find import FAMILIES, family_for, family_of
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig

PUBLISHED = json.loads((REFERENCE / "published.json").read_text())
# Fixtures and cases that no test of refusals needs twice.
ALL = cases()


def read(config):
    return family_of(config).read(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_give_models_of_the_published_size(name):
    parameters, config = PUBLISHED[name]
    assert param.count(transformer.spec(read(config))) == parameters


def as_version_4(config):
    """Return a configuration of transformers 5 as version 4 wrote it."""
    old = {key: value for key, value in config.items() if key not in ("dtype", "layer_types", "rope_parameters")}
    old["torch_dtype"] = config["dtype"]
    rope = copy.deepcopy(config.get("rope_parameters"))
    if rope is None:
        return old
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    theta, fraction, kind = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None), rope.pop("rope_type")
    neox = config["model_type"] == "gpt_neox"
    old["rotary_emb_base" if neox else "rope_theta"] = theta
    old |= {"rotary_pct" if neox else "partial_rotary_factor": fraction} if fraction else {}
    old["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None
    return old


@pytest.mark.parametrize(("name", "case"), ALL)
def test_both_spellings_of_transformers_mean_the_same_model(name, case):
    config = config_json(name, case)
    assert read(as_version_4(config)) == read(config)


def test_phi_style_lengths_and_factors_left_out():
    config = config_json("llama", "longrope")
    expected = read(config)
    del config["rope_parameters"]["original_max_position_embeddings"], config["rope_parameters"]["factor"]
    assert read(config | {"original_max_position_embeddings": 16}) == expected  # 64 / 16 is the factor
    with pytest.raises(ConfigError, match="short_factor has 4 entries"):
        read(config | {"original_max_position_embeddings": 16, "num_attention_heads": 2, "head_dim": 16})


def test_words_for_the_same_activation_and_older_gemma():
    config = config_json("llama")
    assert read(config | {"hidden_act": "swish"}) == read(config)
    gemma = config_json("gemma")
    for old in ({"hidden_act": "gelu"}, {"hidden_act": "gelu", "hidden_activation": None}, {"hidden_act": None}):
        assert read(gemma | old) == read(gemma)
    with pytest.raises(ConfigError, match=r"hidden_activation = 'gelu' contradicts"):
        read(gemma | {"hidden_activation": "gelu"})


def test_fields_that_transformers_does_not_use_change_nothing():
    gemma3 = config_json("gemma3")
    assert read(gemma3 | {"attn_logit_softcapping": 20.0}) == read(gemma3)
    with pytest.raises(ConfigError, match="cannot hold attention_softcap = 20.0"):
        family_of(gemma3).write(dataclasses.replace(read(gemma3), attention_softcap=20.0))
    assert read(config_json("mixtral") | {"router_jitter_noise": 0.1, "attention_dropout": 0.1}) == read(config_json("mixtral"))


def test_gemma_without_sliding_layers_is_written_with_a_window():
    """transformers makes their mask all the same."""
    config = config_json("gemma2") | {"layer_types": ["full_attention"] * 3}
    model = read(config)
    assert model.attention_pattern == ("global",) and family_of(config).write(model)["sliding_window"] == 4096


REFUSED = {
    "a misspelt field": ("llama", {"num_hiden_layers": 3}, r"'num_hiden_layers' = 3.*Did you mean 'num_hidden_layers'"),
    "a text for a number": ("llama", {"hidden_size": "32"}, r"hidden_size = '32' must be a whole number"),
    "a number for a flag": ("llama", {"attention_bias": 1}, r"attention_bias = 1 must be true or false"),
    "a negative size": ("llama", {"intermediate_size": -8}, r"intermediate_size = -8"),
    "a size nothing can hold": ("llama", {"vocab_size": 10**400}, r"vocab_size = a number of 1329 bits"),
    "a billion layers": ("llama", {"num_hidden_layers": 10**9}, r"num_hidden_layers = 1000000000 must be .* to 10000"),
    "not a number": ("llama", {"rms_norm_eps": float("nan")}, r"rms_norm_eps = nan must be a number"),
    "heads that do not divide": ("llama", {"num_key_value_heads": 3}, r"num_kv_heads = 3"),
    "an unknown activation": ("llama", {"hidden_act": "gelu_10"}, r"hidden_act = 'gelu_10' is not supported"),
    "biases that Mistral has not": ("mistral", {"attention_bias": True}, r"attention_bias = true is not supported"),
    "interleaved rotation": ("llama", {"rope_interleaved": True}, r"rope_interleaved = true"),
    "quantised weights": ("llama", {"quantization_config": {"bits": 4}}, r"quantization_config = "),
    "another head": ("llama", {"architectures": ["LlamaForSequenceClassification"]}, r"architectures = .* has another head"),
    "an unknown rope type": ("llama", {"rope_parameters": {"rope_type": "su", "rope_theta": 1e4}}, r"rope_type = 'su'"),
    "a rope field": ("llama", {"rope_parameters": {"rope_theta": 1e4, "mrope_section": [1, 1]}}, r"mrope_section"),
    "no factor": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, r"factor = null must be a number"),
    "rope as a list": ("llama", {"rope_parameters": [1]}, r"rope_parameters = \[1\] must be an object"),
    "partly rotated heads": ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0.5 is not supported"),
    "layer types of another length": ("qwen2", {"layer_types": ["full_attention"]}, r"layer_types = .* must have 3 entries"),
    "an unknown layer type": ("qwen2", {"layer_types": ["chunked_attention"] * 3}, r"layer_types = 'chunked_attention'"),
    "windows of no size": ("qwen2", {"sliding_window": None, "layer_types": ["sliding_attention"] * 3}, r"no sliding_window"),
    "layers that differ in Mistral": ("mistral", {"layer_types": ["full_attention"] * 2}, r"all 2 layers are sliding"),
    "both directions": ("gemma3", {"use_bidirectional_attention": True}, r"use_bidirectional_attention = true"),
    "scaled sliding layers": (
        "gemma3",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        r"sliding_attention: rope_type = 'linear' is not supported",
    ),
    "a ramp within nested settings": (
        "gemma3",
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}},
        r"full_attention: truncate = false is not supported",
    ),
    "partly rotated heads in some layers": (
        "gemma3",
        {"rope_parameters": {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5}}},
        r"full_attention: partial_rotary_factor = 0.5",
    ),
    "a cap of nothing": ("gemma2", {"attn_logit_softcapping": 0.0}, r"attn_logit_softcapping = 0.0 must be a number above 0"),
    "scaling by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx = true"),
    "two names, two values": ("gpt2", {"hidden_size": 16}, r"hidden_size = 16 and n_embd = 32 are two names"),
    "cross attention": ("gpt2", {"add_cross_attention": True}, r"add_cross_attention = true"),
    "more experts than there are": ("mixtral", {"num_experts_per_tok": 5}, r"num_experts_per_tok = 5 must be .* 1 to 4"),
    "one norm for both": ("stablelm", {"use_parallel_residual": True}, r"use_parallel_residual = true"),
    "images": ("gemma3", {"model_type": "gemma3"}, r"also reads images"),
    "an unknown family": ("llama", {"model_type": "lama"}, r"'lama' is none that jaxlm reads.*Did you mean 'llama'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_honoured_is_refused_by_name(what):
    name, changes, message = REFUSED[what]
    with pytest.raises(ConfigError, match=message):
        read(config_json(name) | changes)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.integers(), st.floats(), st.text("abcgelu_", max_size=12), st.just([]),
    st.just({}), st.lists(st.integers(-1, 9), max_size=4),
    st.sampled_from(["sliding_attention", "yarn", "dynamic", "gelu", "longrope"]),
)  # fmt: skip


@settings(max_examples=300)
@given(data=st.data())
def test_mutated_configurations_give_a_model_or_an_error_that_says_why(data):
    name, case = data.draw(st.sampled_from(ALL))
    config = config_json(name, case)
    for _ in range(data.draw(st.integers(1, 3))):
        inside = config
        if "rope_parameters" in config and data.draw(st.booleans()):
            inside = config["rope_parameters"] if isinstance(config["rope_parameters"], dict) else config
        key = data.draw(st.sampled_from(sorted(inside) or ["factor"]))
        if data.draw(st.booleans()):
            inside[key] = data.draw(ODD)
        else:
            inside.pop(key, None)
    try:
        model = read(config)
    except JaxlmError as fault:
        assert len(str(fault)) < 1000
        return
    assert isinstance(model, ModelConfig)
    try:
        family = family_of(config)
        assert function_of(family.read(family.write(model))) == function_of(model)
        tables.check_tensors(family.table(model), model, tensors_of(name).shapes())
    except JaxlmError as fault:
        assert len(str(fault)) < 3000


def altered(name, **changes):
    """Return a fixture's tensors with some replaced, or left out where None."""
    arrays = tensors_of(name).arrays | {key.replace("__", "."): value for key, value in changes.items()}
    return InMemory({key: value for key, value in arrays.items() if value is not None})


def test_missing_extra_and_misshapen_tensors_are_named():
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight \[32\] is missing"):
        opened("llama", tensors=altered("llama", model__norm__weight=None))
    with pytest.raises(CheckpointError, match=r"norm\.weight \[32\] is missing: Did you mean 'model\.norms\.weight'\?"):
        opened("llama", tensors=altered("llama", model__norm__weight=None, model__norms__weight=np.zeros(32)))
    with pytest.raises(CheckpointError, match=r"extra\.weight \[3\] has no place"):
        opened("llama", tensors=altered("llama", extra__weight=np.zeros(3)))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight has shape \[64, 16\].*makes it \[64, 32\]"):
        opened("llama", tensors=altered("llama", model__embed_tokens__weight=np.zeros((64, 16))))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight \[64, 32\] is missing"):
        opened("llama", tensors=altered("llama", model__embed_tokens__weight=None))  # the head is no embedding if untied
    gone = "model.layers.2.mlp.experts.3.up_proj.weight"
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.experts\.3\.up_proj\.weight \[8, 16\] is missing"):
        opened("qwen3_moe", tensors=altered("qwen3_moe", **{gone: None}))
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        opened("llama", tensors=InMemory({f"tensor{i}": np.zeros(2) for i in range(40)}))
    with pytest.raises(CheckpointError, match=r"there are 1 tensors, too few for the configuration's 2 layers"):
        opened("llama", tensors=InMemory({"tensor": np.zeros(2)}))


def test_heads_and_buffers_that_older_releases_saved_are_let_be():
    tied = tensors_of("llama_bias_tied").arrays
    embedding = tied["model.embed_tokens.weight"]
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4), "lm_head.weight": embedding}
    opened("llama_bias_tied", tensors=altered("llama_bias_tied", **buffers))
    masks = {f"transformer.h.0.attn.{x}": np.zeros(shape) for x, shape in (("bias", (1, 1, 24, 24)), ("masked_bias", ()))}
    opened("gpt2", tensors=altered("gpt2", **masks))
    masks = {f"gpt_neox.layers.1.attention.{x}": np.zeros(3) for x in ("bias", "masked_bias", "rotary_emb.inv_freq")}
    opened("gpt_neox", tensors=altered("gpt_neox", **masks))
    # Only the head is stored, or another one than the configuration says.
    only = altered("llama_bias_tied", **{"lm_head.weight": embedding, "model.embed_tokens.weight": None})
    model, _, table, _ = opened("llama_bias_tied", tensors=only)
    np.testing.assert_array_equal(tables.leaf_part(table, model, "embed", (slice(None),) * 2, only.read), embedding)
    for head, is_tied in ((embedding, True), (embedding + 1, False)):
        model, _, table, stored = opened("llama_bias_tied", tensors=altered("llama_bias_tied", **{"lm_head.weight": head}))
        assert model.tie_embeddings == is_tied
        leaf = "embed" if is_tied else "head"
        np.testing.assert_array_equal(tables.leaf_part(table, model, leaf, (slice(None),) * 2, stored.read), head)


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("llama_bias_tied", "model.")])
def test_names_may_go_without_the_first_word(name, prefix):
    bare = InMemory({key.removeprefix(prefix): value for key, value in tensors_of(name).arrays.items()})
    model, _, table, _ = opened(name, tensors=bare)
    assert set(tables.their_tensors(table, model)) == set(bare.arrays)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_may_lie_in_one_tensor(name):
    """As transformers 5 holds them in memory."""
    model, _, table, tensors = opened(name)
    arrays = {key.replace(".block_sparse_moe.", ".mlp."): value for key, value in tensors.arrays.items()}
    gate, up, down = ("w1", "w3", "w2") if name == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    for layer in model.moe_layers:
        block = f"model.layers.{layer}.mlp.experts"
        parts = {x: np.stack([arrays.pop(f"{block}.{e}.{x}.weight") for e in range(4)]) for x in (gate, up, down)}
        arrays |= {f"{block}.gate_up_proj": np.concatenate([parts[gate], parts[up]], 1), f"{block}.down_proj": parts[down]}
    _, _, other, fused = opened(name, tensors=InMemory(arrays))
    for leaf, p in param.named_leaves(transformer.spec(model)).items():
        whole = (slice(None),) * len(p.shape)
        one, two = (tables.leaf_part(t, model, leaf, whole, x.read) for t, x in ((table, tensors), (other, fused)))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "qwen3_moe", "gemma3"])
def test_a_part_of_a_leaf_is_that_part_and_reads_its_tensors_alone(name):
    model, _, table, tensors = opened(name)
    rng, asked = np.random.default_rng(0), set()
    for leaf, p in param.named_leaves(transformer.spec(model)).items():
        whole = tables.leaf_part(table, model, leaf, (slice(None),) * len(p.shape), tensors.read)
        assert whole.shape == p.shape and whole.dtype == np.float32
        index = tuple(slice(start := int(rng.integers(n)), int(rng.integers(start, n)) + 1) for n in p.shape)
        asked.clear()
        part = tables.leaf_part(table, model, leaf, index, lambda key: (asked.add(key), tensors.read(key))[1])
        np.testing.assert_array_equal(part, whole[index])
        if leaf.startswith("blocks."):
            layers = {int(leaf.split(".")[1]) + i * model.period for i in range(index[0].start, index[0].stop)}
            assert {int(key.split(".layers." if ".layers." in key else ".h.")[1].split(".")[0]) for key in asked} == layers


def test_axes_read_and_write_halves_that_alternate():
    """Rotary pairs of some formats lie next to one another, ours half a head apart."""
    ours = np.arange(3 * 2 * 6, dtype=np.float32).reshape(3, 2, 6)
    theirs = np.empty((12, 3), np.float32)
    formula = axes("dn(2r) -> (n r 2)d")
    formula.put(ours, theirs)
    np.testing.assert_array_equal(theirs.T.reshape(3, 2, 6)[..., ::2], ours[..., :3])
    np.testing.assert_array_equal(formula.view(theirs, ours.shape), ours)
    for wrong in ("ab -> a", "ab -> abb", "a -> b"):
        with pytest.raises(ValueError, match="same axes"):
            axes(wrong)


def test_what_no_family_holds_is_refused_with_each_reason():
    model = read(config_json("llama"))
    assert family_for(model).architecture == "LlamaForCausalLM"
    for changes in ({"causal": False}, {"positions": "sinusoidal"}, {"activation": "relu2"}):
        with pytest.raises(ConfigError) as fault:
            family_for(dataclasses.replace(model, **changes))
        assert all(family.architecture in str(fault.value) for family in FAMILIES)
    odd = dataclasses.replace(model, hidden_size=30)
    assert family_for(odd).architecture == "MistralForCausalLM"  # transformers' Llama wants a width that divides by the heads
    with pytest.raises(ConfigError, match="Qwen3ForCausalLM cannot hold qk_norm = 'none'"):
        family_of({"model_type": "qwen3"}).write(model)
