"""A routing rule or a position scheme of the user's own: what it is called with, and what is checked before a run.

Both are called inside `shard_map` and `vmap`, with one token at a time (and one head): what they make of it cannot depend on
another token, on the batch or on the mesh, and code that knows nothing of any of these works everywhere, in a cache too.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, P
from jax.sharding import AbstractMesh, AxisType

from jaxlm.errors import ConfigError, JaxlmError
from jaxlm.function_file import load, names_function, parse
from jaxlm.layout import MESH_AXES
from jaxlm.model.config import ModelConfig
from jaxlm.module_file import placed
from jaxlm.ops.routing import EXCLUDED


class Rows(NamedTuple):
    """What stands in the rows that a layer reads."""

    tokens: Array  # BL int32
    positions: Array  # BL int32


class Token(NamedTuple):
    """What a rule may know of tokens besides their logits; B and L are 1 but where it sees whole batches."""

    tokens: Array  # BL int32
    positions: Array  # BL int32, within their documents
    layer: Array  # () int32, from 0
    bias: Array  # 11E float32: moved after each step against the loads, by moe.bias_update_rate (arXiv:2408.15664)
    key: Array | None  # a random key, the token's own; None outside of training
    experts_per_token: int


class Scores(NamedTuple):
    """What a router makes of its logits, float32 [B, L, E] each."""

    scores: Array
    """What gates are made of."""
    ranking: Array
    """The greatest of which are chosen; minus infinity where an expert must not be."""
    probabilities: Array
    """Those of the balancing loss."""


class Part(NamedTuple):
    """Whose rotation is asked for."""

    keys: bool
    """Keys, or else queries."""
    head: Array  # () int32: the key-value head, of a query that which it reads


def route(rule: str, logits_BLE: Array, token: Token, *, whole: bool) -> Scores:
    """Return what the rule FILE.py:NAME makes of a router's logits.

    It is called as route(logits [1, 1, E], token) for each token or, `whole`, once for all, [B, L, E]; `token.key` is one key,
    of which each token gets its own. It returns scores, or (scores, ranking), or (scores, ranking, probabilities); a ranking
    not given is the scores, probabilities are the scores over their sum. Experts that an intervention has taken out are never
    chosen. Raises ConfigError where it returns anything else.
    """
    function = load(rule)
    if whole:
        found = _as_scores(function(logits_BLE, token), logits_BLE, rule)
    else:
        found = _each_token(function, logits_BLE, token, rule)
    return found._replace(ranking=jnp.where(logits_BLE > EXCLUDED, found.ranking, -jnp.inf))


def _each_token(function: Callable[..., Any], logits_BLE: Array, token: Token, rule: str) -> Scores:
    spec, whole = jax.typeof(logits_BLE).sharding.spec, P()

    def local(
        logits_BLE: Array, tokens_BL: Array, positions_BL: Array, places_BL: Array, layer: Array, bias: Array, key: Array | None
    ) -> Scores:
        def one(logits_E: Array, token_id: Array, position: Array, place: Array) -> Scores:
            own = None if key is None else jax.random.fold_in(key, place)
            ids = (x.reshape(1, 1) for x in (token_id, position))
            logits = logits_E.reshape(1, 1, -1)
            found = _as_scores(function(logits, Token(*ids, layer, bias, own, token.experts_per_token)), logits, rule)
            return jax.tree.map(lambda x: x[0, 0], found)

        return jax.vmap(jax.vmap(one))(logits_BLE, tokens_BL, positions_BL, places_BL)

    ids = jax.reshard((token.tokens, token.positions), P(*spec[:2]))
    rows, columns = (
        jax.lax.broadcasted_iota(jnp.int32, token.tokens.shape, axis, out_sharding=P(*spec[:2])) for axis in (0, 1)
    )
    by_token = (P(*spec), *(P(*spec[:2]),) * 3)
    return jax.shard_map(local, in_specs=(*by_token, whole, whole, whole), out_specs=P(*spec), check_vma=False)(
        logits_BLE, *ids, rows * token.tokens.shape[1] + columns, jnp.asarray(token.layer, jnp.int32), token.bias, token.key
    )


def _as_scores(found: Any, logits_BLE: Array, rule: str) -> Scores:
    """Return what a rule returned, or raise ConfigError where it is none of what a rule may return."""
    parts = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    if not 1 <= len(parts) <= 3 or not all(_floats_like(x, logits_BLE.shape) for x in parts):
        raise ConfigError(
            f"model.moe.router = {rule!r} returned {_described(found)}: it must return scores, floats of the shape of its "
            f"logits, {list(logits_BLE.shape)}, or (scores, ranking), or (scores, ranking, probabilities)"
        )
    parts = tuple(x.astype(jnp.float32) for x in parts)
    ranking = jax.lax.stop_gradient(parts[min(1, len(parts) - 1)])
    total = jnp.sum(parts[0], axis=-1, keepdims=True)
    return Scores(parts[0], ranking, parts[2] if len(parts) == 3 else parts[0] / (total + 1e-20))


def rotate(scheme: str, x_BLNH: Array, positions_BL: Array, *, keys: bool, groups: int) -> Array:
    """Return queries or keys [B, L, N, H] as the scheme FILE.py:NAME has them at their positions, in the dtype of x.

    It is called as rotate(x [1, 1, 1, H], positions [1, 1], part) for each token and head, before scores are made of queries
    and keys: a key depends on its own position alone, and so can be kept. `groups` heads of these read one key-value head (1
    for keys). Raises ConfigError where it returns another shape, or no floats.
    """
    function, spec = load(scheme), jax.typeof(x_BLNH).sharding.spec

    def local(x_BLNH: Array, positions_BL: Array, heads_N: Array) -> Array:
        def one(x_H: Array, position: Array, head: Array) -> Array:
            found = function(x_H.reshape(1, 1, 1, -1), position.reshape(1, 1), Part(keys, head))
            if not _floats_like(found, (1, 1, 1, *x_H.shape)):
                raise ConfigError(
                    f"model.positions = {scheme!r} returned {_described(found)}: it must return floats of the shape of x, "
                    f"[1, 1, 1, {x_H.size}]"
                )
            return found[0, 0, 0].astype(x_H.dtype)

        over_heads = jax.vmap(one, (0, None, 0))
        return jax.vmap(jax.vmap(over_heads, (0, 0, None)), (0, 0, None))(x_BLNH, positions_BL, heads_N)

    heads_N = jax.lax.broadcasted_iota(jnp.int32, x_BLNH.shape[2:3], 0, out_sharding=P(spec[2])) // groups
    return jax.shard_map(
        local, in_specs=(P(*spec), P(*spec[:2]), P(spec[2])), out_specs=P(*spec), check_vma=False
    )(x_BLNH, jax.reshard(positions_BL, P(*spec[:2])), heads_N)  # fmt: skip


def check(model: ModelConfig) -> None:
    """Call the model's own functions once with abstract arrays: no device is touched.

    Raises ConfigError, with the file and its line, for one that cannot be loaded, fails, or returns what it must not.
    """
    struct, rows, integers = jax.ShapeDtypeStruct, (2, 8), jax.ShapeDtypeStruct((2, 8), jnp.int32)
    if names_function(model.positions):
        x = struct((*rows, 1, model.head_size), jnp.bfloat16 if model.compute_dtype == "bfloat16" else jnp.float32)
        for keys in (False, True):
            turn = functools.partial(rotate, model.positions, keys=keys, groups=1)
            trace(model.positions, "model.positions", turn, x, integers)
    if model.moe.num_experts and names_function(model.moe.router):
        E, rule = model.moe.num_experts, model.moe.router

        def routed(logits: Array, layer: Array, bias: Array, ids: Array, key: Array | None) -> Scores:
            token = Token(ids, ids, layer, bias, key, model.moe.experts_per_token)
            return route(rule, logits, token, whole=model.moe.allow_leaks)

        for key in (None, abstract_key()):
            shapes = struct((*rows, E), jnp.float32), struct((), jnp.int32), struct((1, 1, E), jnp.float32)
            trace(rule, "model.moe.router", routed, *shapes, integers, key)


def one_device() -> AbstractMesh:
    """Return the mesh that `trace` calls on."""
    return AbstractMesh((1,) * len(MESH_AXES), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))


def abstract_key() -> jax.ShapeDtypeStruct:
    """Return the shape of a random key."""
    return jax.eval_shape(lambda: jax.random.key(0))


def trace(value: str, field: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call with a user's function gives, abstractly, on a mesh of one device; every fault is a ConfigError."""
    try:
        with jax.sharding.use_abstract_mesh(one_device()):
            return jax.eval_shape(call, *arguments)
    except JaxlmError:
        raise
    except Exception as fault:
        raise placed(fault, parse(value).file, f"as {field} = {value!r} fails") from fault


def _floats_like(x: Any, shape: tuple[int, ...]) -> bool:
    return getattr(x, "shape", None) == shape and jnp.issubdtype(x.dtype, jnp.floating)


def _described(found: Any) -> str:
    """Return what a function returned, in words."""
    if isinstance(found, (tuple, list)):
        return f"{len(found)} values ({', '.join(map(_described, found))})"
    if hasattr(found, "shape") and hasattr(found, "dtype"):
        return f"{found.dtype}{list(found.shape)}"
    return f"a {type(found).__name__}"
