"""The TPU's block-sparse flash kernel (jax.experimental.pallas): memory linear in the length, masked blocks skipped."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, P

from jaxlm.ops.attention_kernels import heads_first, heads_last, rows_first
from jaxlm.ops.masks import MASKED

# Rows and columns of a block of the splash kernel, the first that divides the row: large ones keep the matrix unit busy, and
# the kernel takes no others than multiples of 128.
SPLASH_BLOCKS = (512, 256, 128)
# What the kernel's backward pass needs of its forward pass, for policies of rematerialisation.
SPLASH_RESIDUALS = "splash_residuals"


@functools.partial(jax.tree_util.register_dataclass, data_fields=("kernel",), meta_fields=("mirror",))
@dataclasses.dataclass(frozen=True)
class Prepared:
    """The kernel for some shapes (its masks are arrays), and the mesh axis over which queries are evened out, or None."""

    kernel: Any
    mirror: str | None


def prepare(
    q: Array, k: Array, split: str | None, causal: bool, window: int, beyond: int, softcap: float, normalizer: bool
) -> Prepared | None:
    """Return the kernel for these shapes, or None where it cannot compute them.

    It cuts rows into blocks of 128 at least, and knows places in the row alone, which in one segment differ as positions do.
    With `normalizer` it has no backward pass.
    """
    length, share = q.shape[1], q.shape[2] // k.shape[2]
    parts = jax.sharding.get_abstract_mesh().shape[split] if split else 1
    # Of a causal row the last stretch sees all keys, the first next to none: two halves that mirror one another see as many
    # as any other two. A window sees as many from everywhere.
    halved = parts > 1 and causal and not window and length % (2 * parts * SPLASH_BLOCKS[-1]) == 0
    pieces = 2 * parts if halved else parts
    block = next((size for size in SPLASH_BLOCKS if length % (pieces * size) == 0), None)
    if block is None or (beyond and not causal):
        return None
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    sides = window - 1 if window else None, -beyond if causal else (window or length) - 1
    mask = _band(length, *sides, parts if halved else 1)
    names = ("q", "kv", "kv_compute") + (() if normalizer else ("q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq"))
    kernel = splash_attention_kernel.make_splash_mqa(
        splash_attention_mask.MultiHeadMask([mask] * share), head_shards=1, q_seq_shards=parts,
        attn_logits_soft_cap=softcap or None, save_residuals=normalizer,
        residual_checkpoint_name=None if normalizer else SPLASH_RESIDUALS,
        block_sizes=splash_attention_kernel.BlockSizes(**{f"block_{name}": block for name in names}),
    )  # fmt: skip
    return Prepared(kernel, split if halved else None)


@functools.cache
def _band(length: int, left: int | None, right: int, stretches: int = 1) -> Any:
    """Return the mask in which query i sees keys i - left to i + right (None: all before), as the kernel wants it.

    With several stretches, queries come as `_mirrored` leaves them. The kernel computes masks itself; whoever prepares it
    asks only which blocks have anything to see, and by looking at every pair of a query and a key: a minute for 131,072
    tokens. This mask answers for a block at once, with an array of two. Where the nearest keys are left out it says yes to
    the first block of keys, lest a row of blocks be empty: that would be 0 / 0, and a device that holds no other rows could
    not be prepared for.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    something, nothing = np.array([[True, False]]), np.array([[False, False]])

    class Band(splash_attention_mask.LocalMask):
        def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
            queries, keys = self.q_sequence[block[0]], block[1]
            early = left is not None and keys.stop - 1 < queries[0] - left
            late = keys.start > queries[-1] + right
            filler = right < 0 and keys.start == 0
            return something if filler or not (early or late) else nothing

    band = Band((length, length), (left, right), offset=0)
    if stretches > 1:
        halves = band.q_sequence.reshape(stretches, 2, -1)
        band.q_sequence = np.stack([halves[:, 0], halves[::-1, 1]], axis=1).reshape(-1)
    return band


def _mirrored(x: Array, axis: str) -> Array:
    """Return a device's stretch [B, L, ...] with the second half of the device's that stands as far from the other end.

    Done twice, everything is where it was.
    """
    last = jax.sharding.get_abstract_mesh().shape[axis] - 1
    first, second = jnp.split(x, 2, axis=1)
    return jnp.concatenate([first, jax.lax.ppermute(second, axis, [(i, last - i) for i in range(last + 1)])], axis=1)


def specs(prepared: Prepared, split: str | None) -> Prepared:
    """Return how the masks of a prepared kernel are split: by the queries that they are for."""
    mesh = jax.sharding.get_abstract_mesh()
    return Prepared(prepared.kernel.manual_sharding_spec(jax.NamedSharding(mesh, P(None, split))), prepared.mirror)


def run(
    prepared: Prepared, q: Array, k: Array, v: Array, queries: Array | None, keys: Array | None, scale: float, normalizer: bool
) -> tuple[Array, Array | None]:
    """Return attention [B, L, N, H] and its normaliser [B, L, N] (None unless asked for); segments are [B, L] and [B, S]."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    if prepared.mirror:
        q, queries = jax.tree.map(lambda x: _mirrored(x, prepared.mirror), (q, queries))
    segments = None if queries is None else splash_attention_kernel.SegmentIds(queries, keys)
    q, k, v = heads_first(q * scale, k, v)
    over_groups = jax.vmap(prepared.kernel, in_axes=(0, 0, 0, None))
    found = jax.vmap(over_groups, in_axes=(0, 0, 0, None if segments is None else 0))(q, k, v, segments)
    mixed, (log_normalizer,) = found if normalizer else (found, (None,))
    if log_normalizer is not None:
        log_normalizer = rows_first(jnp.maximum(log_normalizer, MASKED))  # the kernel's own for nothing is lower
    found = heads_last(mixed), log_normalizer
    return jax.tree.map(lambda x: _mirrored(x, prepared.mirror), found) if prepared.mirror else found
