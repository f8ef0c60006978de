"""Sparse upcycling keeps the function, whatever the patterns of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import batch_of, draw, tiny

from jaxlm.errors import ConfigError
from jaxlm.layout import Layout, make_mesh
from jaxlm.model import transformer
from jaxlm.model.moe_config import MoeConfig
from jaxlm.model.upcycle import check_upcycling, upcycle
from jaxlm.ops.masks import Tokens

DENSE = tiny(num_layers=5, attention_pattern=("sliding", "global"), sliding_window=6, biases=("up", "down"))
MOE = MoeConfig(num_experts=4, experts_per_token=2, renormalize=True, every=3, capacity_factor=None, kernel="loop")


def hidden(params, config):
    batch = batch_of(rows=8)
    at = Tokens(jnp.asarray(batch.positions), jnp.asarray(batch.segments))
    place = Layout().spec("batch", None)
    tokens, at = jax.tree.map(lambda x: jax.reshard(jnp.asarray(x), place), (batch.tokens, at))
    return jax.jit(lambda p: transformer.forward(p, tokens, at, config, Layout()))(params)


@pytest.mark.parametrize("shape", [{}, {"data": 2, "expert": 2, "model": 2}])
def test_the_function_is_the_dense_one(shape):
    devices = jax.devices()[: 8 if shape else 1]
    sparse = tiny(num_layers=5, attention_pattern=("sliding", "global"), sliding_window=6, biases=("up", "down"), moe=MOE)
    with jax.set_mesh(make_mesh(shape, devices)):
        dense = draw(DENSE)
        params = jax.jit(lambda p: upcycle(p, DENSE, sparse, Layout(), jax.random.key(1)))(dense)
        names = {jax.tree_util.keystr(path): x.sharding.spec for path, x in jax.tree_util.tree_leaves_with_path(params)}
        up = next(spec for name, spec in names.items() if "experts.up" in name and "bias" not in name)
        assert up == Layout().spec(None, "expert", "embed", "ffn")
        expected, _ = hidden(dense, DENSE)
        found, routed = hidden(params, sparse)
        real = batch_of(rows=8).segments != 0  # padding visits no expert
        np.testing.assert_allclose(jax.device_get(found)[real], jax.device_get(expected)[real], atol=2e-5)
        assert routed.statistics.load.shape == (1, 4) and (jax.device_get(routed.statistics.load) > 0).sum() > 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"renormalize": False}, "gates add up to 1"),
        ({"gate_scale": 2.5}, "gates add up to 1"),
        ({"shared_experts": 1}, "leave model.moe.expert_size and shared_experts at 0"),
        ({"expert_size": 8}, "leave model.moe.expert_size"),
    ],
)
def test_what_would_change_the_function_is_refused(fields, message):
    kept = {name: getattr(MOE, name) for name in ("num_experts", "experts_per_token", "renormalize", "capacity_factor")}
    with pytest.raises(ConfigError, match=message):
        check_upcycling(tiny(), tiny(moe=MoeConfig(**(kept | fields))))
    with pytest.raises(ConfigError, match="has experts already"):
        check_upcycling(tiny(moe=MoeConfig(num_experts=2)), tiny(moe=MoeConfig(**kept)))
