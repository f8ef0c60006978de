"""Model shapes by name: plain functions that return a ModelConfig, to be changed with `dataclasses.replace`."""

from collections.abc import Callable

from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig


def nano() -> ModelConfig:
    """0.5M parameters: trains in seconds on a CPU."""
    return ModelConfig(
        vocab_size=1024, num_layers=2, hidden_size=128, num_heads=4, num_kv_heads=2, intermediate_size=352, max_length=256
    )


def small_15m() -> ModelConfig:
    """15M parameters, Llama-shaped: minutes on a CPU."""
    return ModelConfig(vocab_size=32_000, num_layers=6, hidden_size=288, num_heads=6, intermediate_size=768, max_length=1024)


def llama_125m() -> ModelConfig:
    """124M parameters, Llama-shaped."""
    return ModelConfig(vocab_size=32_000, num_layers=12, hidden_size=768, num_heads=12, intermediate_size=2560)


def llama_350m() -> ModelConfig:
    """341M parameters, Llama-shaped."""
    return ModelConfig(vocab_size=32_000, num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=2816)


def llama_1b() -> ModelConfig:
    """The shape of Llama 3.2 1B (arXiv:2407.21783): 1,235,814,400 parameters. Its long-context RoPE scaling is left out."""
    return ModelConfig(
        vocab_size=128_256, num_layers=16, hidden_size=2048, num_heads=32, num_kv_heads=8, head_dim=64,
        intermediate_size=8192, max_length=8192, rope_theta=500_000.0,
    )  # fmt: skip


def llama_8b() -> ModelConfig:
    """The shape of Llama 3 8B (arXiv:2407.21783): 8,030,261,248 parameters."""
    return ModelConfig(
        vocab_size=128_256, num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8,
        intermediate_size=14_336, max_length=8192, rope_theta=500_000.0, tie_embeddings=False,
    )  # fmt: skip


def llama_70b() -> ModelConfig:
    """The shape of Llama 3 70B (arXiv:2407.21783): 70,553,706,496 parameters."""
    return ModelConfig(
        vocab_size=128_256, num_layers=80, hidden_size=8192, num_heads=64, num_kv_heads=8,
        intermediate_size=28_672, max_length=8192, rope_theta=500_000.0, tie_embeddings=False,
    )  # fmt: skip


def gpt2_124m() -> ModelConfig:
    """GPT-2 small (Radford et al. 2019): 124,439,808 parameters. Its vocabulary is odd: keep it whole on a mesh."""
    return ModelConfig(
        vocab_size=50_257, num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072, max_length=1024,
        activation="gelu_tanh", norm="layer", norm_bias=True, positions="learned",
        biases=("q", "k", "v", "o", "up", "down"), init_std=0.02,
    )  # fmt: skip


def gemma2_2b() -> ModelConfig:
    """The shape of Gemma 2 2B (arXiv:2408.00118): 2,614,341,888 parameters."""
    return ModelConfig(
        vocab_size=256_000, num_layers=26, hidden_size=2304, num_heads=8, num_kv_heads=4, head_dim=256,
        intermediate_size=9216, max_length=8192, activation="geglu", norm_plus_one=True, norm_position="both",
        norm_epsilon=1e-6, attention_pattern=("sliding", "global"), sliding_window=4096, attention_softcap=50.0,
        logit_softcap=30.0, scale_embeddings=True,
    )  # fmt: skip


def mistral_7b() -> ModelConfig:
    """The shape of Mistral 7B v0.1 (arXiv:2310.06825): 7,241,732,096 parameters."""
    return ModelConfig(
        vocab_size=32_000, num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8, intermediate_size=14_336,
        max_length=32_768, attention_pattern=("sliding",), sliding_window=4096, tie_embeddings=False,
    )  # fmt: skip


def switch_base() -> ModelConfig:
    """The shape of Switch-Base (arXiv:2101.03961), as a decoder: 128 experts in every second of 12 layers, 3.7B parameters."""
    return ModelConfig(
        vocab_size=32_128, num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072, activation="relu",
        init_scale=0.1, moe=MoeConfig(num_experts=128, every=2, evaluation_capacity_factor=2.0, jitter=0.01),
    )  # fmt: skip


def mixtral_8x7b() -> ModelConfig:
    """The shape of Mixtral 8x7B (arXiv:2401.04088): 46,702,792,704 parameters."""
    return ModelConfig(
        vocab_size=32_000, num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8, intermediate_size=14_336,
        max_length=32_768, rope_theta=1e6, tie_embeddings=False,
        moe=MoeConfig(
            num_experts=8, experts_per_token=2, renormalize=True, capacity_factor=None, load_balancing_loss=0.02,
            losses_over_layers="sum",
        ),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "nano": nano,
    "15m": small_15m,
    "125m": llama_125m,
    "350m": llama_350m,
    "1b": llama_1b,
    "8b": llama_8b,
    "70b": llama_70b,
    "gpt2": gpt2_124m,
    "gemma2-2b": gemma2_2b,
    "mistral-7b": mistral_7b,
    "switch-base": switch_base,
    "mixtral-8x7b": mixtral_8x7b,
}
