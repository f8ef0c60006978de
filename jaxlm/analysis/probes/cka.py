"""CKA: how alike the layers of a checkpoint are, and each layer and itself at other checkpoints.

Linear centred kernel alignment of the residual stream (Kornblith et al. 2019, arXiv:1905.00414), debiased (Nguyen et al. 2020,
arXiv:2010.15327), over tokens of the rows that are read: blind to rotation and scale.
"""

from typing import Annotated

import numpy as np

from jaxlm.analysis.measure import Measure, NotSuited
from jaxlm.analysis.similarity import cka, evenly, gram, pairwise
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.data.packing import Batch


@config
class CkaConfig:
    """What is compared."""

    tokens: Annotated[int, Range(4)] = 1024
    """Tokens whose features are compared, spread evenly over the rows."""
    last: bool = True
    """Compare with the last checkpoint, too; in a run that still trains, that changes and all is measured again."""


SETTINGS = CkaConfig()


def probe(view: View, settings: CkaConfig) -> dict[str, Measure]:
    batch = _rows_for(view.rows, settings.tokens)
    places = evenly(np.flatnonzero(batch.segments), settings.tokens)
    if len(places) < 4:
        raise NotSuited(f"CKA needs 4 tokens or more, and the rows have {len(places)}")
    names, own = grams_of(view, batch, places)
    found = {
        "layers": Measure(
            pairwise(own), ("layer", "other_layer"), {"layer": names, "other_layer": names}, "",
            "debiased linear CKA between the residual streams of two layers",
        )
    }  # fmt: skip
    others = {"previous": view.previous, "last": view.last if settings.last else None}
    for which, other in others.items():
        if other is None:
            continue
        beside = own if other.step == view.step else grams_of(other, batch, places)[1]
        values = [cka(one, two) for one, two in zip(own, beside, strict=True)]
        about = f"debiased linear CKA between each layer and itself at the {which} checkpoint, step {other.step}"
        found[which] = Measure(values, ("layer",), {"layer": names}, "", about)
    return found


def _rows_for(rows: Batch, tokens: int) -> Batch:
    """Return as many rows as have that many tokens."""
    enough = np.searchsorted(np.cumsum(np.count_nonzero(rows.segments, axis=1)), tokens) + 1
    return Batch(*(x[:enough] for x in rows[:5]))


def grams_of(view: View, batch: Batch, places: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """Return the names of embedding and layers, and the Gram matrix [n, n] of the stream after each, at `places`."""
    found = view.activations("embed", "resid", batch=batch)
    streams = {"embed": found["embed"][0]} | {str(layer): x for layer, x in sorted(found["resid"].items())}
    return list(streams), [gram(x.reshape(-1, x.shape[-1])[places]) for x in streams.values()]
