"""A checkpoint of others streamed onto devices: each shard is filled from the file, and no host holds a second copy."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm.interop.table import Table, Tensors, leaf_part
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.param import Param, named_leaves

_CHECKED_AT_ONCE = 1 << 22  # values, so that the check needs no second copy


def load_params(
    table: Table, model: ModelConfig, tensors: Tensors, layout: Layout, mesh: jax.sharding.Mesh,
    report: Callable[[int, int], None] = lambda done, total: None, warn: Callable[[str], None] = lambda text: None,
) -> Any:  # fmt: skip
    """Return the parameters in float32, placed by `layout` on `mesh`, leaf by leaf: beside them one leaf at most is held.

    Each device's shard is read from `tensors` by itself (`table` a settled one that fits them). `report` is told of float32
    bytes done and in all, `warn` of leaves with values that are not finite, which are kept as they are.
    """
    spec = transformer.spec(model)
    leaves: dict[str, Param] = named_leaves(spec)
    total = 4 * sum(math.prod(leaf.shape) for leaf in leaves.values())
    done, placed = 0, []
    for name, leaf in leaves.items():
        sharding = jax.sharding.NamedSharding(mesh, layout.spec(*leaf.axes))
        unclean: list[int] = []

        def part(index: tuple[slice, ...], name: str = name, unclean: list[int] = unclean) -> np.ndarray:
            values = leaf_part(table, model, name, index, tensors.read)
            unclean.append(_not_finite(values))
            return values

        placed.append(jax.block_until_ready(jax.make_array_from_callback(leaf.shape, sharding, part)))
        if any(unclean):
            warn(f"{name} has values that are not finite, {max(unclean)} in one part: is the file damaged?")
        done += 4 * math.prod(leaf.shape)
        report(done, total)
    return jax.tree.unflatten(jax.tree.structure(spec, is_leaf=lambda x: isinstance(x, Param)), placed)


def _not_finite(values: np.ndarray) -> int:
    flat = values.reshape(-1)
    parts = (flat[start : start + _CHECKED_AT_ONCE] for start in range(0, flat.size, _CHECKED_AT_ONCE))
    return sum(part.size - int(np.isfinite(part).sum()) for part in parts)
