"""Rows of an embedding, and where what a lookup moves between devices comes from."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from jaxlm.ops.cross_entropy import mesh_axes


def lookup(table_VD: Array, ids_BL: Array, stream: P, dtype: jnp.dtype) -> Array:
    """Return the rows of a table that ids [B, L] name, [B, L, D] in `dtype`, laid out as `stream` says.

    Where the table is split over its width (FSDP), a device looks up the columns it has for the tokens of all devices it shares
    the table with, and adds up its columns' gradient from all their tokens: the tokens' vectors change places, forth and back,
    and nothing as large as the table moves. Left to itself a compiler may choose that or a sum of whole tables (libtpu 0.0.50).
    """
    width = mesh_axes(jax.typeof(table_VD).sharding.spec[1])
    rows, length, _ = stream
    columns_BLD = table_VD.at[ids_BL].get(out_sharding=P(_less(rows, width), _less(length, width), width or None)).astype(dtype)
    # One dimension takes over from the width at a time: for both at once compilers gather the whole. The length goes first,
    # whose axes are the innermost of the width's.
    columns_BLD = jax.reshard(columns_BLD, P(_less(rows, width), length, _less(width, mesh_axes(length))))
    return jax.reshard(columns_BLD, stream)


def _less(entry: str | tuple[str, ...] | None, others: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return an entry of a PartitionSpec without these mesh axes."""
    return tuple(name for name in mesh_axes(entry) if name not in others) or None
