"""Gemma, Gemma-2 and the text models of Gemma-3."""

from typing import Any

from jaxlm.errors import ConfigError
from jaxlm.interop.families.decoder import (
    ATTENTION,
    GATED,
    attention,
    ends,
    layer_norms,
    max_positions,
    mlp,
    read_decoder,
    their_layer_types,
    windows_by_layer,
    write_decoder,
)
from jaxlm.interop.families.family import Family
from jaxlm.interop.families.fields import Fields
from jaxlm.interop.families.llama import BEFORE, QKVO
from jaxlm.interop.families.rope import read_rope, read_rope_by_kind, their_max_length, write_rope
from jaxlm.interop.table import Table
from jaxlm.model.config import ModelConfig

TANH = "gelu_pytorch_tanh"
GEMMA = {
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": 256, "hidden_act": TANH, "hidden_activation": TANH, "tie_word_embeddings": True,
}  # fmt: skip
GEMMA2 = GEMMA | {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip
GEMMA3 = GEMMA2 | {"vocab_size": 262208}
BOTH = {
    "attention_norm": "input_layernorm", "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm", "mlp_post_norm": "post_feedforward_layernorm",
}  # fmt: skip


def read_gemma(f: Fields) -> ModelConfig:
    """Llama with norms around 1, scaled embeddings and a GELU gate; "gelu" of older files means its tanh form."""
    if f.get("hidden_act", TANH) in ("gelu", None):
        f.values["hidden_act"] = TANH
    values = read_decoder(f, GEMMA) | read_rope(f, max_length=max_positions(f, 8192))
    _same_activation(f, "hidden_activation", values["activation"])
    return ModelConfig(**values, **_common(f))


def read_gemma2(f: Fields) -> ModelConfig:
    """Gemma with norms on both sides of a sub-layer, alternating windows and soft caps."""
    values = read_decoder(f, GEMMA2, "hidden_activation") | read_rope(f, max_length=max_positions(f, 8192))
    _same_activation(f, "hidden_act", values["activation"])
    usual = [("sliding_attention", "full_attention")[layer % 2] for layer in range(values["num_layers"])]
    values |= windows_by_layer(f, values["num_layers"], f.optional_integer("sliding_window", 4096), usual)
    return ModelConfig(**values, **_common(f), **_capped(f, 50.0, 30.0), norm_position="both")


def read_gemma3(f: Fields) -> ModelConfig:
    """Gemma-2 with norms of queries and keys, and a rotary base of their own for sliding layers."""
    values = read_decoder(f, GEMMA3, "hidden_activation")
    _same_activation(f, "hidden_act", values["activation"])
    n = f.integer("sliding_window_pattern", 6)
    if f.get("layer_types") is None:
        f.only("_sliding_window_pattern", 6, n)
    f.get("_sliding_window_pattern")
    usual = ["sliding_attention" if (layer + 1) % n else "full_attention" for layer in range(values["num_layers"])]
    values |= windows_by_layer(f, values["num_layers"], f.optional_integer("sliding_window", 4096), usual)
    values |= read_rope_by_kind(f, max_length=max_positions(f, 131072), pattern=values["attention_pattern"])
    # transformers keeps the field but caps no attention logits in this family: what its models compute is without it.
    caps = _capped(f, None, None) | {"attention_softcap": 0.0}
    return ModelConfig(**values, **_common(f), **caps, norm_position="both", qk_norm="head")


def refuse_images(f: Fields) -> ModelConfig:
    """Raise ConfigError: what also reads images has more parts than a decoder."""
    raise ConfigError(
        f"{f.where}: model_type = 'gemma3' is the model that also reads images, which jaxlm does not have. Save its text part "
        "(Gemma3ForCausalLM, model_type 'gemma3_text') with transformers and import that"
    )


def _common(f: Fields) -> dict[str, Any]:
    biases = QKVO if f.flag("attention_bias", False) else ()
    return {"norm_plus_one": True, "scale_embeddings": True, "biases": biases}


def _capped(f: Fields, attention_cap: float | None, final_cap: float | None) -> dict[str, Any]:
    return {
        "query_scale": f.number("query_pre_attn_scalar", 256, above=True) ** -0.5,
        "attention_softcap": f.optional_number("attn_logit_softcapping", attention_cap) or 0.0,
        "logit_softcap": f.optional_number("final_logit_softcapping", final_cap) or 0.0,
    }


def _same_activation(f: Fields, name: str, activation: str) -> None:
    """Refuse a second name of the activation function that says another one than is in force."""
    if f.get(name) is not None and f.choice(name, "", GATED) != activation:
        raise f.fault(name, f.get(name), f"contradicts the other of hidden_act and hidden_activation, which means {activation}")


def write_gemma(model: ModelConfig) -> dict[str, Any]:
    """Fields of a GemmaConfig."""
    return write_decoder(model) | {
        "max_position_embeddings": their_max_length(model), "rope_parameters": write_rope(model),
        "attention_bias": "q" in model.biases,
    }  # fmt: skip


def write_gemma2(model: ModelConfig) -> dict[str, Any]:
    """Fields of a Gemma2Config."""
    scalar = model.attention_scale**-2
    return write_decoder(model, "hidden_activation") | {
        "max_position_embeddings": their_max_length(model), "rope_parameters": write_rope(model),
        "attention_bias": "q" in model.biases, "layer_types": their_layer_types(model),
        # transformers makes the mask of sliding layers even where there are none.
        "sliding_window": model.sliding_window or 4096,
        # A whole number at its home.
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar,
        "attn_logit_softcapping": model.attention_softcap or None, "final_logit_softcapping": model.logit_softcap or None,
    }  # fmt: skip


def write_gemma3(model: ModelConfig) -> dict[str, Any]:
    """Fields of a Gemma3TextConfig."""
    local = model.sliding_rope_theta or model.rope_theta
    by_kind = dict(zip(ATTENTION, (write_rope(model), {"rope_type": "default", "rope_theta": local}), strict=True))
    return write_gemma2(model) | {"rope_parameters": by_kind}


def table(model: ModelConfig) -> Table:
    """Llama's tensors."""
    return ends(model) + attention(model) + mlp() + layer_norms(BEFORE)


def table_both(model: ModelConfig) -> Table:
    """Llama's tensors with norms on both sides; theirs after attention has the name that others give the one before the MLP."""
    return ends(model) + attention(model) + mlp() + layer_norms(BOTH)


GEMMA_FAMILY = Family(("gemma",), "GemmaForCausalLM", "model.", read_gemma, write_gemma, table)
GEMMA2_FAMILY = Family(("gemma2",), "Gemma2ForCausalLM", "model.", read_gemma2, write_gemma2, table_both, whole_heads=True)
GEMMA3_FAMILY = Family(("gemma3_text",), "Gemma3ForCausalLM", "model.", read_gemma3, write_gemma3, table_both, whole_heads=True)
GEMMA3_IMAGES = Family(("gemma3",), "Gemma3ForConditionalGeneration", "", refuse_images, write_gemma3, table_both)
