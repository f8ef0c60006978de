"""A model that needs no training: it says again what stood a fixed distance back."""

import jax
import numpy as np

from jaxlm import param
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.rope import frequencies

COPIER = ModelConfig(
    vocab_size=259, num_layers=1, hidden_size=64, num_heads=4, intermediate_size=4, max_length=96, biases=("q", "k"),
    tie_embeddings=False, compute_dtype="float32", attention_kernel="blocked",
)  # fmt: skip


def copier(distance: int):
    """Return parameters of COPIER whose next token is, for certain, the token `distance` positions before the last.

    Every query is one vector turned back by the angles of that distance, every key the same vector: RoPE makes their product
    greatest at that distance. Values and output are the identity, embeddings vectors drawn at random.
    """
    spec = transformer.spec(COPIER)
    params = jax.jit(lambda: param.initialize(spec, jax.random.key(0), Layout()))()
    embed = np.random.default_rng(0).standard_normal((259, 64)).astype(np.float32)
    embed /= np.linalg.norm(embed, axis=1, keepdims=True)
    back = -distance * np.asarray(frequencies(COPIER))
    query, key = np.concatenate([np.cos(back), np.sin(back)]), np.concatenate([np.ones(8), np.zeros(8)])
    (block,) = params.blocks
    wanted = {
        "q": np.zeros((1, 64, 4, 16)), "k": np.zeros((1, 64, 4, 16)), "v": np.eye(64).reshape(1, 64, 4, 16),
        "o": 100 * np.eye(64).reshape(1, 4, 16, 64), "q_bias": np.broadcast_to(query, (1, 4, 16)),
        "k_bias": np.broadcast_to(200 * key, (1, 4, 16)),
    }  # fmt: skip

    def placed(like, value):
        return jax.device_put(np.asarray(value, np.float32), like.sharding)

    attention = block.attention.replace(
        **{name: placed(getattr(block.attention, name), value) for name, value in wanted.items()}
    )
    block = block.replace(attention=attention, mlp=block.mlp.replace(down=placed(block.mlp.down, np.zeros((1, 4, 64)))))
    return params.replace(embed=placed(params.embed, embed), head=placed(params.head, 4 * embed), blocks=(block,))
