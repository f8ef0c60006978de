"""A tall weight's gradient is computed on its side on a CPU, and nothing else about it changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layout import make_mesh
from jaxlm.ops.products import tall_gradient

X, Y = (np.random.default_rng(seed).normal(size=(5, width)).astype(np.float32) for seed, width in enumerate((6, 3)))


def gradient_of(w, x, y):
    """Return the gradient of the weight in sum(y * (x w)), which is x^T y."""
    return jax.grad(lambda w: jnp.sum(y * (x @ tall_gradient(w))))(w)


@pytest.mark.parametrize(("x", "y", "product"), [(X, Y, "f32[3,6]"), (Y, X, "f32[3,6]"), (X, X, "f32[6,6]")])
def test_the_smaller_side_comes_first(x, y, product):
    """The compiled product is the wide one whichever side the weight is tall; the gradient is x^T y."""
    w = np.ones((x.shape[1], y.shape[1]), np.float32)
    with jax.set_mesh(make_mesh({"data": 1, "model": 1}, jax.devices()[:1])):
        compiled = jax.jit(gradient_of).lower(w, x, y).compile()
        found = compiled(*jax.device_put((w, x, y)))
    # What is computed by `dot` stands before it: f32[rows,columns]{layout} dot(...
    assert {line.split(" = ")[1].split("{")[0] for line in compiled.as_text().splitlines() if " dot(" in line} == {product}
    np.testing.assert_allclose(found, x.T @ y, rtol=1e-5)


def test_a_split_weights_gradient_is_split_as_it_is():
    """Tokens and a tall weight's columns over the same axis, as with FSDP: the gradient lies where the weight does."""
    mesh = make_mesh({"data": 2, "model": 1}, jax.devices()[:2])
    tokens, columns = jax.NamedSharding(mesh, jax.P("data", None)), jax.NamedSharding(mesh, jax.P(None, "data"))

    def gradient(w, x, y):
        def total(w):
            return jnp.sum(y * jnp.einsum("tf,fd->td", x, tall_gradient(w), out_sharding=jax.P("data", None)))

        return jax.grad(total)(w)

    x, y = np.concatenate([X, -2 * X]), np.tile(Y, (2, 1))[:, :2]
    with jax.set_mesh(mesh):
        arrays = jax.device_put(np.ones((6, 2), np.float32), columns), *jax.device_put((x, y), tokens)
        compiled = jax.jit(gradient).lower(*arrays).compile()
        found = compiled(*arrays)
    assert found.sharding.is_equivalent_to(columns, 2)
    np.testing.assert_allclose(found, x.T @ y, rtol=1e-5)


def test_elsewhere_nothing_is_added():
    """Without a mesh that says it is a CPU's, the weight itself is returned."""
    w = jnp.ones((6, 3))
    assert tall_gradient(w) is w
