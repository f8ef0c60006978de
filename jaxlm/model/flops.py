"""Floating-point operations a token costs, and what a device could do: together, model FLOPs utilisation."""

import math

from jaxlm.hardware import chip
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.param import named_leaves


def peak_flops(device_kind: str) -> float | None:
    """Return the peak bfloat16 FLOP/s of a device of this kind, or None where it is not known."""
    known = chip(device_kind)
    return known.peak_flops if known else None


def active_parameters(config: ModelConfig) -> float:
    """Return how many parameters a token meets: of a mixture's experts, those that it visits."""
    total = 0.0
    for param in named_leaves(transformer.spec(config)).values():
        share = config.moe.experts_per_token / config.moe.num_experts if "expert" in param.axes else 1.0
        total += math.prod(param.shape) * share
    return total


def forward_flops_per_token(config: ModelConfig, length: int) -> float:
    """Return the FLOPs of one token's forward pass in a row of `length`: two per multiply-add of every matrix product.

    Attention is counted over all keys of the row, masked or not, as is customary (PaLM, arXiv:2204.02311) and as a
    kernel without block skipping executes it; a sliding layer over at most its window and the query's own position.
    """
    return 2.0 * _matrices(config) + _attention_flops(config, length)


def train_flops_per_token(config: ModelConfig, length: int, trained: float = 1.0) -> float:
    """Return the FLOPs of one token's training step; recomputation is not counted.

    The backward pass costs the forward twice: gradients of activations, and of weights, of which those of the fraction
    `trained` of all parameters are needed (adapters, model/lora.py; what they compute themselves is not counted).
    """
    return (4.0 + 2.0 * trained) * _matrices(config) + 3.0 * _attention_flops(config, length)


def _matrices(config: ModelConfig) -> float:
    """Return how many weights a token is multiplied with."""
    matrices = 0.0
    for param in named_leaves(transformer.spec(config)).values():
        if param.kind == "matrix":
            size = math.prod(param.shape)
            # Of a mixture's experts a token visits only some; places that stay empty are not counted.
            matrices += size * config.moe.experts_per_token / config.moe.num_experts if "expert" in param.axes else size
    return matrices + config.vocab_size * config.hidden_size  # the output head, tied or not


def _attention_flops(config: ModelConfig, length: int) -> float:
    keys = sum(min(length, config.window(layer) or length) for layer in range(config.num_layers))
    return 4.0 * config.num_heads * config.head_size * keys
