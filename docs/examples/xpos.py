"""xPos: rotary positions whose products shrink with distance, slow pairs of features least (arXiv:2212.10554).

jaxlm train docs/examples/xpos.py
jaxlm train docs/examples/xpos.py --run-dir runs/rope --model.positions rope

Claim: it learns about as well as RoPE at the length trained at (the paper's gain is in rows that are longer).
"""

import jax.numpy as jnp

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import Experiment
from jaxlm.model.config import ModelConfig
from jaxlm.train.optimizer import OptimizerConfig


def rotate(x_BLNH, positions_BL, part):
    """Rotate pairs of features by position, and scale them by a power of it: queries up, keys down."""
    half = x_BLNH.shape[-1] // 2
    pair = jnp.arange(half, dtype=jnp.float32).reshape(1, 1, 1, half) / half
    at = positions_BL[:, :, None, None].astype(jnp.float32)
    scale = ((pair + 0.4) / 1.4) ** (at / 512)
    scale = 1 / scale if part.keys else scale
    cos, sin = jnp.cos(at * 10_000.0**-pair) * scale, jnp.sin(at * 10_000.0**-pair) * scale
    a, b = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def experiment() -> Experiment:
    """Return a small model whose positions are these."""
    at = f"{__file__}:rotate"
    return Experiment(
        name="xpos", steps=100, batch_size=8,
        model=ModelConfig(vocab_size=259, num_layers=4, hidden_size=128, num_heads=4, intermediate_size=256, positions=at),
        data=DataConfig(sources=("stdlib",), sequence_length=128, tokenizer=TokenizerConfig(kind="byte", vocab_size=259)),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
    )  # fmt: skip
