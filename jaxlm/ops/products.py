"""Products that a CPU computes faster on their side: XLA's product of tall results takes up to twice as long.

X^T Y of X [T, 1024] and Y [T, 256] runs at 59 to 62 GFLOP/s on one core, Y^T X and turning it over at 82 to 94.
"""

import jax
from jax import Array

# Rows over columns from which on a result is tall; square ones are slower turned.
TALL = 2


def tall_gradient(w: Array) -> Array:
    """Return the weight [rows, columns] as it is; on a CPU a tall one's gradient is computed on its side."""
    return _on_its_side(w) if is_tall(w) and on_cpu() else w


def is_tall(w: Array) -> bool:
    """Return whether this is a matrix of many more rows than columns."""
    return w.ndim == 2 and w.shape[0] >= TALL * w.shape[1]


def turn(product: Array) -> Array:
    """Return the transpose of a product, computed as it stands: without a barrier XLA makes one product of both."""
    return jax.lax.optimization_barrier(product).T


def on_cpu() -> bool:
    """Return whether what is traced now is for the mesh of a CPU."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform == "cpu"


@jax.custom_vjp
def _on_its_side(w: Array) -> Array:
    return w


def _forward(w: Array) -> tuple[Array, None]:
    return w, None


def _backward(_: None, gradient: Array) -> tuple[Array]:
    return (turn(gradient.T),)


_on_its_side.defvjp(_forward, _backward)
