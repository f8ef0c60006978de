"""Hash routing: a token's id alone, through a fixed random table, says which expert it visits (arXiv:2106.04426).

jaxlm train docs/examples/hash_routing.py
jaxlm train docs/examples/hash_routing.py --run-dir runs/learned --model.moe.router softmax

Claim: with nothing learnt and no loss for balance, hashing does about as well as a learnt router.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import Experiment
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.train.optimizer import OptimizerConfig

VOCAB, EXPERTS = 1024, 4
TABLE = np.random.default_rng(0).permutation(VOCAB) % EXPERTS  # as many tokens for each expert


def route(logits_BLE, token):
    """Give the expert of the token's id a score of 1, and all others none."""
    return jax.nn.one_hot(jnp.asarray(TABLE)[token.tokens], EXPERTS)


def experiment() -> Experiment:
    """Return a small mixture that is routed so."""
    moe = MoeConfig(num_experts=EXPERTS, every=2, router=f"{__file__}:route", load_balancing_loss=0.0)
    return Experiment(
        name="hash_routing", steps=100, batch_size=8,
        model=ModelConfig(vocab_size=VOCAB, num_layers=4, hidden_size=128, num_heads=4, intermediate_size=256, moe=moe),
        data=DataConfig(sources=("stdlib",), sequence_length=128, tokenizer=TokenizerConfig(vocab_size=VOCAB)),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
    )  # fmt: skip
