"""The parameters as decoding reads them: a block for each layer, in the compute dtype, what is read together side by side."""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxlm.layout import Layout
from jaxlm.model import layers, transformer
from jaxlm.model.config import ModelConfig


@struct.dataclass
class Weights:
    """What a decoding step streams through: `params` once more, laid out for it."""

    embed: Array  # VD
    position_embed: Array | None  # (max_length)D
    blocks: tuple[transformer.Block, ...]  # a layer each
    final_norm: layers.Norm
    head: Array  # VD, or DV where it is turned: on a CPU that is read twice as fast
    turned: bool = struct.field(pytree_node=False)


def prepare(params: transformer.Transformer | Weights, config: ModelConfig, layout: Layout) -> Weights:
    """Return parameters made ready for decoding, once for any number of generations; prepared ones are returned as they are.

    They are a copy, in the compute dtype: half as large again as float32 parameters where that is bfloat16, twice where it
    is float32. Nothing is rounded that the forward pass would not round.
    """
    if isinstance(params, Weights):
        return params
    devices = jax.sharding.get_mesh().devices
    alone = devices.size == 1
    return _prepare(params, config, layout, alone, alone and devices.flat[0].platform == "cpu")


@functools.partial(jax.jit, static_argnames=("config", "layout", "join", "turn_head"))
def _prepare(params: transformer.Transformer, config: ModelConfig, layout: Layout, join: bool, turn_head: bool) -> Weights:
    """With `join`, put matrices that read the same input side by side.

    One row times a matrix of 384 x 384 reads memory at 13 GB/s on two cores, times one of 384 x 2304 at 36: only large
    products use both. Split over several devices, heads of one matrix would lie where those of another are.
    """
    dtype, period = jnp.dtype(config.compute_dtype), len(params.blocks)

    def mlp(p: layers.Mlp) -> layers.Mlp:
        up, down = p.up.astype(dtype), p.down.astype(dtype)
        if p.gate is None:
            return p.replace(up=up, down=down)
        gate = p.gate.astype(dtype)
        if not join:
            return p.replace(gate=gate, up=up, down=down)
        return p.replace(gate=None, up=jnp.concatenate([gate, up], axis=1), down=down)

    def attention(p: layers.Attention) -> layers.Attention:
        q, k, v, o = (w.astype(dtype) for w in (p.q, p.k, p.v, p.o))
        if not join:
            return p.replace(q=q, k=k, v=v, o=o)
        q, k, v, o = (jax.reshard(w, jax.P(None, None, None)) for w in (q, k, v, o))
        flat = [w.reshape(w.shape[0], -1) for w in (q, k, v)]
        return p.replace(q=jnp.concatenate(flat, axis=1), k=None, v=None, o=o.reshape(-1, o.shape[-1]))

    def block(layer: int) -> transformer.Block:
        p = jax.tree.map(lambda w: w[layer // period], params.blocks[layer % period])
        p = p.replace(attention=attention(p.attention), mlp=p.mlp and mlp(p.mlp))
        if p.moe is None:
            return p
        experts = jax.tree.map(lambda w: w.astype(dtype), p.moe.experts)
        return p.replace(moe=p.moe.replace(experts=experts, shared=p.moe.shared and mlp(p.moe.shared)))

    head = transformer.head(params).astype(dtype)
    blocks = tuple(block(layer) for layer in range(config.num_layers))
    return Weights(params.embed, params.position_embed, blocks, params.final_norm, head.T if turn_head else head, turn_head)


def next_logits(weights: Weights, x_BLD: Array, config: ModelConfig, layout: Layout) -> Array:
    """Return float32 logits [B, V], the same on all devices, of the final hidden state [B, 1, D] of each row."""
    out = layout.spec("batch", "vocab")
    formula = "bd,dv->bv" if weights.turned else "bd,vd->bv"
    x_BD = layers.norm(weights.final_norm, x_BLD, config)[:, 0]
    logits_BV = jnp.einsum(formula, x_BD, weights.head, preferred_element_type=jnp.float32, out_sharding=out)
    if config.logit_softcap:
        logits_BV = config.logit_softcap * jnp.tanh(logits_BV / config.logit_softcap)
    return jax.reshard(logits_BV, jax.P(None, None))
