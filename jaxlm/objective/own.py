"""An objective of the user's own, loss(params, batch, config, layout, **settings) in a file, in the terms of training."""

from typing import Any, NamedTuple

import jax
from jax import Array

from jaxlm.errors import ConfigError
from jaxlm.function_file import load
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.edit import Edit, unchanged
from jaxlm.model.moe import Decisions
from jaxlm.objective import language_model
from jaxlm.ops.routing import Statistics


class Sums(NamedTuple):
    """Sums over a batch: those of next-token prediction, which stay comparable with any other run's, and the own loss."""

    language: language_model.Sums  # without what routers did
    objective: Array
    router: Statistics | None = None
    decisions: Decisions | None = None

    @property
    def weight(self) -> Array:
        """The predicted tokens: the loss is a mean over them."""
        return self.language.tokens

    @property
    def total(self) -> Array:
        """The summed loss, as the function returned it: what routers add to it included."""
        return self.objective

    def metrics(self) -> dict[str, Array]:
        """Return those of next-token prediction, where `loss` is cross-entropy, and `objective`, the own loss a token."""
        return self.language.metrics() | {"objective": self.objective / self.weight}


def loss(
    objective: str,
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
    """Return what the function FILE.py:NAME makes of a batch: its summed loss, and sums with it among them.

    It is called with what `language_model.loss` takes, and returns what that returns: a summed loss, a float32 scalar, to be
    divided by `tokens` of the whole step, and `language_model.Sums`. Raises ConfigError where it returns anything else.
    """
    found = load(objective)(params, batch, config, layout, z_loss=z_loss, remat=remat, key=key, edit=edit, record=record)
    total, sums = found if isinstance(found, tuple) and len(found) == 2 else (None, None)
    if getattr(total, "shape", None) != () or not isinstance(sums, language_model.Sums):
        kinds = ", ".join(type(part).__name__ for part in found) if isinstance(found, tuple) else type(found).__name__
        raise ConfigError(
            f"objective = {objective!r} returned {kinds}: it must return the summed loss of the batch, a scalar, and "
            "jaxlm.objective.language_model.Sums (tokens, cross_entropy, z or None, correct)"
        )
    bare = jax.lax.stop_gradient(sums._replace(router=None, decisions=None))
    return total, Sums(bare, jax.lax.stop_gradient(total), sums.router, sums.decisions)
