"""Which rows of a batch a process reads, and what is said of the whole batch by the processes that each read a part."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.data.mixture import combine_hashes, hash_rows
from jaxlm.data.packing import Batch
from jaxlm.data.pairs import PairBatch


@functools.lru_cache(maxsize=8)
def local_rows(sharding: jax.sharding.NamedSharding, shape: tuple[int, ...], row_dims: int) -> np.ndarray:
    """Return the numbers, in rising order, of the rows that this process's devices hold a piece of.

    The first `row_dims` dimensions of `shape`, that of an array on the mesh, count rows: [B, ...] or, for accumulation,
    [accumulate, B / accumulate, ...]; they are numbered in this order.
    """
    numbers = _numbered(shape[:row_dims])
    places = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([numbers[place[:row_dims]].ravel() for place in places]))


def _numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape)


def place_rows(rows: np.ndarray, sharding: jax.sharding.NamedSharding, shape: tuple[int, ...]) -> Array:
    """Put an array [rows, ...], the rows being this process's `local_rows` of a batch, on the mesh as its part of `shape`."""
    if jax.process_count() == 1:
        return jax.device_put(np.reshape(rows, shape), sharding)
    row_dims = len(shape) - rows.ndim + 1
    held, numbers = local_rows(sharding, shape, row_dims), _numbered(shape[:row_dims])

    def piece(place: tuple[slice, ...]) -> np.ndarray:
        return rows[np.searchsorted(held, numbers[place[:row_dims]])][(..., *place[row_dims:])]

    with jax.transfer_guard("allow"):  # a placement asked for, though not by `device_put`
        return jax.make_array_from_callback(shape, sharding, piece)


def describe_rows(batch: Batch | PairBatch, token_bytes: np.ndarray) -> np.ndarray:
    """Return uint32 [rows, 4]: each row's hash (two words), the bytes of text that its targets stand for, its real tokens."""
    hashes = np.frombuffer(b"".join(hash_rows(batch)), np.uint32).reshape(-1, 2)
    counted = np.sum(token_bytes[batch.targets] * (batch.weights > 0), axis=1)
    real = np.sum(batch.segments != 0, axis=1)
    return np.concatenate([hashes, np.stack([counted, real], axis=1).astype(np.uint32)], axis=1)


def summarize_rows(described: np.ndarray) -> dict[str, Any]:
    """Return a whole batch's content hash, bytes and real tokens, from what `describe_rows` says of all its rows in order."""
    described = np.asarray(described).reshape(-1, 4)
    hashes = np.ascontiguousarray(described[:, :2])
    sizes = described[:, 2:].sum(axis=0, dtype=np.int64)
    return {"batch_hash": combine_hashes([hashes.tobytes()]), "bytes": int(sizes[0]), "real_tokens": int(sizes[1])}


def everywhere(tree: Any) -> Any:
    """Return arrays whole on every device, so that every process can read them; to be called within `jit`."""
    return jax.tree.map(lambda x: jax.reshard(x, jax.P()), tree)


def place_flag(raised: bool, mesh: jax.sharding.Mesh) -> Array:
    """Return int32 [devices]: 1 on this process's where `raised`."""
    sharding = jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))
    with jax.transfer_guard("allow"):
        return jax.make_array_from_callback((mesh.size,), sharding, lambda place: np.full(1, raised, np.int32))


def any_flag(flags: Array) -> Array:
    """Return whether any process raised its flag; to be called within `jit`."""
    return jnp.max(everywhere(flags))
