"""The focal loss: tokens that are foretold already weigh less, by (1 - p)^2 (arXiv:1708.02002).

jaxlm train docs/examples/focal_loss.py
jaxlm train docs/examples/focal_loss.py --run-dir runs/plain --objective ""

Claim: it makes a model less sure of itself (arXiv:2002.09437), at some cost in cross-entropy, which `loss` still is.
"""

import jax.numpy as jnp

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import Experiment
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.objective import language_model
from jaxlm.ops.log_probs import target_log_probs
from jaxlm.ops.masks import Tokens
from jaxlm.train.optimizer import OptimizerConfig


def loss(params, batch, config, layout, *, z_loss, record, **settings):
    """Return the sum over targets of -(1 - p)^2 log p, and what next-token prediction would say."""
    at = Tokens(batch.positions, batch.segments)
    x_BLD, routed = transformer.forward(params, batch.tokens, at, config, layout, **settings)
    said = target_log_probs(x_BLD, transformer.head(params), batch.targets, softcap=config.logit_softcap)
    total = -jnp.sum(batch.weights * (1 - jnp.exp(said.log_probs)) ** 2 * said.log_probs)
    sums = [jnp.sum(batch.weights * value) for value in (1.0, -said.log_probs, said.correct)]
    found = language_model.Sums(tokens=sums[0], cross_entropy=sums[1], z=None, correct=sums[2])
    return language_model.with_routers(total, found, routed, config, record=record)


def experiment() -> Experiment:
    """Return a small model that learns so."""
    return Experiment(
        name="focal_loss", steps=100, batch_size=8, objective=f"{__file__}:loss",
        model=ModelConfig(vocab_size=259, num_layers=4, hidden_size=128, num_heads=4, intermediate_size=256),
        data=DataConfig(sources=("stdlib",), sequence_length=128, tokenizer=TokenizerConfig(kind="byte", vocab_size=259)),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
    )  # fmt: skip
