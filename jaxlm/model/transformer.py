"""The transformer decoder: its containers, its spec and its forward pass.

Shape letters, here and everywhere: B batch, L length (S: length of a cache or of keys), D model width, N query heads,
K key-value heads, H head size, F feed-forward width, E experts, C capacity, V vocabulary, T tokens (B x L).
Arrays of rank 3 and more carry them (`x_BLD`); einsum formulas use the same letters in lower case.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn import initializers

from jaxlm.layout import Layout
from jaxlm.model import layers, moe
from jaxlm.model.config import ModelConfig
from jaxlm.model.edit import Edit, unchanged
from jaxlm.model.functions import Rows
from jaxlm.model.moe import Moe, Routed
from jaxlm.model.rope import Rotation, angles, both_ways, slopes
from jaxlm.ops.attention import attention
from jaxlm.ops.embedding import lookup
from jaxlm.ops.masks import Tokens
from jaxlm.ops.positions import sinusoidal
from jaxlm.ops.self_extend import self_extend
from jaxlm.ops.splash import SPLASH_RESIDUALS
from jaxlm.param import Param, tree_map

Remat = Literal["none", "dots", "full"]

# Operations that the backward pass repeats even with remat "none": reading one input anew, fused with its use, instead of
# writing and reading every intermediate result of a norm or an activation function (half the memory at nanoGPT's shapes).
# `reshard` gathers fully sharded weights: kept, every layer's would be whole on every device. Of a kernel (`pallas_call`) only
# what it names is kept: splash gives its normalisers 128 times over, and names one of each.
CHEAP = frozenset(
    "add sub mul div neg max min abs sign exp exp2 log log1p logistic tanh erf erfc sin cos sqrt rsqrt square integer_pow pow "
    "eq ne lt le gt ge and or not is_finite select_n convert_element_type stop_gradient iota broadcast_in_dim reshape "
    "transpose squeeze expand_dims slice concatenate reduce_sum reduce_max reshard pallas_call".split()
)


@struct.dataclass
class Block:
    """One layer: attention and feed-forward sub-layers with their norms; the latter is an `mlp` or a `moe`."""

    attention_norm: layers.Norm | None
    attention: layers.Attention
    attention_post_norm: layers.Norm | None
    mlp_norm: layers.Norm | None
    mlp: layers.Mlp | None
    moe: Moe | None
    mlp_post_norm: layers.Norm | None


@struct.dataclass
class Transformer:
    """A decoder; `blocks` holds one entry for each place in the repeating pattern, its leaves stacked over repeats."""

    embed: Array  # VD
    position_embed: Array | None  # (max_length)D
    blocks: tuple[Block, ...]
    final_norm: layers.Norm
    head: Array | None  # VD


def spec(config: ModelConfig) -> Transformer:
    """Return the model with a `Param` at each leaf: the single source of shapes, placement and initial values."""
    D, V = config.hidden_size, config.vocab_size
    before, after = config.norm_position in ("before", "both"), config.norm_position in ("after", "both")

    def block(place: int) -> Block:
        mixture = config.is_moe(place)
        return Block(
            attention_norm=layers.norm_spec(config, D) if before else None,
            attention=layers.attention_spec(config),
            attention_post_norm=layers.norm_spec(config, D) if after else None,
            mlp_norm=layers.norm_spec(config, D) if before else None,
            mlp=None if mixture else layers.mlp_spec(config),
            moe=moe.spec(config) if mixture else None,
            mlp_post_norm=layers.norm_spec(config, D) if after else None,
        )

    repeats = [len(range(place, config.num_layers, config.period)) for place in range(min(config.period, config.num_layers))]
    table = initializers.normal(config.embedding_init_std)
    positions = Param((config.max_length, D), (None, "embed"), table, "embedding") if config.positions == "learned" else None
    return Transformer(
        embed=Param((V, D), ("vocab", "embed"), table, "embedding"),
        position_embed=positions,
        blocks=tuple(tree_map(lambda p, n=n: p.stacked(n), block(place)) for place, n in enumerate(repeats)),
        final_norm=layers.norm_spec(config, D),
        head=None if config.tie_embeddings else Param((V, D), ("vocab", "embed"), table, "embedding"),
    )


def embed(p: Transformer, tokens_BL: Array, at: Tokens, config: ModelConfig, layout: Layout) -> Array:
    """Return the residual stream at the input of the first layer, [B, L, D] in the compute dtype."""
    stream = layout.spec("batch", "length", None)
    dtype = jnp.dtype(config.compute_dtype)
    x_BLD = lookup(p.embed, tokens_BL, stream, dtype)
    if config.scale_embeddings:
        x_BLD = x_BLD * jnp.asarray(config.hidden_size**0.5, dtype)
    if p.position_embed is not None:
        x_BLD = x_BLD + lookup(p.position_embed, at.positions, stream, dtype)
    if config.positions == "sinusoidal":
        x_BLD = x_BLD + sinusoidal(at.positions, config.hidden_size).astype(dtype)
    return x_BLD


def block(
    p: Block,
    x_BLD: Array,
    attend: Callable[[Array, Array, Array], Array],
    rope: Rotation | None,
    real_BL: Array,
    layer: Array | int,
    config: ModelConfig,
    layout: Layout,
    edit: Edit = unchanged,
    key: Array | None = None,
    decoding: bool = False,
    rows: Rows | None = None,
) -> tuple[Array, Routed | None]:
    """Return the residual stream after one layer, and what its router did where it has one.

    `attend(q, k, v)` mixes tokens: within a row, or with a cache; q and k come rotated by `rope`, or as they are without it.
    With `key`, dropout and all else that belongs to training is on. `rows` is for a routing rule of the user's own.
    """
    keys = (None,) * 3 if key is None else tuple(jax.random.fold_in(key, place) for place in range(3))
    h_BLD = layers.norm(p.attention_norm, x_BLD, config) if p.attention_norm is not None else x_BLD
    qkv = layers.queries_keys_values(p.attention, edit("attn_in", layer, h_BLD), rope, config, layout)
    qkv = (edit(site, layer, x) for site, x in zip("qkv", qkv, strict=True))
    y_BLD = layers.attention_output(p.attention, edit("heads", layer, attend(*qkv)), layout)
    if p.attention_post_norm is not None:
        y_BLD = layers.norm(p.attention_post_norm, y_BLD, config)
    mixed_BLD = x_BLD + dropout(edit("attn_out", layer, y_BLD), keys[0], config.dropout)
    read_BLD = x_BLD if config.parallel_residual else mixed_BLD
    h_BLD = layers.norm(p.mlp_norm, read_BLD, config) if p.mlp_norm is not None else read_BLD
    h_BLD, routed = edit("ffn_in", layer, h_BLD), None
    if p.moe is None:
        y_BLD = layers.mlp(p.mlp, h_BLD, config, layout)
    else:
        y_BLD, routed = moe.moe(
            p.moe, h_BLD, real_BL, layer, config, layout, edit=edit, key=keys[2], decoding=decoding, rows=rows
        )
    if p.mlp_post_norm is not None:
        y_BLD = layers.norm(p.mlp_post_norm, y_BLD, config)
    return edit("resid", layer, mixed_BLD + dropout(edit("ffn_out", layer, y_BLD), keys[1], config.dropout)), routed


def forward(
    p: Transformer,
    tokens_BL: Array,
    at: Tokens,
    config: ModelConfig,
    layout: Layout,
    *,
    edit: Edit = unchanged,
    remat: Remat = "none",
    key: Array | None = None,
) -> tuple[Array, Routed | None]:
    """Return the final, normalised hidden states [B, L, D], and what the routers did, stacked over mixture layers.

    `unembed` makes logits of hidden states. `at` says where each token stands (its segment keeps packed documents apart, 0 is
    padding). `remat` chooses what the backward pass recomputes: next to nothing (`CHEAP`), all but matrix products, or whole
    layers. With `key`, what belongs to training is on: dropout, and in mixtures jitter, noise and the training capacity.
    """
    mixers = {kind: mixer(at, kind, config) for kind in sorted(set(config.attention_pattern))}
    real_BL = at.segments != 0 if at.segments is not None else jnp.ones_like(tokens_BL, dtype=bool)
    x_BLD = edit("embed", 0, embed(p, tokens_BL, at, config, layout))
    if key is not None:
        x_BLD = dropout(x_BLD, jax.random.fold_in(key, config.num_layers), config.dropout)

    def one_layer(x_BLD: Array, weights: Block, layer: Array, place: int) -> tuple[Array, Routed | None]:
        rope, attend = mixers[config.attention_kind(place)]
        layer_key = None if key is None else jax.random.fold_in(key, layer)
        rows = Rows(tokens_BL, at.positions)
        return block(weights, x_BLD, attend, rope, real_BL, layer, config, layout, edit, layer_key, rows=rows)

    x_BLD, routed = scan_layers(p.blocks, x_BLD, one_layer, config, remat)
    return edit("final", 0, layers.norm(p.final_norm, x_BLD, config)), routed


def mixer(at: Tokens, kind: str, config: ModelConfig) -> tuple[Rotation | None, Callable[[Array, Array, Array], Array]]:
    """Return what `block` rotates queries and keys by, and how it mixes the tokens of whole rows, in layers of this kind.

    Under Self-Extend queries and keys come as they are, and are rotated here, near and far.
    """
    settings = {"scale": config.attention_scale, "softcap": config.attention_softcap, "aligned": True,
                "kernel": config.attention_kernel}  # fmt: skip
    ways = both_ways(at, config)
    if ways is None:
        rotations, window = angles(at, config), config.sliding_window if kind == "sliding" else 0
        return rotations and rotations[kind], functools.partial(
            attention, query=at, key=at, causal=config.causal, window=window, slopes=slopes(config), **settings
        )

    def attend(q: Array, k: Array, v: Array) -> Array:
        (q_near, q_far), (k_near, k_far) = ways.queries(q), ways.keys(k)
        window = config.self_extend.window_size
        return self_extend(q_near, k_near, q_far, k_far, v, at, at, window_size=window, **settings)

    return None, attend


def scan_layers(
    blocks: tuple[Block, ...],
    x: Any,
    one_layer: Callable[[Any, Block, Array, int], tuple[Any, Any]],
    config: ModelConfig,
    remat: Remat,
) -> tuple[Any, Any]:
    """Carry x through all layers, scanning over whole repeats of the pattern; layers left over at the end run singly.

    `one_layer(x, weights, layer, place)` computes one; its place in the pattern is known when it is traced. Also return what
    the layers gave besides, stacked in the order of the layers that gave anything; None where none did.
    """
    period = len(blocks)
    whole = config.num_layers // period
    policies = jax.checkpoint_policies
    products = policies.save_from_both_policies(policies.dots_saveable, policies.save_only_these_names(SPLASH_RESIDUALS))
    policy = {"none": _costs_something, "dots": products, "full": policies.nothing_saveable}[remat]
    run = functools.partial(jax.checkpoint, one_layer, policy=policy, static_argnums=(3,))
    # A loop already keeps forward and backward apart; without the barriers that do it elsewhere, more is fused.
    in_loop, alone = run(prevent_cse=False), run(prevent_cse=remat != "none")

    def one_period(x: Any, scanned: tuple[tuple[Block, ...], Array]) -> tuple[Any, list[Any]]:
        weights, first = scanned
        given = []
        for place in range(period):
            x, also = in_loop(x, weights[place], first + place, place)
            given += [also] if also is not None else []
        return x, given

    stacked = jax.tree.map(lambda w: w[:whole], blocks)
    x, given = jax.lax.scan(one_period, x, (stacked, period * jnp.arange(whole)))
    given = [jax.tree.map(_in_order, *given)] if given else []
    for place in range(config.num_layers % period):
        weights = jax.tree.map(lambda w: w[whole], blocks[place])
        x, also = alone(x, weights, jnp.asarray(whole * period + place), place)
        given += [jax.tree.map(lambda g: g[None], also)] if also is not None else []
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *given) if given else None


def _in_order(*places: Array) -> Array:
    """Return [layers, ...] from one array [repeats, ...] for each place of the pattern."""
    together = jnp.stack(places, axis=1)
    spec = jax.typeof(together).sharding.spec
    return jax.lax.reshape(
        together, (together.shape[0] * len(places), *together.shape[2:]), out_sharding=jax.P(None, *spec[2:])
    )


def _costs_something(primitive: Any, *_: Any, **__: Any) -> bool:
    """The policy of remat "none": keep every result but those of CHEAP operations."""
    return primitive.name not in CHEAP


def head(p: Transformer) -> Array:
    """Return the output head [V, D]: its own, or the embedding."""
    return p.embed if p.head is None else p.head


def unembed(p: Transformer, x_BLD: Array, config: ModelConfig, layout: Layout) -> Array:
    """Return float32 logits [B, L, V] of final hidden states, soft-capped where the model is."""
    out = layout.spec("batch", "length", "vocab")
    weights = head(p).astype(x_BLD.dtype)
    logits_BLV = jnp.einsum("bld,vd->blv", x_BLD, weights, preferred_element_type=jnp.float32, out_sharding=out)
    if config.logit_softcap:
        logits_BLV = config.logit_softcap * jnp.tanh(logits_BLV / config.logit_softcap)
    return logits_BLV


def dropout(x: Array, key: Array | None, rate: float) -> Array:
    """Zero each element with probability `rate` and scale up the rest (Srivastava et al. 2014); none without a key."""
    if rate == 0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
