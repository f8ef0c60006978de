"""A parameter before it exists: its shape, logical axes and initializer, from which all else is derived by `tree.map`."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.errors import ConfigError
from jaxlm.layout import Layout, ways

# The configuration field that sets the size of a logical axis, for messages.
AXIS_FIELDS = {
    "embed": "model.hidden_size",
    "heads": "model.num_heads",
    "kv_heads": "model.num_kv_heads",
    "ffn": "model.intermediate_size",
    "expert": "model.moe.num_experts",
    "vocab": "model.vocab_size",
}


@dataclasses.dataclass(frozen=True)
class Param:
    """One leaf of a model's spec tree.

    `stack` leading dimensions hold independent copies (layers, experts); then come `inputs` dimensions that a matrix
    contracts, then its outputs. `kind` decides weight decay and which optimizer treats the leaf as a matrix; a "state" is no
    parameter at all: it has no gradient and no decay, a rule of its own moves it (a router's balancing bias).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Callable[..., Array]
    kind: Literal["matrix", "embedding", "vector", "state"] = "matrix"
    inputs: int = 1
    stack: int = 0

    def stacked(self, copies: int, axis: str | None = None) -> "Param":
        """Return this parameter with a leading dimension of independent copies: layers, which are never split, or experts."""
        return dataclasses.replace(self, shape=(copies, *self.shape), axes=(axis, *self.axes), stack=self.stack + 1)


def tree_map(function: Callable[..., Any], spec: Any, *rest: Any) -> Any:
    """Map over the `Param` leaves of a spec tree (and matching trees)."""
    return jax.tree.map(function, spec, *rest, is_leaf=lambda x: isinstance(x, Param))


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return {"blocks.0.attention.q": leaf, ...} for a spec tree or any tree of the same structure."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Param))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def initialize(spec: Any, key: Array, layout: Layout) -> Any:
    """Draw every parameter in float32, placed by `layout` on the current mesh.

    Keys are folded from the leaf's name, so that a new leaf never reseeds an old one, and the values do not depend on the mesh.
    """

    def draw(path: Any, param: Param) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return param.init(name_key, param.shape, jnp.float32, out_sharding=layout.spec(*param.axes))

    return jax.tree_util.tree_map_with_path(draw, spec, is_leaf=lambda x: isinstance(x, Param))


def split(tree: Any, spec: Any) -> tuple[Any, Any]:
    """Return the part of a tree that is trained, and the part that is only state; each has None for what the other holds."""
    trained = tree_map(lambda p, x: None if p.kind == "state" else x, spec, tree)
    kept = tree_map(lambda p, x: x if p.kind == "state" else None, spec, tree)
    return trained, kept


def join(trained: Any, kept: Any) -> Any:
    """Return the tree that `split` took apart."""
    return jax.tree.map(lambda x, y: y if x is None else x, trained, kept, is_leaf=lambda x: x is None)


def abstract(spec: Any, layout: Layout, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Any:
    """Return the parameters as `jax.ShapeDtypeStruct`s with their shardings: nothing is allocated."""

    def shape_of(param: Param) -> jax.ShapeDtypeStruct:
        sharding = jax.sharding.NamedSharding(mesh, layout.spec(*param.axes))
        return jax.ShapeDtypeStruct(param.shape, jnp.float32, sharding=sharding)

    return tree_map(shape_of, spec)


def count(spec: Any) -> int:
    """Return the number of parameters."""
    return sum(math.prod(param.shape) for param in named_leaves(spec).values())


def bytes_per_device(spec: Any, layout: Layout, mesh_shape: Mapping[str, int]) -> int:
    """Return the bytes of all parameters, float32, that one device holds."""
    total = 0
    for param in named_leaves(spec).values():
        split = math.prod(ways(entry, mesh_shape) for entry in layout.spec(*param.axes))
        total += 4 * math.prod(param.shape) // split
    return total


def name_axes(entry: str | tuple[str, ...] | None, mesh_shape: Mapping[str, int]) -> str:
    """Return the configuration's names of the mesh axes that really split a dimension: "mesh.data x mesh.expert"."""
    names = (entry,) if isinstance(entry, str) else entry or ()
    return " x ".join(f"mesh.{name}" for name in names if mesh_shape.get(name, 1) > 1)


def check_layout(spec: Any, layout: Layout, mesh_shape: Mapping[str, int]) -> None:
    """Raise ConfigError for the first weight that the mesh would split unevenly, naming the field and sizes that work."""
    for name, param in named_leaves(spec).items():
        for size, axis, entry in zip(param.shape, param.axes, layout.spec(*param.axes), strict=True):
            split = ways(entry, mesh_shape)
            if size % split:
                mesh_axis = getattr(layout, axis)
                fits = [n for n in range(1, split + 1) if math.gcd(size, split) % n == 0][-3:]
                over = f"{name_axes(entry, mesh_shape) or f'mesh.{mesh_axis}'} = {split}"
                raise ConfigError(
                    f"{AXIS_FIELDS.get(axis, axis)} = {size} cannot be split evenly over {over} "
                    f"(weight {name}): set --mesh.{mesh_axis} to a divisor such as {', '.join(map(str, fits))}, "
                    f"or keep it whole with --layout.{axis.replace('_', '-')} None"
                )
