"""What each layer would predict: the logit lens.

The final norm and the output head are put on the residual stream after the embedding and after every layer (nostalgebraist
2020; as a baseline in Belrose et al. 2023, arXiv:2303.08112): the loss of what they predict, the divergence KL(final || layer)
from the model's prediction, and how often both have the same likeliest token.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.analysis.measure import Measure
from jaxlm.analysis.predictions import by_stretches, logits_of
from jaxlm.analysis.view import View
from jaxlm.model import layers, transformer
from jaxlm.model.config import ModelConfig


def probe(view: View) -> dict[str, Measure | float]:
    """Return means over the targets that count, by layer; "embed" is what stands before the first layer."""
    sums, total = np.zeros((3, view.model.num_layers + 1)), 0.0
    for batch, seen in view.pieces("embed", "resid"):
        stream = np.stack([seen["embed"][0], *seen["resid"].values()], axis=2)
        found = [np.asarray(x) for x in _lens(view.params, *_placed(view, stream, batch.targets), view.model)]
        counts = batch.weights != 0
        sums += np.stack([x[counts].sum(axis=0, dtype=np.float64) for x in found])
        total += counts.sum()
    loss, divergence, agreement = sums / total if total else np.full(sums.shape, np.nan)
    labels = {"layer": ["embed", *map(str, range(view.model.num_layers))]}
    return {
        "loss_by_layer": Measure(loss, ("layer",), labels, "nats", "loss of what the final norm and head make of a layer"),
        "kl_by_layer": Measure(divergence, ("layer",), labels, "nats", "KL(final prediction || that of a layer)"),
        "agreement_by_layer": Measure(
            agreement, ("layer",), labels, about="share of tokens whose likeliest next token is the final one already"
        ),
        "settled_depth": Measure(
            settled(agreement), about="part of the layers after which half of the predictions or more stay the final ones"
        ),
        "last_kl": Measure(divergence[-2], unit="nats", about="KL(final || before the last layer): what the last layer adds"),
    }


def settled(agreement: np.ndarray) -> float:
    """Return after which part of the layers agreement [layers + 1] with the final prediction stays 0.5 or above.

    NaN where it is not known of every layer.
    """
    if not np.isfinite(agreement).all():
        return float("nan")
    below = np.flatnonzero(agreement < 0.5)
    return float((below[-1] + 1 if len(below) else 0) / (len(agreement) - 1))


def _placed(view: View, stream: np.ndarray, targets: np.ndarray) -> tuple[Array, Array]:
    return jax.device_put((stream, targets), jax.NamedSharding(view.mesh, jax.P()))


@functools.partial(jax.jit, static_argnames=("model",))
def _lens(params: Any, stream: Array, targets: Array, model: ModelConfig) -> tuple[Array, Array, Array]:
    """Return loss, KL from the final prediction and agreement with it, [R, L, layers + 1], of streams [R, L, layers + 1, D]."""
    normed = layers.norm(params.final_norm, stream.astype(jnp.dtype(model.compute_dtype)), model)
    head = jax.reshard(transformer.head(params), jax.P())

    def one_stretch(piece: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        x_TND, targets_T = piece
        final = jax.nn.log_softmax(logits_of(x_TND[:, -1], head, model))
        likely, best = jnp.exp(final), jnp.argmax(final, axis=-1)

        def one_layer(x_TD: Array) -> tuple[Array, Array, Array]:
            logits = logits_of(x_TD, head, model)
            normaliser = jax.nn.logsumexp(logits, axis=-1)
            loss = normaliser - jnp.take_along_axis(logits, targets_T[:, None], axis=-1)[:, 0]
            divergence = jnp.sum(likely * (final - logits), axis=-1) + normaliser
            same = (jnp.argmax(logits, axis=-1) == best).astype(jnp.float32)
            return loss, divergence, jnp.where(jnp.isfinite(divergence), same, jnp.nan)

        found = jax.lax.map(one_layer, x_TND.swapaxes(0, 1))
        return tuple(x.T for x in found)

    return by_stretches(one_stretch, (normed, targets), model.vocab_size)
