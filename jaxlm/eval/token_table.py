"""What a model says of every token: log-probability, rank, entropy, the likeliest alternatives, and the experts it visits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.data.packing import Batch
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.ops.cross_entropy import CHUNK_LOGITS
from jaxlm.ops.log_probs import target_log_probs
from jaxlm.ops.masks import Tokens

# Tokens read at a time: rows of a batch are as many as come near it.
TOKENS_AT_ONCE = 4096


class TokenTable(NamedTuple):
    """Arrays [R, L, ...] about the targets of rows; what stands where a target has weight 0 means nothing."""

    log_probs: Any
    """Of each target, float32, nats."""
    entropy: Any
    """Of the distribution that each target is drawn from, float32, nats."""
    ranks: Any
    """One more than the number of tokens that are likelier than the target, int32; 0 where that has no probability."""
    top_ids: Any
    """The likeliest tokens in falling order, int32 [R, L, top]."""
    top_log_probs: Any
    """Theirs, float32 [R, L, top], nats."""
    experts: Any
    """Which experts each token that is read (not its target) visits, int32 [mixture layers, R, L, K]; the number of experts
    stands for none. None unless asked for."""


def token_table(
    params: Any,
    rows: Batch,
    model: ModelConfig,
    layout: Layout,
    *,
    top: int = 5,
    experts: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> TokenTable:
    """Return what a model says of the targets of packed rows [R, L], as NumPy arrays.

    Documents of a row do not see one another. Logits are never in memory all together. `report` is told of how many rows were
    read. `experts` is for mixtures alone.
    """
    count, length = rows.tokens.shape
    size = min(count, max(1, TOKENS_AT_ONCE // length))
    place = jax.NamedSharding(jax.sharding.get_mesh(), layout.spec("batch", "length"))
    parts = []
    for start in range(0, count, size):
        # The last batch is filled up, so that one shape is compiled.
        part = jax.tree.map(lambda a: a[np.arange(start, start + size) % count], rows)  # noqa: B023
        found = _read(params, jax.device_put(part, place), model, layout, min(top, model.vocab_size))
        kept = min(size, count - start)
        parts.append(
            TokenTable(
                *(np.asarray(a)[:kept] for a in found[:-1]), None if not experts else np.asarray(found.experts)[:, :kept]
            )
        )
        report(kept)
    joined = (np.concatenate(arrays) for arrays in zip(*(part[:-1] for part in parts), strict=True))
    return TokenTable(*joined, np.concatenate([part.experts for part in parts], axis=1) if experts else None)


@functools.partial(jax.jit, static_argnames=("model", "layout", "top"))
def _read(params: Any, rows: Batch, model: ModelConfig, layout: Layout, top: int) -> TokenTable:
    at = Tokens(rows.positions, rows.segments)
    x_BLD, routed = transformer.forward(params, rows.tokens, at, model, layout)
    head_VD = transformer.head(params)
    scores = target_log_probs(x_BLD, head_VD, rows.targets, softcap=model.logit_softcap)
    ranked = _ranked(x_BLD, head_VD, rows.targets, model.logit_softcap, top)
    return TokenTable(scores.log_probs, scores.entropy, *ranked, routed.decisions.experts if routed else None)


def _ranked(x_BLD: Array, head_VD: Array, targets_BL: Array, softcap: float, top: int) -> tuple[Array, Array, Array]:
    """Return ranks [B, L], and ids and log-probabilities of the likeliest tokens [B, L, top], a stretch of tokens at a time."""
    x_BLD, head_VD, targets_BL = (jax.reshard(a, jax.P(*(None,) * a.ndim)) for a in (x_BLD, head_VD, targets_BL))
    head_VD = head_VD.astype(x_BLD.dtype)

    def one(token: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        x, target = token
        logits = jnp.einsum("d,vd->v", x, head_VD, preferred_element_type=jnp.float32)
        logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
        best, ids = jax.lax.top_k(logits, top)
        total = jax.nn.logsumexp(logits)
        # A target that shares its probability with others has the best of their ranks.
        rank = 1 + jnp.sum(logits > logits[target], dtype=jnp.int32)
        return jnp.where(jnp.isfinite(logits[target] - total), rank, 0), ids, best - total

    tokens = x_BLD.reshape(-1, x_BLD.shape[-1]), targets_BL.reshape(-1)
    at_once = max(1, min(len(tokens[1]), CHUNK_LOGITS // head_VD.shape[0]))
    found = jax.lax.map(one, tokens, batch_size=at_once)
    return tuple(a.reshape(*targets_BL.shape, *a.shape[1:]) for a in found)
