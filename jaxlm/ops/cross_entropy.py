"""Cross-entropy of next tokens from hidden states, without the logits of all tokens ever being in memory at once."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, P

# Logits alive at a time, per device: 2**24 float32 values are 64 MiB. Small vocabularies take one chunk.
CHUNK_LOGITS = 2**24


class Losses(NamedTuple):
    """Weighted sums over tokens, float32 scalars: cross-entropy in nats, squared log-normaliser (z), correct predictions."""

    cross_entropy: Array
    z: Array
    correct: Array


def cross_entropy(
    x_BLD: Array, head_VD: Array, targets_BL: Array, weights_BL: Array, *, softcap: float = 0.0, z_loss: float = 0.0
) -> tuple[Array, Losses]:
    """Return sum over tokens of weight x (-log p(target) + z_loss x log(Z)^2), and its parts.

    Logits are x head^T in float32, capped at +-`softcap` where it is set. Gradients are computed in the forward pass, chunk
    by chunk while the logits are at hand, so that the memory is one chunk's. Rows and their length may be sharded, and
    the vocabulary over another mesh axis: normaliser and target logit are then reduced over the vocabulary's axis.
    The z-loss (PaLM, arXiv:2204.02311) keeps the normaliser near 1. Differentiable in `x_BLD` and `head_VD`.
    """
    loss, losses = _cross_entropy(x_BLD, head_VD, targets_BL, weights_BL, softcap, z_loss)
    return loss, jax.lax.stop_gradient(losses)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(x, head, targets, weights, softcap, z_loss):
    losses = _sharded(x, head, targets, weights, softcap, z_loss, gradients=False)
    return losses.cross_entropy + z_loss * losses.z, losses


def _forward(x, head, targets, weights, softcap, z_loss):
    losses, x_grad, head_grad = _sharded(x, head, targets, weights, softcap, z_loss, gradients=True)
    return (losses.cross_entropy + z_loss * losses.z, losses), (x_grad, head_grad)


def _backward(softcap, z_loss, kept, cotangents):
    x_grad, head_grad = kept
    scale = cotangents[0]
    return (x_grad * scale).astype(x_grad.dtype), (head_grad * scale).astype(head_grad.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def _sharded(x, head, targets, weights, softcap, z_loss, *, gradients):
    """Run `_local` on every device's rows and slice of the vocabulary, and add up what they hold in common."""
    (rows, length, _), (vocab, width) = jax.typeof(x).sharding.spec, jax.typeof(head).sharding.spec
    tokens = (*mesh_axes(rows), *mesh_axes(length))
    targets, weights = jax.reshard((targets, weights), P(rows, length))

    def local(x, head, targets, weights):
        whole = gather_width(head, width, x.dtype)
        losses, x_grad, head_grad = _local(x, whole, targets, weights, softcap, z_loss, vocab, gradients)
        losses = jax.tree.map(lambda s: jax.lax.psum(s, tokens), losses)
        if not gradients:
            return losses
        if vocab:
            x_grad = jax.lax.psum(x_grad.astype(x.dtype), vocab)
        head_grad = add_up_head_gradient(head_grad, width, tokens, head.shape[1])
        return losses, x_grad.astype(x.dtype), head_grad.astype(head.dtype)

    sums = Losses(P(), P(), P())
    row_specs = (P(rows, length, None), P(vocab, width), P(rows, length), P(rows, length))
    outs = (sums, row_specs[0], row_specs[1]) if gradients else sums
    return jax.shard_map(local, in_specs=row_specs, out_specs=outs, check_vma=False)(x, head, targets, weights)


def mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the mesh axes of an entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else entry or ()


def gather_width(head: Array, width: str | tuple[str, ...] | None, dtype: jnp.dtype) -> Array:
    """Within `shard_map`, return a device's rows of the head in the dtype of products, whole where `width` splits them."""
    head = head.astype(dtype)  # before it is gathered: half the bytes in bfloat16
    return jax.lax.all_gather(head, mesh_axes(width), axis=1, tiled=True) if mesh_axes(width) else head


def add_up_head_gradient(gradient: Array, width: str | tuple[str, ...] | None, tokens: tuple[str, ...], columns: int) -> Array:
    """Within `shard_map`, add up a head gradient over the mesh axes of tokens, and return this device's columns of it."""
    gathered = mesh_axes(width)
    if set(gathered) <= set(tokens):  # the columns first, so that less is left to add up over the other axes
        if gathered:
            gradient = jax.lax.psum_scatter(gradient, gathered, scatter_dimension=1, tiled=True)
        return jax.lax.psum(gradient, tuple(name for name in tokens if name not in gathered))
    gradient = jax.lax.psum(gradient, tokens)  # whole on every device: keep this device's columns
    return jax.lax.dynamic_slice_in_dim(gradient, jax.lax.axis_index(gathered) * columns, columns, 1)


def _local(x, head, targets, weights, softcap, z_loss, vocab_axis, gradients):
    """Return (Losses, x gradient or None, head gradient or None) of this device's rows and vocabulary rows."""
    batch, length, width = x.shape
    chunks = num_chunks(batch, length, head.shape[0])
    x = x.reshape(batch, chunks, -1, width).swapaxes(0, 1).reshape(chunks, -1, width)
    targets, weights = (a.reshape(batch, chunks, -1).swapaxes(0, 1).reshape(chunks, -1) for a in (targets, weights))

    def one_chunk(head_grad, chunk):
        sums, x_grad, head_part = _chunk(*chunk, head, softcap, z_loss, vocab_axis, gradients)
        return (head_grad + head_part if gradients else head_grad), (sums, x_grad)

    if chunks == 1:
        losses, x_grad, head_grad = _chunk(x[0], targets[0], weights[0], head, softcap, z_loss, vocab_axis, gradients)
    else:
        start = jnp.zeros(head.shape, jnp.float32) if gradients else None
        head_grad, (losses, x_grad) = jax.lax.scan(one_chunk, start, (x, targets, weights))
        losses = jax.tree.map(lambda s: s.sum(), losses)
    if not gradients:
        return losses, None, None
    x_grad = x_grad.reshape(chunks, batch, -1, width).swapaxes(0, 1).reshape(batch, length, width)
    return losses, x_grad, head_grad


def num_chunks(batch: int, length: int, vocab: int) -> int:
    """Return the fewest pieces of the length that keep a chunk's logits within CHUNK_LOGITS and 512 tokens or more."""
    wanted = math.ceil(batch * length * vocab / CHUNK_LOGITS)
    wanted = min(wanted, max(1, batch * length // 512))
    return next(n for n in range(wanted, length + 1) if length % n == 0) if wanted <= length else length


def _chunk(x, targets, weights, head, softcap, z_loss, vocab_axis, gradients):
    raw = jnp.einsum("td,vd->tv", x, head, preferred_element_type=jnp.float32)
    squashed = jnp.tanh(raw / softcap) if softcap else None
    logits = softcap * squashed if softcap else raw
    first = jax.lax.axis_index(vocab_axis) * head.shape[0] if vocab_axis else 0
    is_target = (first + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)) == targets[:, None]

    def over_vocab(reduce, values):
        return reduce(values, vocab_axis) if vocab_axis else values

    top = over_vocab(jax.lax.pmax, jnp.max(logits, axis=-1))
    exponentials = jnp.exp(logits - top[:, None])
    total = over_vocab(jax.lax.psum, jnp.sum(exponentials, axis=-1))
    target_logit = over_vocab(jax.lax.psum, jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1))
    log_normaliser = top + jnp.log(total)
    losses = Losses(
        jnp.sum(weights * (log_normaliser - target_logit)),
        jnp.sum(weights * log_normaliser**2),
        jnp.sum(weights * (target_logit >= top)),
    )
    if not gradients:
        return losses, None, None
    towards_all = weights * (1.0 + 2.0 * z_loss * log_normaliser) / total
    logit_grad = exponentials * towards_all[:, None] - jnp.where(is_target, weights[:, None], 0.0)
    if softcap:
        logit_grad = logit_grad * (1.0 - squashed**2)
    logit_grad = logit_grad.astype(x.dtype)
    x_grad = jnp.einsum("tv,vd->td", logit_grad, head, preferred_element_type=jnp.float32)
    head_grad = jnp.einsum("tv,td->vd", logit_grad, x, preferred_element_type=jnp.float32)
    return losses, x_grad, head_grad
