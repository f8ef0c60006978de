"""Llama and the families that differ from it by values: Mistral, Qwen2, Qwen3, OLMo-2, StableLM."""

from typing import Any

from jaxlm.interop.families.decoder import (
    attention,
    ends,
    layer_norms,
    max_positions,
    mlp,
    one_window,
    read_decoder,
    their_layer_types,
    windows_by_layer,
    write_decoder,
)
from jaxlm.interop.families.family import Family
from jaxlm.interop.families.fields import Fields
from jaxlm.interop.families.rope import read_rope, their_max_length, write_rope
from jaxlm.interop.table import Table
from jaxlm.model.config import ModelConfig

QKV, QKVO = ("q", "k", "v"), ("q", "k", "v", "o")
BEFORE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
AFTER = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": None,
}  # fmt: skip
MISTRAL = LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8}
QWEN = LLAMA | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32}
OLMO2 = LLAMA | {"vocab_size": 50304, "rms_norm_eps": 1e-5}
STABLELM = LLAMA | {
    "vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912, "num_key_value_heads": 32,
}  # fmt: skip


def read_llama(f: Fields) -> ModelConfig:
    """Llama 1 to 3, and what is published under its name."""
    biases = QKVO if f.flag("attention_bias", False) else ()
    biases += ("gate", "up", "down") if f.flag("mlp_bias", False) else ()
    return ModelConfig(**read_decoder(f, LLAMA), **read_rope(f, max_length=max_positions(f, 2048)), biases=biases)


def read_mistral(f: Fields) -> ModelConfig:
    """Llama with a sliding window in all layers, or in none."""
    values = read_decoder(f, MISTRAL) | read_rope(f, max_length=max_positions(f, 131072))
    return ModelConfig(**values, **one_window(f, values["num_layers"], f.optional_integer("sliding_window", 4096)))


def read_qwen2(f: Fields) -> ModelConfig:
    """Llama with biases of queries, keys and values, and sliding windows in the layers from `max_window_layers` on."""
    values = read_decoder(f, QWEN) | read_rope(f, max_length=max_positions(f, 32768))
    return ModelConfig(**values, **_windows(f, values["num_layers"]), biases=QKV)


def read_qwen3(f: Fields) -> ModelConfig:
    """Qwen2 with norms of queries and keys over each head instead of the biases."""
    values = read_decoder(f, QWEN | {"head_dim": 128}) | read_rope(f, max_length=max_positions(f, 32768))
    biases = QKVO if f.flag("attention_bias", False) else ()
    return ModelConfig(**values, **_windows(f, values["num_layers"]), biases=biases, qk_norm="head")


def read_olmo2(f: Fields) -> ModelConfig:
    """Llama with norms after the sub-layers, and of queries and keys over all heads together."""
    values = read_decoder(f, OLMO2) | read_rope(f, max_length=max_positions(f, 2048))
    biases = QKVO if f.flag("attention_bias", False) else ()
    return ModelConfig(**values, biases=biases, qk_norm="all", norm_position="after")


def read_stablelm(f: Fields) -> ModelConfig:
    """Llama with LayerNorm and partial rotation."""
    f.only("qk_layernorm", False)
    # Its parallel form has one norm for both sub-layers, which the block has not.
    f.only("use_parallel_residual", False)
    values = read_decoder(f, STABLELM)
    if values["hidden_size"] != values["num_heads"] * values["head_dim"] > 0:
        raise f.fault(
            "head_dim", values["head_dim"], "is not supported: it is hidden_size / num_attention_heads in this family"
        )
    values |= read_rope(f, max_length=max_positions(f, 4096), fraction=0.25, partial=True)
    f.number("hidden_dropout", 0.0, 0.0, 1.0)
    return ModelConfig(**values | {
        "norm_epsilon": f.number("layer_norm_eps", 1e-5, 0.0, 1.0), "norm": "layer", "norm_bias": True,
        "biases": QKV if f.flag("use_qkv_bias", False) else (),
    })  # fmt: skip


def _windows(f: Fields, num_layers: int) -> dict[str, Any]:
    window = f.optional_integer("sliding_window", 4096)
    first = f.integer("max_window_layers", 28, 0)
    if not f.flag("use_sliding_window", False):
        window = None
    usual = ["sliding_attention" if window and layer >= first else "full_attention" for layer in range(num_layers)]
    return windows_by_layer(f, num_layers, window, usual)


def _write(model: ModelConfig) -> dict[str, Any]:
    return write_decoder(model) | {"max_position_embeddings": their_max_length(model), "rope_parameters": write_rope(model)}


def write_llama(model: ModelConfig) -> dict[str, Any]:
    """Fields of a LlamaConfig."""
    return _write(model) | {"attention_bias": "o" in model.biases, "mlp_bias": "down" in model.biases}


def write_mistral(model: ModelConfig) -> dict[str, Any]:
    """Fields of a MistralConfig."""
    return _write(model) | {"sliding_window": model.sliding_window or None}


def write_windows(model: ModelConfig) -> dict[str, Any]:
    """Fields of a Qwen2Config."""
    sliding = "sliding" in model.attention_pattern
    return _write(model) | {
        "use_sliding_window": sliding, "sliding_window": model.sliding_window if sliding else None,
        "max_window_layers": model.num_layers, "layer_types": their_layer_types(model),
    }  # fmt: skip


def write_qwen3(model: ModelConfig) -> dict[str, Any]:
    """Fields of a Qwen3Config."""
    return write_windows(model) | {"attention_bias": "o" in model.biases}


def write_olmo2(model: ModelConfig) -> dict[str, Any]:
    """Fields of an Olmo2Config."""
    return _write(model) | {"attention_bias": "o" in model.biases}


def write_stablelm(model: ModelConfig) -> dict[str, Any]:
    """Fields of a StableLmConfig."""
    fields = _write(model) | {
        "layer_norm_eps": model.norm_epsilon, "use_qkv_bias": "q" in model.biases, "hidden_dropout": 0.0,
        "qk_layernorm": False, "use_parallel_residual": False,
    }  # fmt: skip
    # Without a fraction there transformers would rotate a quarter.
    fields["rope_parameters"] |= {"partial_rotary_factor": model.rope_fraction}
    del fields["rms_norm_eps"]
    return fields


def table(model: ModelConfig) -> Table:
    """Tensors named as Llama's, with norms before the sub-layers."""
    return ends(model) + attention(model) + mlp() + layer_norms(BEFORE)


def table_after(model: ModelConfig) -> Table:
    """The same with norms after them."""
    return ends(model) + attention(model) + mlp() + layer_norms(AFTER)


LLAMA_FAMILY = Family(("llama",), "LlamaForCausalLM", "model.", read_llama, write_llama, table, whole_heads=True)
MISTRAL_FAMILY = Family(("mistral",), "MistralForCausalLM", "model.", read_mistral, write_mistral, table)
QWEN2_FAMILY = Family(("qwen2",), "Qwen2ForCausalLM", "model.", read_qwen2, write_windows, table)
QWEN3_FAMILY = Family(("qwen3",), "Qwen3ForCausalLM", "model.", read_qwen3, write_qwen3, table)
OLMO2_FAMILY = Family(("olmo2",), "Olmo2ForCausalLM", "model.", read_olmo2, write_olmo2, table_after)
STABLELM_FAMILY = Family(("stablelm",), "StableLmForCausalLM", "model.", read_stablelm, write_stablelm, table)
