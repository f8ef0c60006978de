"""Random tokens for a model to copy: those that it can be expected to know."""

import numpy as np

from jaxlm.analysis.view import View

LEAST = 32  # different tokens to draw from


def vocabulary(view: View) -> np.ndarray:
    """Return the ids to draw from, rising: of the tokens with a text, those that occur in the rows.

    Others may never have been learnt; they belong to it only where too few of them occur. Without a tokenizer all have a text.
    """
    ids = np.arange(view.model.vocab_size)
    if view.tokenizer is not None:
        spelled = np.flatnonzero(view.tokenizer.token_bytes() > 0)
        ids = spelled[spelled < view.model.vocab_size]
    common = np.intersect1d(ids, view.rows.tokens[view.rows.segments != 0])
    return common if len(common) >= LEAST else ids


def drawn(vocabulary: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` different tokens in random order; of one that came twice a head could not say which to copy."""
    return rng.choice(vocabulary, count, replace=False)
