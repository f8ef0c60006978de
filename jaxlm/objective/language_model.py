"""Next-token prediction."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.ops.attention import Tokens
from jaxlm.ops.cross_entropy import cross_entropy


class Sums(NamedTuple):
    """Sums over a batch's predicted tokens (float32 scalars): they add up over microbatches, batches and processes."""

    tokens: Array
    cross_entropy: Array
    z: Array
    correct: Array


def loss(
    params: transformer.Transformer,
    batch: Any,
    config: ModelConfig,
    layout: Layout,
    *,
    z_loss: float = 0.0,
    remat: transformer.Remat = "none",
    dropout_key: Array | None = None,
    edit: transformer.Edit = transformer.unchanged,
) -> tuple[Array, Sums]:
    """Return the summed loss of a batch, to be divided by `Sums.tokens` of the whole step, and its parts.

    `batch` has `tokens`, `targets`, `weights`, `segments` and `positions`, each [B, L]; targets are the next tokens and
    weights say which of them count. The sum, not the mean, is what makes accumulated gradients equal a large batch's.
    """
    at = Tokens(batch.positions, batch.segments)
    x_BLD = transformer.forward(params, batch.tokens, at, config, layout, edit=edit, remat=remat, dropout_key=dropout_key)
    total, parts = cross_entropy(
        x_BLD, transformer.head(params), batch.targets, batch.weights, softcap=config.logit_softcap, z_loss=z_loss
    )
    return total, Sums(jnp.sum(batch.weights), *parts)
