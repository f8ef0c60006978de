"""Mixtures of experts: Mixtral, Qwen3-MoE."""

from typing import Any

from jaxlm.interop.families.decoder import attention, ends, layer_norms, max_positions, mlp, one_window, read_decoder
from jaxlm.interop.families.family import Family
from jaxlm.interop.families.fields import Fields
from jaxlm.interop.families.llama import BEFORE, LLAMA, QKVO, write_llama
from jaxlm.interop.families.rope import read_rope
from jaxlm.interop.table import Entry, Table
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig

MIXTRAL = LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8, "rms_norm_eps": 1e-5}
QWEN3_MOE = LLAMA | {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
}  # fmt: skip


def read_mixtral(f: Fields) -> ModelConfig:
    """Mistral with experts in every layer, gates renormalised."""
    values = read_decoder(f, MIXTRAL) | read_rope(f, max_length=max_positions(f, 131072), theta=1e6)
    values |= one_window(f, values["num_layers"], f.optional_integer("sliding_window"))
    experts = f.integer("num_local_experts", 8, 1, 65536)
    chosen = f.integer("num_experts_per_tok", 2, 1, experts)
    return ModelConfig(**values, moe=_mixture(f, experts, chosen, renormalize=True))


def read_qwen3_moe(f: Fields) -> ModelConfig:
    """Qwen3 with experts in every `decoder_sparse_step`-th layer but those of `mlp_only_layers`."""
    values = read_decoder(f, QWEN3_MOE) | read_rope(f, max_length=max_positions(f, 32768))
    window = f.optional_integer("sliding_window", 4096)
    num_layers = values["num_layers"]
    values |= one_window(f, num_layers, window if f.flag("use_sliding_window", False) else None)
    f.get("max_window_layers")  # older files have it; windows are in all layers or none
    experts, size = f.integer("num_experts", 128, 0, 65536), f.integer("moe_intermediate_size", 768)
    chosen = f.integer("num_experts_per_tok", 8, 1, max(experts, 1))
    every, dense = f.integer("decoder_sparse_step", 1), set(f.items("mlp_only_layers", int) or ())
    sparse = [layer for layer in range(num_layers) if experts and (layer + 1) % every == 0]
    moe = MoeConfig()
    if set(sparse) - dense:
        moe = _mixture(
            f, experts, chosen, renormalize=f.flag("norm_topk_prob", False), expert_size=size, every=every,
            dense_layers=tuple(layer for layer in sparse if layer in dense),
        )  # fmt: skip
    f.flag("norm_topk_prob", False)
    biases = QKVO if f.flag("attention_bias", False) else ()
    return ModelConfig(**values, biases=biases, qk_norm="head", moe=moe)


def _mixture(f: Fields, experts: int, chosen: int, **values: Any) -> MoeConfig:
    """Return the rule of routing: float32 softmax over all experts, the best chosen, no token dropped."""
    coefficient = f.number("router_aux_loss_coef", 0.001)
    in_loss = f.flag("output_router_logits", False)
    return MoeConfig(
        num_experts=experts, experts_per_token=chosen, capacity_factor=None, evaluation_capacity_factor=None,
        load_balancing_loss=coefficient if in_loss else 0.0, **values,
    )  # fmt: skip


def write_mixtral(model: ModelConfig) -> dict[str, Any]:
    """Fields of a MixtralConfig."""
    fields = write_llama(model) | {
        "sliding_window": model.sliding_window or None, "num_local_experts": model.moe.num_experts,
        "num_experts_per_tok": model.moe.experts_per_token,
        "intermediate_size": model.moe.expert_size or model.intermediate_size,
    } | _balancing(model)  # fmt: skip
    del fields["attention_bias"], fields["mlp_bias"]
    return fields


def write_qwen3_moe(model: ModelConfig) -> dict[str, Any]:
    """Fields of a Qwen3MoeConfig."""
    moe = model.moe
    fields = write_llama(model) | {
        "use_sliding_window": bool(model.sliding_window), "sliding_window": model.sliding_window or None,
        "num_local_experts": moe.num_experts, "num_experts_per_tok": moe.experts_per_token,
        "moe_intermediate_size": moe.expert_size or model.intermediate_size, "norm_topk_prob": moe.renormalize,
        "decoder_sparse_step": moe.every, "mlp_only_layers": list(moe.dense_layers),
    } | _balancing(model)  # fmt: skip
    del fields["mlp_bias"]
    return fields


def _balancing(model: ModelConfig) -> dict[str, Any]:
    weight = model.moe.load_balancing_loss
    return {"router_aux_loss_coef": weight or 0.001, "output_router_logits": False, "router_jitter_noise": 0.0}


def _experts(block: str, gate: str, up: str, down: str) -> Table:
    """Each expert's matrices, or all experts' of a layer in one, as transformers 5 holds them in memory."""
    names = (("gate", gate, "df -> fd"), ("up", up, "df -> fd"), ("down", down, "fd -> df"))
    entries = [Entry(f"blocks.moe.experts.{x}", f"{block}experts.{{expert}}.{n}.weight", formula) for x, n, formula in names]
    fused = "model.layers.{layer}.mlp.experts."
    entries += [
        Entry("blocks.moe.experts.gate", f"{fused}gate_up_proj", "edf -> e(0/2 f)d"),
        Entry("blocks.moe.experts.up", f"{fused}gate_up_proj", "edf -> e(1/2 f)d"),
        Entry("blocks.moe.experts.down", f"{fused}down_proj", "efd -> edf"),
    ]
    routers = dict.fromkeys((f"{block}gate.weight", "model.layers.{layer}.mlp.gate.weight"))
    return (*entries, *(Entry("blocks.moe.router", name, "de -> ed") for name in routers))


def mixtral_table(model: ModelConfig) -> Table:
    """Llama's tensors, w1 (gate), w3 (up) and w2 (down) of every expert."""
    experts = _experts("model.layers.{layer}.block_sparse_moe.", "w1", "w3", "w2")
    return ends(model) + attention(model) + experts + layer_norms(BEFORE)


def qwen3_moe_table(model: ModelConfig) -> Table:
    """Llama's tensors, in mixture layers those of experts."""
    experts = _experts("model.layers.{layer}.mlp.", "gate_proj", "up_proj", "down_proj")
    return ends(model) + attention(model) + mlp() + experts + layer_norms(BEFORE)


MIXTRAL_FAMILY = Family(
    ("mixtral",), "MixtralForCausalLM", "model.", read_mixtral, write_mixtral, mixtral_table,
    synonyms={"num_experts": "num_local_experts"},
)  # fmt: skip
QWEN3_MOE_FAMILY = Family(
    ("qwen3_moe",), "Qwen3MoeForCausalLM", "model.", read_qwen3_moe, write_qwen3_moe, qwen3_moe_table,
    synonyms={"num_local_experts": "num_experts"},
)  # fmt: skip
