"""Which rows of a batch a process reads, and what is said of the whole batch by the processes that each read a part."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.data.mixture import combine_hashes, hash_rows
from jaxlm.data.packing import Batch


@functools.lru_cache(maxsize=8)
def local_rows(sharding: jax.sharding.NamedSharding, shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers, in rising order, of the rows that this process's devices hold a piece of.

    `shape` is that of a batch's arrays on the mesh, [B, L] or [accumulate, B / accumulate, L]; rows are numbered in its order.
    """
    numbers = _numbered(shape)
    places = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([numbers[place[:-1]].ravel() for place in places]))


def _numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape[:-1])).reshape(shape[:-1])


def place_rows(rows: np.ndarray, sharding: jax.sharding.NamedSharding, shape: tuple[int, ...]) -> Array:
    """Put an array [rows, L], the rows being this process's `local_rows` of a batch, on the mesh as its part of `shape`."""
    if jax.process_count() == 1:
        return jax.device_put(np.reshape(rows, shape), sharding)
    held, numbers = local_rows(sharding, shape), _numbered(shape)

    def piece(place: tuple[slice, ...]) -> np.ndarray:
        return rows[np.searchsorted(held, numbers[place[:-1]])][..., place[-1]]

    with jax.transfer_guard("allow"):  # a placement asked for, though not by `device_put`
        return jax.make_array_from_callback(shape, sharding, piece)


def describe_rows(batch: Batch, token_bytes: np.ndarray) -> np.ndarray:
    """Return uint32 [rows, 3]: each row's hash (two words) and the bytes of text that its targets stand for."""
    hashes = np.frombuffer(b"".join(hash_rows(batch)), np.uint32).reshape(-1, 2)
    counted = np.sum(token_bytes[batch.targets] * (batch.weights > 0), axis=1)
    return np.concatenate([hashes, counted[:, None].astype(np.uint32)], axis=1)


def summarize_rows(described: np.ndarray) -> dict[str, Any]:
    """Return the content hash of a whole batch and its bytes, from what `describe_rows` says of all its rows in order."""
    described = np.asarray(described).reshape(-1, 3)
    hashes = np.ascontiguousarray(described[:, :2])
    return {"batch_hash": combine_hashes([hashes.tobytes()]), "bytes": int(described[:, 2].sum(dtype=np.int64))}


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
