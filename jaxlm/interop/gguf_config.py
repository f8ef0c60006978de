"""What a GGUF file says of its model, as a Hugging Face configuration: the families' own readers take it from there.

A key of the architecture that is not known here is refused by name, for it may change what the model computes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlm.errors import CheckpointError
from jaxlm.interop.gguf import Gguf

Fields = dict[str, Any]

# Keys whose value is a field of the configuration under another name.
_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_GPT2 = {
    "context_length": "n_positions",
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_SOFTCAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
# Read below, or checked there to be what the family does anyway.
_HEADS = ("attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size")
_SCALING = (
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scale_linear",
)  # fmt: skip
_NO_FUNCTION = ("tensor_data_layout",)
# Types of the tokenizer's keys; in a list those of its values.
_VOCABULARY: Mapping[str, Any] = {
    **{name: str for name in ("ggml.model", "ggml.pre", "chat_template")},
    **{f"ggml.{name}": bool for name in ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces")},
    **{f"ggml.{name}_token_id": int for name in ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding")},
    **{"ggml.tokens": [str], "ggml.merges": [str], "ggml.scores": [float], "ggml.token_type": [int]},
}
_OPTIONAL = ("attention.head_count_kv", "rope.freq_base", *_SOFTCAPS)
_FRACTIONS = ("epsilon", "freq_base", "softcapping", "factor", "scale_linear")
_WORDS = ("tensor_data_layout", "rope.scaling.type", "rope.scaling.finetuned")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPE_FACTORS = "rope_freqs.weight"


def read_config(file: Gguf) -> Fields:
    """Return the fields of config.json for the model in a file.

    Raises CheckpointError for an architecture that is not supported, a key that is not known, or one that is missing.
    """
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path} holds the architecture {str(architecture)[:80]!r}; jaxlm reads {', '.join(ARCHITECTURES)}"
        )
    prefix = f"{architecture}."
    keys = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    renamed, extra, finish = ARCHITECTURES[architecture]
    unknown = next((key for key in keys if key not in (*renamed, *extra, *_HEADS, *_NO_FUNCTION)), None)
    if unknown is not None:
        raise CheckpointError(
            f"{file.path} sets {prefix}{unknown} = {str(keys[unknown])[:80]}, which jaxlm does not know for {architecture}: "
            "its model would not be computed as it should"
        )
    for key, value in keys.items():
        fraction = any(part in key for part in _FRACTIONS)
        if key not in _WORDS and not ((type(value) is int and value >= 0) or (fraction and _is_number(value))):
            raise CheckpointError(f"{file.path} sets {prefix}{key} = {str(value)[:80]}: one number for all layers is read")
    fields: Fields = {name: keys[key] for key, name in renamed.items() if key in keys}
    missing = next((key for key in renamed if key not in keys and key not in _OPTIONAL), None)
    if missing is not None:
        raise CheckpointError(f"{file.path} does not say {prefix}{missing}, without which its model is not known")
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path} has no token_embd.weight: it holds no language model, or only a part of one")
    rows, said = file.tensors["token_embd.weight"].shape[0], keys.get("vocab_size")
    if said not in (None, rows):
        raise CheckpointError(f"{file.path} sets {prefix}vocab_size = {said}, and its embedding has {rows} rows")
    fields |= {
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
    }
    finish(fields, keys, file)
    return fields


def check_vocabulary(file: Gguf) -> None:
    """Raise CheckpointError where a key of the tokenizer is not of its type: what reads them takes them at their word."""
    for name, kind in _VOCABULARY.items():
        value = file.metadata.get(f"tokenizer.{name}")
        items, kind = (value, kind[0]) if isinstance(kind, list) else ([value], kind)
        if value is not None and not (isinstance(items, list) and all(type(item) is kind for item in items)):
            raise CheckpointError(f"{file.path} holds tokenizer.{name} = {str(value)[:80]}, which is not of its type")


def _is_number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _heads(fields: Fields, keys: Mapping[str, Any], file: Gguf) -> None:
    """Settle the size of a head, which all of a model's keys must agree on."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if not width or not heads:
        raise CheckpointError(f"{file.path} announces {heads} heads of a model of width {width}")
    size = keys.get("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, size) != size:
            raise CheckpointError(f"{file.path}: {key} = {keys[key]} differs from the size of a head, {size}: not supported")
    fields["head_dim"] = size
    fields.setdefault("num_key_value_heads", heads)
    fields.setdefault("rope_theta", 10_000.0)


def _scaling(fields: Fields, keys: Mapping[str, Any], file: Gguf) -> None:
    """Settle how rotary positions are stretched, by the keys or by a tensor of factors."""
    kind, factor = keys.get("rope.scaling.type", "none"), keys.get("rope.scaling.factor", 1.0)
    if "rope.scale_linear" in keys:  # as files of 2023 say it
        kind, factor = "linear", keys["rope.scale_linear"]
    if kind not in ("none", "linear", "yarn"):
        raise CheckpointError(f"{file.path} scales rotary positions by {str(kind)[:40]!r}: none, linear and yarn are read")
    if kind != "none" and factor not in (0, 1):
        fields["rope_scaling"] = {"rope_type": kind, "factor": float(factor)}
        if kind == "yarn":
            original = keys.get("rope.scaling.original_context_length", fields["max_position_embeddings"])
            fields["rope_scaling"]["original_max_position_embeddings"] = original
    if ROPE_FACTORS in file.tensors:
        if "rope_scaling" in fields:
            raise CheckpointError(f"{file.path} has both rope.scaling keys and {ROPE_FACTORS}: only one of them is read")
        fields["rope_scaling"] = _stored_factors(fields, file)


def _stored_factors(fields: Fields, file: Gguf) -> Fields:
    """Return the scaling that a tensor of divisors stands for: Llama 3's where they are its own, else one by one."""
    divisors = np.asarray(file.read(ROPE_FACTORS), np.float64).reshape(-1)
    half = fields["head_dim"] // 2
    if len(divisors) != half or not np.isfinite(divisors).all() or (divisors <= 0).any():
        raise CheckpointError(f"{file.path}: {ROPE_FACTORS} must hold {half} factors above 0")
    factor = float(round(divisors.max(), 6))
    wavelength = 2 * np.pi * fields["rope_theta"] ** (np.arange(half) / half)
    low, high, length = _LLAMA3.values()
    smooth = (length / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    llama3 = np.where(wavelength < length / high, 1.0, np.where(wavelength > length / low, factor, between))
    if np.allclose(divisors, llama3, rtol=1e-5):
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    each = [float(divisor) for divisor in divisors]
    length = fields["max_position_embeddings"]
    return {
        "rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": length,
        "short_factor": each, "long_factor": each,
    }  # fmt: skip


def _llama(fields: Fields, keys: Mapping[str, Any], file: Gguf) -> None:
    _heads(fields, keys, file)
    _scaling(fields, keys, file)
    experts, window = keys.get("expert_count", 0), keys.get("attention.sliding_window", 0)
    if experts:
        fields |= {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": keys.get("expert_used_count")}
        fields |= {"sliding_window": window or None, "hidden_act": "silu"}
    elif window:
        fields |= {"model_type": "mistral", "sliding_window": window, "hidden_act": "silu"}
    else:
        biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
        fields |= {"model_type": "llama", "hidden_act": "silu"} | {name: bias in file.tensors for name, bias in biases.items()}


def _qwen(model_type: str) -> Callable[[Fields, Mapping[str, Any], Gguf], None]:
    def finish(fields: Fields, keys: Mapping[str, Any], file: Gguf) -> None:
        _heads(fields, keys, file)
        _scaling(fields, keys, file)
        fields |= {"model_type": model_type, "hidden_act": "silu", "use_sliding_window": False}
        if model_type != "qwen2":
            fields["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        if model_type == "qwen3_moe":
            # Not in the file: llama.cpp always renormalises for this architecture.
            fields |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
            fields["moe_intermediate_size"] = keys.get("expert_feed_forward_length", fields["intermediate_size"])

    return finish


def _gemma(model_type: str) -> Callable[[Fields, Mapping[str, Any], Gguf], None]:
    def finish(fields: Fields, keys: Mapping[str, Any], file: Gguf) -> None:
        _heads(fields, keys, file)
        _scaling(fields, keys, file)
        fields |= {"model_type": model_type, "attention_bias": False, "hidden_activation": "gelu_pytorch_tanh"}
        if model_type == "gemma":
            fields["hidden_act"] = "gelu_pytorch_tanh"
            return
        layers = fields["num_hidden_layers"]
        # The file does not hold the scale of queries; the 27B models alone take the width of a head's share of the stream.
        largest = layers == {"gemma2": 46, "gemma3_text": 62}[model_type]
        share = fields["hidden_size"] // fields["num_attention_heads"]
        fields["query_pre_attn_scalar"] = share if largest else fields["head_dim"]
        fields["sliding_window"] = keys.get("attention.sliding_window", 4096)
        period = keys.get("attention.sliding_window_pattern", {"gemma2": 2, "gemma3_text": 6}[model_type])
        if not period:
            raise CheckpointError(f"{file.path}: attention.sliding_window_pattern = 0 is not read")
        kinds = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(min(layers, 1 << 16))]
        fields["layer_types"] = kinds
        if model_type == "gemma3_text":
            fields["rope_local_base_freq"] = float(keys.get("rope.freq_base_swa", 10_000.0))
            if "rope.freq_base" not in keys:
                fields["rope_theta"] = 1_000_000.0

    return finish


def _olmo2(fields: Fields, keys: Mapping[str, Any], file: Gguf) -> None:
    _heads(fields, keys, file)
    _scaling(fields, keys, file)
    fields |= {"model_type": "olmo2", "hidden_act": "silu", "attention_bias": False}


def _gpt2(fields: Fields, keys: Mapping[str, Any], file: Gguf) -> None:
    fields |= {"model_type": "gpt2", "activation_function": "gelu_new"}


_SWA = ("attention.sliding_window", "attention.sliding_window_pattern")
# Fields by another name, further keys that the last column reads, and what settles the rest.
ARCHITECTURES: Mapping[str, tuple[dict[str, str], tuple[str, ...], Callable[[Fields, Mapping[str, Any], Gguf], None]]] = {
    "llama": (_SIZES, (*_SCALING, *_EXPERTS, "attention.sliding_window"), _llama),
    "qwen2": (_SIZES, _SCALING, _qwen("qwen2")),
    "qwen3": (_SIZES, _SCALING, _qwen("qwen3")),
    "qwen3moe": (_SIZES | _EXPERTS, (*_SCALING, "expert_feed_forward_length"), _qwen("qwen3_moe")),
    "gemma": (_SIZES, _SCALING, _gemma("gemma")),
    "gemma2": (_SIZES | _SOFTCAPS, (*_SCALING, *_SWA), _gemma("gemma2")),
    "gemma3": (_SIZES | _SOFTCAPS, (*_SCALING, *_SWA, "rope.freq_base_swa"), _gemma("gemma3_text")),
    "olmo2": (_SIZES, _SCALING, _olmo2),
    "gpt2": (_GPT2, (), _gpt2),
}
