"""The same weights on both sides of a comparison, drawn from one seed by their names in Hugging Face's spelling."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return weights by name, drawn in the order of the names: norms near 1, matrices small."""
    rng = np.random.default_rng(0)
    scale = {1: 0.1, 2: 0.04}
    return {
        name: rng.standard_normal(shape, np.float32) * scale[len(shape)] + (len(shape) == 1)
        for name, shape in sorted(shapes.items())
    }


def drawn_params(config: Any) -> Any:
    """Return the parameters of a jaxlm `ModelConfig`, drawn as those of its Hugging Face family, as host arrays."""
    import jax

    from jaxlm import param
    from jaxlm.interop import table as tables
    from jaxlm.interop.families.find import family_for
    from jaxlm.model import transformer

    table = family_for(config).table(config)
    weights = drawn(dict(tables.their_tensors(table, config)))
    spec = transformer.spec(config)
    leaves = [
        tables.leaf_part(table, config, name, (slice(None),) * len(leaf.shape), weights.__getitem__)
        for name, leaf in param.named_leaves(spec).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(spec, is_leaf=lambda leaf: isinstance(leaf, param.Param)), leaves)
