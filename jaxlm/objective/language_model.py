"""Next-token prediction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.edit import Edit, unchanged
from jaxlm.model.moe import Decisions, Routed
from jaxlm.model.moe_config import MoeConfig
from jaxlm.ops.cross_entropy import cross_entropy
from jaxlm.ops.masks import Tokens
from jaxlm.ops.routing import Statistics


class Sums(NamedTuple):
    """Sums over a batch's predicted tokens (float32 scalars): they add up over microbatches, batches and processes.

    Of a mixture of experts also `router`, over the tokens it saw, and where they were asked for its `decisions`, which alone
    do not add up.
    """

    tokens: Array
    cross_entropy: Array
    z: Array | None  # None where an objective does not say
    correct: Array
    router: Statistics | None = None
    decisions: Decisions | None = None

    @property
    def weight(self) -> Array:
        """The predicted tokens: the loss is a mean over them."""
        return self.tokens

    @property
    def total(self) -> Array:
        """The summed cross-entropy."""
        return self.cross_entropy

    def metrics(self) -> dict[str, Array]:
        """Return loss (nats a token), z (mean squared log-normaliser), accuracy and tokens."""
        return {
            "loss": self.cross_entropy / self.tokens,
            **({} if self.z is None else {"z": self.z / self.tokens}),
            "accuracy": self.correct / self.tokens,
            "tokens": self.tokens,
        }


def loss(
    params: transformer.Transformer,
    batch: Any,
    config: ModelConfig,
    layout: Layout,
    *,
    z_loss: float = 0.0,
    remat: transformer.Remat = "none",
    key: Array | None = None,
    edit: Edit = unchanged,
    record: bool = False,
) -> tuple[Array, Sums]:
    """Return the summed loss of a batch, to be divided by `Sums.tokens` of the whole step, and its parts.

    `batch` has `tokens`, `targets`, `weights`, `segments` and `positions`, each [B, L]; targets are the next tokens and
    weights say which of them count. The sum, not the mean, is what makes accumulated gradients equal a large batch's; a
    router's losses, each a function of all tokens of this (micro)batch, enter it once for every predicted token.
    `Sums.cross_entropy` is without them, and so comparable with a dense model's. With `key`, training's randomness is on.
    """
    at = Tokens(batch.positions, batch.segments)
    x_BLD, routed = transformer.forward(params, batch.tokens, at, config, layout, edit=edit, remat=remat, key=key)
    total, parts = cross_entropy(
        x_BLD, transformer.head(params), batch.targets, batch.weights, softcap=config.logit_softcap, z_loss=z_loss
    )
    return with_routers(total, Sums(jnp.sum(batch.weights), *parts), routed, config, record=record)


def with_routers(
    total: Array, sums: Sums, routed: Routed | None, config: ModelConfig, *, record: bool = False
) -> tuple[Array, Sums]:
    """Return a summed loss with those of the routers, once for every predicted token, and the sums with what routers did.

    `routed` is what `transformer.forward` returned; None, of a dense model, changes nothing.
    """
    if routed is None:
        return total, sums
    total = total + sums.tokens * router_loss(routed.statistics, config.moe)
    routed = jax.lax.stop_gradient(routed)
    return total, sums._replace(router=routed.statistics, decisions=routed.decisions if record else None)


def router_loss(layers: Statistics, settings: MoeConfig) -> Array:
    """Return the weighted losses of all routers, averaged or added up over mixture layers (the leading dimension)."""
    weighted = (
        settings.load_balancing_loss * layers.balance
        + settings.router_z_loss * layers.z
        + settings.importance_loss * layers.importance
        + settings.load_loss * layers.load_variation
    ) / jnp.maximum(layers.tokens, 1.0)
    return jnp.mean(weighted) if settings.losses_over_layers == "mean" else jnp.sum(weighted)
