"""Small mixtures of experts for tests, and how near is near enough."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from models import tiny

from jaxlm import param
from jaxlm.layout import Layout
from jaxlm.model import moe, transformer
from jaxlm.model.moe_config import MoeConfig

REFERENCE = Path(__file__).parent / "reference"
KERNELS = ("loop", "ragged")
BIASES = ("gate", "up", "down")
# Nothing of the routers in the loss, so that all gradients are the language model's.
UNWEIGHTED = {"load_balancing_loss": 0.0, "kernel": "loop"}
DROPLESS = {"capacity_factor": None, "kernel": "loop"}


def sparse(*, model=(), **settings):
    """Return a tiny model of one mixture layer."""
    return tiny(
        **(
            {
                "num_layers": 1,
                "attention_kernel": "plain",
                "moe": MoeConfig(**({"num_experts": 4, "expert_size": 16} | settings)),
            }
            | dict(model)
        )
    )


def draw(config, seed=0):
    """Return a model's weights, none at a neutral value, without compiling anything."""
    rng = np.random.default_rng(seed)

    def values(p):
        start, spread = (1.0, 0.1) if p.kind == "vector" else (0.0, 0.25)
        return jnp.asarray(start + spread * rng.standard_normal(p.shape), jnp.float32)

    return param.tree_map(values, transformer.spec(config))


def assert_near(found, expected, rtol=1e-4, atol=1e-6):
    """Compare leaf by leaf, to `atol` and as much of the leaf's largest value."""

    def near(a, b):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * (1 + np.abs(np.asarray(b)).max(initial=0)))

    jax.tree.map(near, found, expected)


def draw_layer(config, seed=0, spread=0.3):
    """Return weights of one mixture layer, none at a neutral value."""
    rng = np.random.default_rng(seed)
    return param.tree_map(lambda p: jnp.asarray(spread * rng.standard_normal(p.shape), jnp.float32), moe.spec(config))


def inputs(rows=2, length=12, width=32, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((rows, length, width)), jnp.float32)


@functools.partial(jax.jit, static_argnames=("config", "edit"))
def run_layer(p, x, config, key=None, real=None, edit=moe.unchanged):
    real = jnp.ones(x.shape[:2], bool) if real is None else real
    return moe.moe(p, x, real, 0, config, Layout(), edit=edit, key=key)


@functools.partial(jax.jit, static_argnames="config")
def layer_and_gradients(p, x, probe, config, key=None):
    """Return ((output, routed), gradients of sum(output x probe) for the weights and for x)."""

    def total(p, x):
        y, routed = run_layer(p, x, config, key)
        return jnp.sum(y * probe), (y, routed)

    gradients, given = jax.grad(total, (0, 1), has_aux=True)(p, x)
    return given, gradients
