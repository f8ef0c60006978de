"""Sparse upcycling: a mixture of experts begun from a trained dense model (arXiv:2212.05055)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm import param
from jaxlm.config import difference
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig


def check_upcycling(dense: ModelConfig, sparse: ModelConfig) -> None:
    """Raise ConfigError unless copies of the dense model's feed-forward layers make the sparse model the same function."""
    others = [name for name, *_ in difference(dense, dataclasses.replace(sparse, moe=dense.moe))]
    if others:
        raise ConfigError(f"the model to begin from differs in model.{others[0]}: only model.moe may be another")
    if dense.moe.num_experts:
        raise ConfigError("the model to begin from has experts already, of another kind: upcycling starts from a dense one")
    moe = sparse.moe
    if moe.expert_size not in (0, sparse.intermediate_size) or moe.shared_experts:
        raise ConfigError(
            "an upcycled expert is a copy of the dense layer: leave model.moe.expert_size and shared_experts at 0"
        )
    whole = moe.renormalize or (moe.router == "softmax" and moe.experts_per_token == moe.num_experts)
    if not whole or moe.gate_scale != 1.0 or moe.router == "expert_choice":
        raise ConfigError(
            "upcycling preserves what the model computes only where a token's gates add up to 1: set --model.moe.renormalize "
            "with 2 or more experts per token, and gate_scale 1"
        )


def upcycle(dense: Any, dense_config: ModelConfig, config: ModelConfig, layout: Layout, key: Array) -> Any:
    """Return the parameters of a mixture of experts whose every expert is the dense layer, its routers freshly drawn.

    The function is the dense model's for as long as no token is dropped: equal experts, gates that add up to 1.
    """
    check_upcycling(dense_config, config)
    spec = transformer.spec(config)
    fresh = param.initialize(spec, key, layout)
    old_period = dense_config.period

    def layer(number: int) -> transformer.Block:
        return jax.tree.map(lambda w: w[number // old_period], dense.blocks[number % old_period])

    blocks = []
    for place, block in enumerate(fresh.blocks):
        layers = [layer(number) for number in range(place, config.num_layers, config.period)]
        old = jax.tree.map(lambda *ws: jnp.stack(ws), *layers)
        if block.moe is not None:
            experts = jax.tree.map(lambda w, like: _copies(w, like), old.mlp, block.moe.experts)
            old = old.replace(mlp=None, moe=block.moe.replace(experts=experts))
        blocks.append(old)
    return dense.replace(blocks=tuple(blocks))


def _copies(w: Array, like: Array) -> Array:
    """Return [layers, E, ...] with a copy of w [layers, ...] for every expert, placed as `like` is."""
    spread = jnp.broadcast_to(jnp.expand_dims(w, 1), like.shape)
    return jax.reshard(spread, jax.typeof(like).sharding.spec)
