"""Keys and values of the past, one pair of arrays a layer, so that decoding a token costs one token.

Tokens take slots in order, the same slot in every row; padding is a slot of segment 0. Layers that see everything have a slot
for every token; those with a sliding window a ring, in which token t lies in slot t modulo its size. Keys are kept rotated,
except where frequencies depend on how long the row is: there they are kept as they are and rotated when read. Under Self-Extend
a key is seen at its own position while it is near and at its group's when it is far: all slots hold it as it is seen far, and a
ring of the window's size holds the last ones as they are seen near. Both are rotated once, for what moves is the query alone.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxlm.layout import Layout
from jaxlm.model.config import ModelConfig
from jaxlm.ops.masks import Tokens

# Rings are this or a multiple of it, so that their rows start at even addresses.
RING_ROUNDING = 8


@struct.dataclass
class Cache:
    """What was seen so far."""

    keys: tuple[Array, ...]  # a layer each, BKSH
    values: tuple[Array, ...]  # a layer each, BKSH
    near: tuple[Array, ...]  # under Self-Extend a layer each, a ring of keys at their true positions; their values are above
    places: dict[str, Tokens]  # by kind of attention, BS int32: what lies in each slot; segment 0: nothing
    used: Array  # () int32: tokens that have taken a slot, padding included


def ring_size(config: ModelConfig, slots: int) -> int:
    """Return the slots of a ring in a cache for `slots` tokens: of a sliding layer or Self-Extend's; all in a model without."""
    window = config.sliding_window or config.self_extend.window_size
    return min(-(-window // RING_ROUNDING) * RING_ROUNDING, slots) if window else slots


def size_of(kind: str, config: ModelConfig, slots: int) -> int:
    """Return the slots of a layer of this kind of attention in a cache for `slots` tokens."""
    return ring_size(config, slots) if kind == "sliding" else slots


def kinds(config: ModelConfig) -> tuple[str, ...]:
    """Return the kinds of attention that the model's layers have."""
    return tuple(sorted({config.attention_kind(layer) for layer in range(config.num_layers)}))


@functools.partial(jax.jit, static_argnames=("config", "layout", "batch", "slots"))
def empty_cache(config: ModelConfig, layout: Layout, batch: int, slots: int) -> Cache:
    """Return a cache for `slots` tokens in `batch` rows, placed as keys and values are."""
    spec, dtype = layout.spec("batch", "kv_heads", None, None), jnp.dtype(config.compute_dtype)

    def arrays(sizes: list[int]) -> tuple[Array, ...]:
        return tuple(jnp.zeros((batch, config.kv_heads, size, config.head_size), dtype, out_sharding=spec) for size in sizes)

    def nothing(size: int) -> Array:
        return jnp.zeros((batch, size), jnp.int32, out_sharding=layout.spec("batch", None))

    sizes = [size_of(config.attention_kind(layer), config, slots) for layer in range(config.num_layers)]
    near = [ring_size(config, slots)] * config.num_layers if config.self_extend.on else []
    places = {}
    for kind in kinds(config):
        size = size_of(kind, config, slots)
        places[kind] = Tokens(nothing(size), nothing(size))
    return Cache(arrays(sizes), arrays(sizes), arrays(near), places, jnp.zeros((), jnp.int32))


def put(slots: Array, new: Array, used: Array, axis: int) -> Array:
    """Return the slots with one token's entry where token `used` belongs: at the end, or round the ring."""
    at = used % slots.shape[axis]
    return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), at, axis)


def put_many(slots: Array, new: Array, used: Array, count: Array | int, axis: int, *, ring: bool) -> Array:
    """Return the slots with the first `count` of several tokens' entries added.

    Entries after those must be padding. In a full cache they lie, of segment 0, where the next tokens go: it needs room for
    them, too. A ring is written anew.
    """
    if not ring:
        return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), used, axis)
    size = slots.shape[axis]
    in_order = jnp.concatenate([_turned(slots, used % size, axis), new.astype(slots.dtype)], axis)
    newest = jax.lax.dynamic_slice_in_dim(in_order, count, size, axis)
    return _turned(newest, (-(used + count)) % size, axis)


def oldest(used: Array, ring: int) -> Array:
    """Return which of `used` tokens is the oldest that a ring of this size holds."""
    return jnp.maximum(used - ring, 0)


def in_order(ring: Array, used: Array, axis: int) -> Array:
    """Return what a ring holds, from its oldest token on; after those that there are, slots that none has taken."""
    return _turned(ring, oldest(used, ring.shape[axis]) % ring.shape[axis], axis)


def _turned(x: Array, by: Array, axis: int) -> Array:
    """Return x with entry `by` (0 to its size - 1) first, and those before it at the end."""
    return jax.lax.dynamic_slice_in_dim(jnp.concatenate([x, x], axis), by, x.shape[axis], axis)


@functools.partial(jax.jit, donate_argnames="cache")
def forget(cache: Cache, used: Array) -> Cache:
    """Return the cache as it was after its first `used` tokens; one with rings has lost what they overwrote."""

    def kept(where: Tokens) -> Tokens:
        slot = jax.lax.broadcasted_iota(jnp.int32, where.segments.shape, 1, out_sharding=jax.typeof(where.segments).sharding)
        return where._replace(segments=jnp.where(slot < used, where.segments, 0))

    return cache.replace(places={kind: kept(where) for kind, where in cache.places.items()}, used=jnp.asarray(used, jnp.int32))


@functools.partial(jax.jit, static_argnames=("config", "slots"))
def enlarge(cache: Cache, config: ModelConfig, slots: int) -> Cache:
    """Return the cache with room for `slots` tokens, more than it was made for."""

    def padded(x: Array, axis: int, size: int) -> Array:
        return jnp.pad(x, [(0, size - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    def layers(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(padded(x, 2, size_of(config.attention_kind(layer), config, slots)) for layer, x in enumerate(arrays))

    places = {
        kind: jax.tree.map(lambda x, size=size_of(kind, config, slots): padded(x, 1, size), where)
        for kind, where in cache.places.items()
    }
    # A ring that grows holds every token so far, each in the slot of its number.
    near = tuple(padded(ring, 2, ring_size(config, slots)) for ring in cache.near)
    return cache.replace(keys=layers(cache.keys), values=layers(cache.values), near=near, places=places)


@jax.jit
def reorder(cache: Cache, rows: Array) -> Cache:
    """Return the cache whose row i is row rows[i] of this one."""

    def chosen(x: Array) -> Array:
        return x.at[rows].get(out_sharding=jax.typeof(x).sharding)

    return cache.replace(**{name: jax.tree.map(chosen, getattr(cache, name)) for name in ("keys", "values", "near", "places")})
