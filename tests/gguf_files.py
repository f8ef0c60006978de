"""GGUF files written for tests, and the published block layouts restated in plain Python."""

import re
import struct
from pathlib import Path

import gguf
import numpy as np

from jaxlm.data.spelling import byte_alphabet

# Hugging Face names of one layer's tensors -> the GGUF's, for every architecture, and where they differ.
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down", "block_sparse_moe.gate": "ffn_gate_inp", "mlp.gate": "ffn_gate_inp",
}  # fmt: skip
AFTER = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
OTHERS = {"olmo2": AFTER, "gemma2": AFTER, "gemma3": AFTER}
TOP = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
}  # fmt: skip
LAYER = re.compile(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.+)")
EXPERT = re.compile(r"(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(.+)")
EXPERTS = {
    "w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps", "gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
}  # fmt: skip
KEYS = {
    "block_count": ("num_hidden_layers", "n_layer"), "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"), "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"), "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",), "attention.layer_norm_epsilon": ("layer_norm_epsilon",),
    "attention.key_length": ("head_dim",), "attention.value_length": ("head_dim",), "rope.dimension_count": ("head_dim",),
    "attention.sliding_window": ("sliding_window",), "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",), "expert_feed_forward_length": ("moe_intermediate_size",),
    "attn_logit_softcapping": ("attn_logit_softcapping",), "final_logit_softcapping": ("final_logit_softcapping",),
}  # fmt: skip


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Return rows of queries or keys as llama.cpp's converter orders them: the halves of a head interleaved."""
    out = np.empty_like(values)
    size = len(values) // heads
    for head in range(heads):
        for row in range(size // 2):
            out[head * size + 2 * row] = values[head * size + row]
            out[head * size + 2 * row + 1] = values[head * size + size // 2 + row]
    return out


def write_model(
    path: Path, architecture: str, config: dict, weights: dict[str, np.ndarray], kind: str = "F32", keys: dict | None = None,
    tensors: dict[str, np.ndarray] | None = None, vocabulary: str = "",
) -> None:  # fmt: skip
    """Write Hugging Face weights as llama.cpp's converter does, matrices as `kind`; `keys` and `tensors` are added as named.

    `vocabulary` ("gpt2" or "llama") adds a small tokenizer of that kind.
    """
    writer = gguf.GGUFWriter(path, architecture)
    found = {key: next((config[name] for name in names if config.get(name)), None) for key, names in KEYS.items()}
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if rope:
        found["rope.freq_base"] = float(rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    for key, value in (found | (keys or {})).items():
        if value is not None:
            add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}[type(value)]
            add(f"{architecture}.{key}", value)
    if vocabulary:
        tokens = ["<unk>", "<s>", "</s>", *(byte_alphabet() if vocabulary == "gpt2" else "abcdefgh"), "ab"]
        writer.add_tokenizer_model(vocabulary)
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
        writer.add_token_scores([-float(i) for i in range(len(tokens))])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(2)
    for name, values in (converted(architecture, config, weights) | (tensors or {})).items():
        whole = values.ndim > 1 and values.shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] == 0
        number = gguf.GGMLQuantizationType[kind if whole else "F32"]
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(values), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def converted(architecture: str, config: dict, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors as they stand in a GGUF file, under its names."""
    out: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, values in weights.items():
        base, _, suffix = name.rpartition(".")
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if base in TOP:
            out[f"{TOP[base]}.{suffix}"] = values
            continue
        layer, part = LAYER.fullmatch(base).groups()
        if expert := EXPERT.fullmatch(part):
            stacks.setdefault(f"blk.{layer}.{EXPERTS[expert[2]]}.weight", {})[int(expert[1])] = values
            continue
        heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(part)
        if heads and architecture == "llama":
            values = permuted(values, config[heads])
        if architecture == "gpt2" and values.ndim == 2:
            values = values.T
        out[f"blk.{layer}.{(NAMES | OTHERS.get(architecture, {}))[part]}.{suffix}"] = values
    return out | {name: np.stack([parts[e] for e in range(len(parts))]) for name, parts in stacks.items()}


def half(data: bytes, at: int) -> float:
    return struct.unpack_from("<e", data, at)[0]


def scales_4_5(packed: bytes) -> list[tuple[int, int]]:
    """Return the eight 6-bit (scale, minimum) pairs of Q4_K and Q5_K, packed in 12 bytes."""
    pairs = []
    for j in range(8):
        if j < 4:
            pairs.append((packed[j] & 63, packed[j + 4] & 63))
        else:
            low, high = packed[j + 4], (packed[j - 4] >> 6, packed[j] >> 6)
            pairs.append(((low & 15) | high[0] << 4, (low >> 4) | high[1] << 4))
    return pairs


def decode(kind: str, data: bytes) -> list[float]:
    """Return the weights of one block, one at a time, as the format's description says."""
    if kind == "Q8_0":
        return [half(data, 0) * q for q in struct.unpack_from("<32b", data, 2)]
    if kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        minimum, fifth = kind.endswith("1"), kind.startswith("Q5")
        place = 4 if minimum else 2
        high = struct.unpack_from("<I", data, place)[0] if fifth else 0
        quants = data[place + 4 * fifth :]
        out = []
        for i in range(32):
            q = quants[i] & 15 if i < 16 else quants[i - 16] >> 4
            q += 16 * (high >> i & 1)
            out.append(half(data, 0) * q + half(data, 2) if minimum else half(data, 0) * (q - (16 if fifth else 8)))
        return out
    if kind in ("Q4_K", "Q5_K"):
        d, least, pairs = half(data, 0), half(data, 2), scales_4_5(data[4:16])
        high, quants = (data[16:48], data[48:]) if kind == "Q5_K" else (bytes(32), data[16:])
        out = []
        for i in range(256):
            group, lane = i // 32, i % 32
            q = quants[32 * (group // 2) + lane] >> 4 * (group % 2) & 15
            q += 16 * (high[lane] >> group & 1)
            out.append(d * pairs[group][0] * q - least * pairs[group][1])
        return out
    if kind == "Q6_K":
        low, high, scales, d = data[:128], data[128:192], struct.unpack_from("<16b", data, 192), half(data, 208)
        out = []
        for i in range(256):
            part, quarter, lane = i // 128, i % 128 // 32, i % 32
            q = low[64 * part + 32 * (quarter % 2) + lane] >> 4 * (quarter // 2) & 15
            q |= (high[32 * part + lane] >> 2 * quarter & 3) << 4
            out.append(d * scales[i // 16] * (q - 32))
        return out
    if kind == "Q2_K":
        scales, quants, d, least = data[:16], data[16:80], half(data, 80), half(data, 82)
        out = []
        for i in range(256):
            q = quants[32 * (i // 128) + i % 32] >> 2 * (i % 128 // 32) & 3
            out.append(d * (scales[i // 16] & 15) * q - least * (scales[i // 16] >> 4))
        return out
    assert kind == "Q3_K"
    high, quants, packed, d = data[:32], data[32:96], data[96:108], half(data, 108)
    out = []
    for i in range(256):
        j = i // 16
        scale = (packed[j % 8] >> 4 * (j // 8) & 15) | (packed[8 + j % 4] >> 2 * (j // 4) & 3) << 4
        q = quants[32 * (i // 128) + i % 32] >> 2 * (i % 128 // 32) & 3
        q -= 0 if high[i % 32] >> (i // 32) & 1 else 4
        out.append(d * (scale - 32) * q)
    return out
