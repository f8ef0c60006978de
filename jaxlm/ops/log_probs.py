"""Log-probabilities of given tokens, and divergences between models, with one chunk of logits in memory at a time."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, P

from jaxlm.ops.cross_entropy import add_up_head_gradient, gather_width, mesh_axes, num_chunks


class TokenScores(NamedTuple):
    """What a model says of each target, float32 [B, L]."""

    log_probs: Array  # nats
    entropy: Array  # of the distribution that the target is drawn from, nats
    correct: Array  # 1 where no token is likelier


def target_log_probs(x_BLD: Array, head_VD: Array, targets_BL: Array, *, softcap: float = 0.0) -> TokenScores:
    """Return log p(target) of every token, and what else its logits tell.

    Logits are x head^T in float32, capped at +-`softcap` where it is set. They are kept for the backward pass where they fit
    one chunk, and otherwise made there again, chunk by chunk. Rows and their length may be sharded, and the vocabulary over
    another mesh axis. Differentiable in `x_BLD` and `head_VD`, through `log_probs` alone.
    """
    return _scores_alone(_log_probs(x_BLD, head_VD, targets_BL, None, softcap))


def compare(
    x_BLD: Array, head_VD: Array, other_BLD: Array, other_head_VD: Array, targets_BL: Array, *, softcap: float = 0.0
) -> tuple[TokenScores, Array, Array]:
    """Return `target_log_probs` of a model, the log-probabilities that another gives, and KL(model || other), float32 [B, L].

    The divergence is exact, a sum over the vocabulary, in nats. The other model and the divergence have no gradient. Each
    model's logits are made once: this costs less than `target_log_probs` and `token_kl` one after the other.
    """
    other = jax.lax.stop_gradient((other_BLD, other_head_VD))
    found = _log_probs(x_BLD, head_VD, targets_BL, other, softcap)
    return _scores_alone(found), *jax.lax.stop_gradient((found.other_log_probs, found.kl))


def token_kl(x_BLD: Array, head_VD: Array, other_BLD: Array, other_head_VD: Array, *, softcap: float = 0.0) -> Array:
    """Return KL(p || q) of the next-token distributions of two models, [B, L] in nats; it has no gradient."""
    p, q = jax.lax.stop_gradient(((x_BLD, head_VD), (other_BLD, other_head_VD)))
    return _log_probs(*p, jnp.zeros_like(x_BLD[:, :, 0], jnp.int32), q, softcap).kl


class _Found(NamedTuple):
    log_probs: Array
    entropy: Array
    correct: Array
    log_normaliser: Array
    other_log_probs: Array | None
    kl: Array | None


class _Kept(NamedTuple):
    """Of one chunk, for the backward pass: the numerators of all probabilities, tanh of capped logits; [B, L, V]."""

    exponentials: Array
    squashed: Array | None
    total: Array  # the denominator, [B, L]


def _scores_alone(found):
    return TokenScores(found.log_probs, *jax.lax.stop_gradient((found.entropy, found.correct)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _log_probs(x, head, targets, other, softcap):
    return _sharded(x, head, targets, other, softcap, keep=False)[0]


def _forward(x, head, targets, other, softcap):
    found, kept = _sharded(x, head, targets, other, softcap, keep=_chunks(x, head) == 1)
    return found, (x, head, targets, found.log_normaliser, kept)


def _chunks(x, head):
    """Return how many pieces a device makes of its rows' length."""
    sizes = jax.sharding.get_abstract_mesh().shape
    (rows, length, _), vocab = jax.typeof(x).sharding.spec, jax.typeof(head).sharding.spec[0]
    split = [math.prod(sizes[name] for name in mesh_axes(entry)) for entry in (rows, length, vocab)]
    return num_chunks(x.shape[0] // split[0], x.shape[1] // split[1], head.shape[0] // split[2])


def _sharded(x, head, targets, other, softcap, *, keep):
    """Return (found, kept or None), every device having its rows and its slice of the vocabulary."""
    (rows, length, _), (vocab, width) = jax.typeof(x).sharding.spec, jax.typeof(head).sharding.spec
    chunks = _chunks(x, head)
    other_width = None if other is None else jax.typeof(other[1]).sharding.spec[1]

    def local(x, head, targets, other):
        head = gather_width(head, width, x.dtype)
        other_x, other_head = (None, None) if other is None else (other[0], gather_width(other[1], other_width, other[0].dtype))

        def one_chunk(piece):
            x, targets, other_x = piece
            against = None if other_x is None else (other_x, other_head)
            return _chunk(x, head, targets, against, softcap, vocab, keep)

        pieces = _split((x, targets, other_x), chunks)
        if chunks > 1:
            return _joined(jax.lax.map(one_chunk, pieces), x.shape[0])
        return jax.tree.map(lambda a: a.reshape(*x.shape[:2], *a.shape[1:]), one_chunk(jax.tree.map(lambda a: a[0], pieces)))

    tokens, stream = P(rows, length), P(rows, length, None)
    against = None if other is None else tokens
    logits = P(rows, length, vocab)
    kept = _Kept(logits, logits if softcap else None, tokens) if keep else None
    ins = (stream, P(vocab, width), tokens, None if other is None else (stream, P(vocab, other_width)))
    outs = (_Found(tokens, tokens, tokens, tokens, against, against), kept)
    targets = jax.reshard(targets, tokens)
    return jax.shard_map(local, in_specs=ins, out_specs=outs, check_vma=False)(x, head, targets, other)


def _backward(softcap, saved, cotangents):
    x, head, targets, log_normaliser, kept = saved
    (rows, length, _), (vocab, width) = jax.typeof(x).sharding.spec, jax.typeof(head).sharding.spec
    chunks = _chunks(x, head)

    def local(x, head, targets, log_normaliser, kept, towards):
        columns, whole = head.shape[1], gather_width(head, width, x.dtype)

        def one_chunk(head_grad, piece):
            x, targets, log_normaliser, kept, towards = piece
            if kept is None:
                logits, squashed = _logits(x, whole, softcap)
                kept = _Kept(jnp.exp(logits - log_normaliser[:, None]), squashed, jnp.ones_like(log_normaliser))
            x_grad, head_part = _gradients(x, whole, targets, kept, towards, vocab)
            return head_part if head_grad is None else head_grad + head_part, x_grad

        def where_it_counts(head_grad, piece):
            """Make no logits again for a stretch of prompts or padding alone, in which no log-probability was asked for."""
            nothing = head_grad, jnp.zeros(piece[0].shape, jnp.float32)
            return jax.lax.cond(jnp.any(piece[-1] != 0), one_chunk, lambda *_: nothing, head_grad, piece)

        pieces = _split((x, targets, log_normaliser, kept, towards), chunks)
        if chunks == 1:
            head_grad, x_grad = one_chunk(None, jax.tree.map(lambda a: a[0], pieces))
        else:
            head_grad, x_grad = jax.lax.scan(where_it_counts, jnp.zeros(whole.shape, jnp.float32), pieces)
        x_grad = _joined(x_grad, x.shape[0]) if chunks > 1 else x_grad.reshape(x.shape)
        x_grad = jax.lax.psum(x_grad.astype(x.dtype), vocab) if vocab else x_grad.astype(x.dtype)
        head_grad = add_up_head_gradient(head_grad, width, (*mesh_axes(rows), *mesh_axes(length)), columns)
        return x_grad, head_grad.astype(head.dtype)

    tokens, logits = P(rows, length), P(rows, length, vocab)
    kept_specs = None if kept is None else _Kept(logits, None if kept.squashed is None else logits, tokens)
    ins = (P(rows, length, None), P(vocab, width), tokens, tokens, kept_specs, tokens)
    targets, towards = jax.reshard((targets, cotangents.log_probs), tokens)
    run = jax.shard_map(local, in_specs=ins, out_specs=ins[:2], check_vma=False)
    return *run(x, head, targets, log_normaliser, kept, towards), None, None


_log_probs.defvjp(_forward, _backward)


def _split(arrays, chunks):
    """Return [chunks, tokens, ...] of each [B, L, ...]: stretches of all rows."""

    def split(a):
        rest = a.shape[2:]
        return a.reshape(a.shape[0], chunks, -1, *rest).swapaxes(0, 1).reshape(chunks, -1, *rest)

    return jax.tree.map(split, arrays)


def _joined(arrays, rows):
    """Return [B, L, ...] of each [chunks, tokens, ...]."""

    def join(a):
        rest = a.shape[2:]
        return a.reshape(a.shape[0], rows, -1, *rest).swapaxes(0, 1).reshape(rows, -1, *rest)

    return jax.tree.map(join, arrays)


def _logits(x, head, softcap):
    """Return float32 logits [T, V], and tanh of the raw ones where they are capped."""
    raw = jnp.einsum("td,vd->tv", x, head, preferred_element_type=jnp.float32)
    squashed = jnp.tanh(raw / softcap) if softcap else None
    return (softcap * squashed if softcap else raw), squashed


def _is_target(targets, shape, vocab_axis):
    first = jax.lax.axis_index(vocab_axis) * shape[1] if vocab_axis else 0
    return (first + jax.lax.broadcasted_iota(jnp.int32, shape, 1)) == targets[:, None]


def _chunk(x, head, targets, other, softcap, vocab_axis, keep):
    """Return (found, kept or None) of tokens [T]."""

    def over_vocab(*values):
        return jax.lax.psum(values, vocab_axis) if vocab_axis else values

    def normalised(logits):
        top = jnp.max(logits, axis=-1)
        top = jax.lax.pmax(top, vocab_axis) if vocab_axis else top
        return top, jnp.exp(logits - top[:, None])

    def at_target(logits):
        return jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)

    logits, squashed = _logits(x, head, softcap)
    is_target = _is_target(targets, logits.shape, vocab_axis)
    top, exponentials = normalised(logits)
    total, target, expected = over_vocab(exponentials.sum(-1), at_target(logits), (exponentials * logits).sum(-1))
    log_normaliser = top + jnp.log(total)
    other_log_probs = kl = None
    if other is not None:
        others = _logits(*other, softcap)[0]
        other_top, other_exponentials = normalised(others)
        other_total, other_target, apart = over_vocab(
            other_exponentials.sum(-1), at_target(others), (exponentials * (logits - others)).sum(-1)
        )
        other_normaliser = other_top + jnp.log(other_total)
        other_log_probs, kl = other_target - other_normaliser, apart / total - (log_normaliser - other_normaliser)
    correct = (target >= top).astype(jnp.float32)
    found = _Found(target - log_normaliser, log_normaliser - expected / total, correct, log_normaliser, other_log_probs, kl)
    return found, _Kept(exponentials, squashed, total) if keep else None


def _gradients(x, head, targets, kept, towards, vocab_axis):
    """Return the gradients of sum(towards x log p(target)) for x and for the head, float32."""
    is_target = _is_target(targets, kept.exponentials.shape, vocab_axis)
    logit_grad = jnp.where(is_target, towards[:, None], 0.0) - kept.exponentials * (towards / kept.total)[:, None]
    if kept.squashed is not None:
        logit_grad = logit_grad * (1.0 - kept.squashed**2)
    logit_grad = logit_grad.astype(x.dtype)
    x_grad = jnp.einsum("tv,vd->td", logit_grad, head, preferred_element_type=jnp.float32)
    head_grad = jnp.einsum("tv,td->vd", logit_grad, x, preferred_element_type=jnp.float32)
    return x_grad, head_grad
