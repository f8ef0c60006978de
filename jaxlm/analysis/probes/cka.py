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


@config
class CkaConfig:
    """What is compared."""

    tokens: Annotated[int, Range(4)] = 1024
    """Tokens whose features are compared, spread evenly over the rows."""
    last: bool = True
    """Compare with the last checkpoint, too; in a run that still trains, that changes and all is measured again."""


SETTINGS = CkaConfig()


def probe(view: View, settings: CkaConfig) -> dict[str, Measure]:
    """Return likenesses of layers, and of each layer and itself at other checkpoints, at the same tokens of all rows."""
    places = evenly(np.flatnonzero(view.rows.segments), settings.tokens)
    if len(places) < 4:
        raise NotSuited(f"CKA needs 4 tokens or more, and the rows have {len(places)}")
    names, own = grams_of(view, places)
    between = pairwise(own)
    labels, of = {"layer": names, "other_layer": names}, "debiased linear CKA between"
    found = {
        "layers": Measure(between, ("layer", "other_layer"), labels, "", f"{of} the residual streams of two layers"),
        "mean_neighbours": Measure(np.diagonal(between, 1).mean(), about="mean likeness of a layer and the next"),
    }
    others = {"previous": view.previous, "last": view.last if settings.last else None}
    for which, other in others.items():
        if other is None:
            continue
        beside = own if other.step == view.step else grams_of(other, places)[1]
        values = [cka(one, two) for one, two in zip(own, beside, strict=True)]
        about = f"{of} each layer and itself at the {which} checkpoint, step {other.step}"
        found[which] = Measure(values, ("layer",), {"layer": names}, "", about)
        found[f"mean_{which}"] = Measure(np.mean(values), about=f"mean likeness of a layer to itself at the {which} checkpoint")
    return found


def grams_of(view: View, places: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """Return the names of embedding and layers, and the Gram matrix [n, n] of the stream after each at `places` of all rows.

    Of the rows, which are read a few at a time, only the features at these places are kept.
    """
    picked: dict[str, list[np.ndarray]] = {}
    start = 0
    for batch, seen in view.pieces("embed", "resid"):
        here = places[(places >= start) & (places < start + batch.tokens.size)] - start
        start += batch.tokens.size
        streams = {"embed": seen["embed"][0]} | {str(layer): x for layer, x in sorted(seen["resid"].items())}
        for name, x in streams.items():
            picked.setdefault(name, []).append(x.reshape(-1, x.shape[-1])[here])
    return list(picked), [gram(np.concatenate(parts)) for parts in picked.values()]
