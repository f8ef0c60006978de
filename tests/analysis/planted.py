"""Models whose weights are written by hand, so that what their heads do is known."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import param
from jaxlm.data.packing import Batch
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig

V, L = 24, 32  # tokens, positions
TOKEN, PLACE, BEFORE, GUESS = 0, V, V + L, 2 * V + L  # parts of the residual stream
SHARP = 30.0


def config(layers: int = 2) -> ModelConfig:
    """Return a model with one head a layer, whose residual stream holds a token, its place, the token before and a guess."""
    return ModelConfig(
        vocab_size=V, num_layers=layers, hidden_size=3 * V + L, num_heads=1, head_dim=L, intermediate_size=8, max_length=L,
        positions="learned", tie_embeddings=False, compute_dtype="float32", attention_kernel="plain",
    )  # fmt: skip


def nothing(model: ModelConfig):
    """Return parameters of zeros but for the norms and embeddings: every head attends alike to all that it sees."""
    params = param.initialize(transformer.spec(model), jax.random.key(0), Layout())
    kept = {"final_norm", "attention_norm", "mlp_norm"}
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x if kept & {getattr(key, "name", "") for key in path} else jnp.zeros_like(x), params
    )
    embed, place, head = (np.zeros((rows, 3 * V + L), np.float32) for rows in (V, L, V))
    embed[np.arange(V), TOKEN + np.arange(V)] = 1
    place[np.arange(L), PLACE + np.arange(L)] = 1
    head[np.arange(V), GUESS + np.arange(V)] = SHARP
    return params.replace(**_like(params, embed=embed, position_embed=place, head=head))


def induction_head(model: ModelConfig):
    """Return parameters with a head for the token before in the first layer, and one that finds it again in the second.

    The first copies the token of the place before into BEFORE; the second attends from a token to where that token stands in
    BEFORE, one after its first occurrence, and puts the token there into GUESS (Olsson et al. 2022).
    """
    params, (D, H) = nothing(model), (3 * V + L, L)
    q, k, v, o = (np.zeros((2, *shape), np.float32) for shape in ((D, 1, H), (D, 1, H), (D, 1, H), (1, H, D)))
    places, tokens = np.arange(L - 1), np.arange(V)
    q[0, PLACE + 1 + places, 0, places] = SHARP  # the place after looks for the place before
    k[0, PLACE + places, 0, places] = 1
    q[1, TOKEN + tokens, 0, tokens] = SHARP
    k[1, BEFORE + tokens, 0, tokens] = 1
    v[:, TOKEN + tokens, 0, tokens] = 1
    o[0, 0, tokens, BEFORE + tokens] = 1
    o[1, 0, tokens, GUESS + tokens] = 1
    (block,) = params.blocks
    return params.replace(
        blocks=(block.replace(attention=block.attention.replace(**_like(block.attention, q=q, k=k, v=v, o=o))),)
    )


def _like(container, **arrays):
    return {name: jax.device_put(array, getattr(container, name).sharding) for name, array in arrays.items()}


def rows(count: int = 4, length: int = L, seed: int = 0) -> Batch:
    """Return rows of random tokens, each a whole document of its own."""
    ids = np.random.default_rng(seed).integers(0, V, (count, length + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (count, length)).copy()
    return Batch(ids[:, :-1], ids[:, 1:], np.ones((count, length), np.float32), np.ones_like(positions), positions)
