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
    matrices = 0.0
    for param in named_leaves(transformer.spec(config)).values():
        if param.kind == "matrix":
            size = math.prod(param.shape)
            # Of a mixture's experts a token visits only some; places that stay empty are not counted.
            matrices += size * config.moe.experts_per_token / config.moe.num_experts if "expert" in param.axes else size
    matrices += config.vocab_size * config.hidden_size  # the output head, tied or not
    keys = sum(min(length, config.window(layer) or length) for layer in range(config.num_layers))
    return 2.0 * matrices + 4.0 * config.num_heads * config.head_size * keys


def train_flops_per_token(config: ModelConfig, length: int) -> float:
    """Return the FLOPs of one token's training step: the backward pass costs twice the forward; recomputation not counted."""
    return 3.0 * forward_flops_per_token(config, length)
