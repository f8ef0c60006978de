"""The parts of a block: containers that hold weights, functions that compute with them.

Shape letters are explained once, at the top of model/transformer.py.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn import initializers

from jaxlm.layout import Layout, ways
from jaxlm.model.config import ModelConfig
from jaxlm.model.lora import Adapted
from jaxlm.model.rope import Rotation, rotated
from jaxlm.ops.products import tall_gradient
from jaxlm.param import Param


@struct.dataclass
class Norm:
    """RMSNorm or LayerNorm over the last axis."""

    scale: Array  # D
    bias: Array | None  # D


@struct.dataclass
class Attention:
    """Multi-head attention's projections. Each of q, k, v and o may be `Adapted`, and those of `Mlp`.

    `decode.weights` puts q, k and v side by side in `q`, D((N + 2K)H), with no k and v, and flattens o to (NH)D.
    """

    q: Array  # DNH
    k: Array | None  # DKH
    v: Array | None  # DKH
    o: Array  # NHD
    q_bias: Array | None  # NH
    k_bias: Array | None  # KH
    v_bias: Array | None  # KH
    o_bias: Array | None  # D
    q_norm: Norm | None  # H, or NH over all heads
    k_norm: Norm | None  # H, or KH over all heads


@struct.dataclass
class Mlp:
    """A feed-forward sub-layer, gated or not; `decode.weights` puts gate and up side by side in `up`, D(2F), with no gate."""

    gate: Array | None  # DF
    up: Array  # DF
    down: Array  # FD
    gate_bias: Array | None  # F
    up_bias: Array | None  # F
    down_bias: Array | None  # D


def norm_spec(config: ModelConfig, *shape: int, axes: tuple[str | None, ...] | None = None) -> Norm:
    """Return the spec of a norm over `shape`."""
    axes = axes or (None,) * len(shape)
    start = initializers.zeros if config.norm_plus_one else initializers.ones
    bias = Param(shape, axes, initializers.zeros, "vector") if config.norm == "layer" and config.norm_bias else None
    return Norm(Param(shape, axes, start, "vector"), bias)


def attention_spec(config: ModelConfig) -> Attention:
    """Return the spec of one attention sub-layer."""
    D, N, K, H = config.hidden_size, config.num_heads, config.kv_heads, config.head_size
    q_axes, kv_axes = ("embed", "heads", None), ("embed", "kv_heads", None)

    def bias(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Param | None:
        return Param(shape, axes, initializers.zeros, "vector") if name in config.biases else None

    norms: dict[str, Norm | None] = {"q_norm": None, "k_norm": None}
    if config.qk_norm == "head":
        norms = {"q_norm": norm_spec(config, H), "k_norm": norm_spec(config, H)}
    elif config.qk_norm == "all":
        norms = {
            "q_norm": norm_spec(config, N, H, axes=("heads", None)),
            "k_norm": norm_spec(config, K, H, axes=("kv_heads", None)),
        }
    return Attention(
        q=Param((D, N, H), q_axes, matrix_init(config, D)),
        k=Param((D, K, H), kv_axes, matrix_init(config, D)),
        v=Param((D, K, H), kv_axes, matrix_init(config, D)),
        o=Param((N, H, D), ("heads", None, "embed"), matrix_init(config, N * H, residual=True), inputs=2),
        q_bias=bias("q", (N, H), q_axes[1:]),
        k_bias=bias("k", (K, H), kv_axes[1:]),
        v_bias=bias("v", (K, H), kv_axes[1:]),
        o_bias=bias("o", (D,), (None,)),
        **norms,
    )


def mlp_spec(config: ModelConfig, width: int = 0) -> Mlp:
    """Return the spec of one feed-forward sub-layer, of hidden width `width` where it is not the model's."""
    D, F = config.hidden_size, width or config.intermediate_size

    def bias(name: str, size: int, axis: str | None) -> Param | None:
        return Param((size,), (axis,), initializers.zeros, "vector") if name in config.biases else None

    inward = Param((D, F), ("embed", "ffn"), matrix_init(config, D))
    return Mlp(
        gate=inward if config.gated else None,
        up=inward,
        down=Param((F, D), ("ffn", "embed"), matrix_init(config, F, residual=True)),
        gate_bias=bias("gate", F, "ffn"),
        up_bias=bias("up", F, "ffn"),
        down_bias=bias("down", D, None),
    )


def matrix_init(config: ModelConfig, fan_in: int, *, residual: bool = False):
    """Return the initializer of a matrix; outputs onto the residual stream start smaller, by depth (GPT-2)."""
    std = config.init_std or (config.init_scale / fan_in) ** 0.5
    return initializers.normal(std / math.sqrt(2 * config.num_layers) if residual else std)


def norm(p: Norm, x: Array, config: ModelConfig, *, axes: int = 1) -> Array:
    """Normalise over the last `axes` dimensions, statistics in float32 (arXiv:1910.07467, arXiv:1607.06450)."""
    over = tuple(range(-axes, 0))
    y = x.astype(jnp.float32)
    if config.norm == "layer":
        y = y - jnp.mean(y, axis=over, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=over, keepdims=True) + config.norm_epsilon)
    scale = p.scale + 1.0 if config.norm_plus_one else p.scale
    y = y * _like(scale, y)
    if p.bias is not None:
        y = y + _like(p.bias, y)
    return y.astype(x.dtype)


def queries_keys_values(
    p: Attention, x_BLD: Array, rope: Rotation | None, config: ModelConfig, layout: Layout
) -> tuple[Array, Array, Array]:
    """Project, normalise and rotate: q [B, L, N, H], k and v [B, L, K, H]."""
    N, K = config.num_heads, config.kv_heads
    if p.k is None:
        heads = _flat_product(x_BLD, p.q, (N + 2 * K, config.head_size), layout.spec("batch", "length", None, None))
        q_BLNH, k_BLKH, v_BLKH = (
            _biased(jax.reshard(part, layout.spec("batch", "length", axis, None)), bias)
            for part, axis, bias in zip(
                jnp.split(heads, (N, N + K), axis=2),
                ("heads", "kv_heads", "kv_heads"),
                (p.q_bias, p.k_bias, p.v_bias),
                strict=True,
            )
        )
    else:
        q_BLNH = _project(x_BLD, p.q, p.q_bias, layout.spec("batch", "length", "heads", None))
        k_BLKH = _project(x_BLD, p.k, p.k_bias, layout.spec("batch", "length", "kv_heads", None))
        v_BLKH = _project(x_BLD, p.v, p.v_bias, layout.spec("batch", "length", "kv_heads", None))
    if p.q_norm is not None:
        axes = 2 if config.qk_norm == "all" else 1
        q_BLNH = norm(p.q_norm, q_BLNH, config, axes=axes)
        k_BLKH = norm(p.k_norm, k_BLKH, config, axes=axes)
    if rope is not None:
        q_BLNH, k_BLKH = rotated(q_BLNH, k_BLKH, rope)
    return q_BLNH, k_BLKH, v_BLKH


def attention_output(p: Attention, y_BLNH: Array, layout: Layout) -> Array:
    """Project the heads' outputs back to the residual width; over the model axis this is where partial sums meet."""
    stream = layout.spec("batch", "length", None)
    if p.o.ndim == 2:
        return _biased(_flat_product(y_BLNH, p.o, p.o.shape[1:], stream), p.o_bias)
    return _biased(flat_einsum("tnh,nhd->td", y_BLNH, p.o, stream), p.o_bias)


def mlp(p: Mlp, x_BLD: Array, config: ModelConfig, layout: Layout) -> Array:
    """Apply the feed-forward sub-layer (gated: Shazeer 2020, arXiv:2002.05202)."""
    hidden = layout.spec("batch", "length", "ffn")
    if config.gated and p.gate is None:
        gate_BLF, up_BLF = jnp.split(_flat_product(x_BLD, p.up, p.up.shape[1:], hidden), 2, axis=2)
        gate_BLF, up_BLF = _biased(gate_BLF, p.gate_bias), _biased(up_BLF, p.up_bias)
    else:
        up_BLF = _project(x_BLD, p.up, p.up_bias, hidden)
        gate_BLF = _project(x_BLD, p.gate, p.gate_bias, hidden) if p.gate is not None else None
    h_BLF = activate(config.activation, up_BLF, gate_BLF)
    y_BLD = flat_einsum("tf,fd->td", h_BLF, p.down, layout.spec("batch", "length", None))
    return _biased(y_BLD, p.down_bias)


@functools.cache
def activation(name: str) -> Callable[[Array, Array | None], Array]:
    """Return `activate` for one name: the same function each time, as what is compiled with it is kept by identity."""
    return functools.partial(activate, name)


def activate(name: str, up: Array, gate: Array | None) -> Array:
    """Return the feed-forward non-linearity of the projected input."""
    if name == "swiglu":
        return jax.nn.silu(gate) * up
    if name == "geglu":
        return jax.nn.gelu(gate, approximate=True) * up
    if name == "geglu_exact":
        return _gelu(gate) * up
    if name == "reglu":
        return jax.nn.relu(gate) * up
    if name == "silu":
        return jax.nn.silu(up)
    if name == "relu":
        return jax.nn.relu(up)
    if name == "relu2":
        return jnp.square(jax.nn.relu(up))
    if name == "gelu_tanh":
        return jax.nn.gelu(up, approximate=True)
    return _gelu(up)


def _gelu(x: Array) -> Array:
    # Written with erf: the erfc of jax.nn.gelu takes a tenth more temporary memory on a CPU. Float32, for the left tail's sake.
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def flat_einsum(formula: str, x: Array, w: Array | Adapted, out: jax.P, precision: jax.lax.Precision | None = None) -> Array:
    """Return the product of x [B, L, ...] with a weight, computed over [B L, ...], with the sharding `out`.

    `formula` names one token dimension t for both: a product of flat matrices, forwards and backwards, needs no
    transposed copies (1.25 times faster on a CPU, indifferent elsewhere). Rows that are split along their length stay as
    they are: laid end to end they would have to move.
    """
    if isinstance(w, Adapted):
        return _adapted_product(formula, x, w, out, precision)
    batch, length = x.shape[:2]
    spec = jax.typeof(x).sharding.spec
    if ways(spec[1], jax.sharding.get_abstract_mesh().shape) > 1:
        return jnp.einsum(formula.replace("t", "bl"), x, w.astype(x.dtype), out_sharding=out, precision=precision)
    flat = jax.lax.reshape(x, (batch * length, *x.shape[2:]), out_sharding=jax.P(spec[0], *spec[2:]))
    matrix = tall_gradient(w.astype(x.dtype))
    y = jnp.einsum(formula, flat, matrix, out_sharding=jax.P(out[0], *out[2:]), precision=precision)
    return jax.lax.reshape(y, (batch, length, *y.shape[1:]), out_sharding=out)


def _adapted_product(formula: str, x: Array, w: Adapted, out: jax.P, precision: jax.lax.Precision | None) -> Array:
    """Return x weight + scale (x down) up; where inputs are split, what the devices add up is no wider than the rank."""
    read, matrix = formula.partition("->")[0].split(",")
    inputs = "".join(letter for letter in matrix if letter in read)
    outputs = matrix.removeprefix(inputs)
    inner = flat_einsum(f"{read},{inputs}r->tr", x, w.down, jax.P(out[0], out[1], None), precision)
    update = flat_einsum(f"tr,r{outputs}->t{outputs}", inner, w.up, out, precision)
    # Frozen: without this its gradient is computed wherever the caller differentiates the whole tree.
    return flat_einsum(formula, x, jax.lax.stop_gradient(w.weight), out, precision) + w.scale * update


def _flat_product(x: Array, w: Array, outer: tuple[int, ...], out: jax.P) -> Array:
    """Return [B, L, *outer], the product of x [B, L, ...] with a plain matrix: what `decode.weights` makes of some weights."""
    batch, length = x.shape[:2]
    flat = jax.lax.reshape(x, (batch * length, w.shape[0]), out_sharding=jax.P(None, None))
    return jax.lax.reshape(flat @ w, (batch, length, *outer), out_sharding=out)


def _project(x_BLD: Array, w: Array | Adapted, bias: Array | None, out: jax.P) -> Array:
    y = flat_einsum("td,dnh->tnh" if w.ndim == 3 else "td,df->tf", x_BLD, w, out)
    return _biased(y, bias)


def _biased(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + _like(bias.astype(y.dtype), y)


def _like(vector: Array, x: Array) -> Array:
    """Give a vector leading dimensions of one, so that its broadcast against x is explicit."""
    return vector.reshape((1,) * (x.ndim - vector.ndim) + vector.shape)
