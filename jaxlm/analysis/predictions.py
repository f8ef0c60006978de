"""What a model says of the next token, from hidden states: a stretch of logits in memory at a time."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.analysis.activations import as_partial, placed
from jaxlm.data.packing import Batch
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.edit import Edit, unchanged
from jaxlm.ops.masks import Tokens

LOGITS_AT_ONCE = 1 << 22  # float32: 16 MiB


class Scores(NamedTuple):
    """What a model says of each target, float32 [R, L]."""

    loss: np.ndarray  # nats
    entropy: np.ndarray  # of the distribution that the target is drawn from, nats
    correct: np.ndarray  # 1 where the target is the likeliest token, the first of those that are alike; NaN where none is
    confidence: np.ndarray  # probability of the likeliest token


def score(params: Any, batch: Batch, model: ModelConfig, layout: Layout, edit: Edit = unchanged) -> Scores:
    """Return what a model says of the targets of rows [R, L], whatever their weights; see `activations.as_partial` of edits."""
    return Scores(*map(np.asarray, _scores(params, placed(batch, layout), as_partial(edit), model, layout)))


@functools.partial(jax.jit, static_argnames=("model", "layout"))
def _scores(params: Any, batch: Batch, edit: Any, model: ModelConfig, layout: Layout) -> tuple[Array, ...]:
    at = Tokens(batch.positions, batch.segments)
    x_BLD, _ = transformer.forward(params, batch.tokens, at, model, layout, edit=edit)
    head = jax.reshard(transformer.head(params), jax.P())  # on one device it lies whole as it is

    def one_stretch(piece: tuple[Array, Array]) -> tuple[Array, ...]:
        x_TD, targets_T = piece
        logits_TV = logits_of(x_TD, head, model)
        log_normaliser = jax.nn.logsumexp(logits_TV, axis=-1)
        mean = jnp.sum(jax.nn.softmax(logits_TV, axis=-1) * logits_TV, axis=-1)
        target = jnp.take_along_axis(logits_TV, targets_T[:, None], axis=-1)[:, 0]
        best, right = jnp.max(logits_TV, axis=-1), jnp.argmax(logits_TV, axis=-1) == targets_T
        correct = jnp.where(jnp.isfinite(best), right.astype(jnp.float32), jnp.nan)
        return log_normaliser - target, log_normaliser - mean, correct, jnp.exp(best - log_normaliser)

    found = by_stretches(one_stretch, (x_BLD, batch.targets), model.vocab_size)
    return tuple(x.astype(jnp.float32) for x in found)


def logits_of(x_TD: Array, head_VD: Array, model: ModelConfig) -> Array:
    """Return float32 logits [T, V] of normalised hidden states, soft-capped where the model is; on one device."""
    logits = jnp.einsum("td,vd->tv", x_TD, head_VD.astype(x_TD.dtype), preferred_element_type=jnp.float32)
    return model.logit_softcap * jnp.tanh(logits / model.logit_softcap) if model.logit_softcap else logits


def by_stretches(compute: Any, arrays: Any, vocab_size: int) -> Any:
    """Return compute(pieces) of arrays [B, L, ...] as [B, L, ...], a stretch [T, ...] of all tokens at a time."""
    (batch, length), size = jax.tree.leaves(arrays)[0].shape[:2], max(1, LOGITS_AT_ONCE // vocab_size)
    tokens, size = batch * length, min(size, batch * length)
    count = -(-tokens // size)

    def cut(x: Array) -> Array:
        flat = jax.reshard(x, jax.P()).reshape(tokens, *x.shape[2:])
        flat = jnp.pad(flat, [(0, count * size - tokens), *((0, 0) for _ in x.shape[2:])])
        return flat.reshape(count, size, *x.shape[2:])

    found = jax.lax.map(compute, jax.tree.map(cut, arrays))
    return jax.tree.map(lambda x: x.reshape(count * size, *x.shape[2:])[:tokens].reshape(batch, length, *x.shape[2:]), found)
