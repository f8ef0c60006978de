"""How alike two representations of the same tokens are: linear CKA (arXiv:1905.00414), without the bias of few tokens."""

from collections.abc import Sequence

import numpy as np


def gram(features: np.ndarray) -> np.ndarray:
    """Return the inner products of n tokens' features [n, d] as float64 [n, n], scaled to a mean diagonal of 1."""
    features = np.asarray(features, np.float64)
    features = features - features.mean(axis=0, keepdims=True)
    products = features @ features.T
    return products / max(np.trace(products) / len(products), 1e-300)


def hsic(left: np.ndarray, right: np.ndarray) -> float:
    """Return the unbiased estimate of the Hilbert-Schmidt independence criterion of two Gram matrices [n, n], n > 3.

    (tr K'L' + 1'K'1 1'L'1 / ((n - 1)(n - 2)) - 2 1'K'L'1 / (n - 2)) / (n (n - 3)), K' and L' with zero diagonals (Song et al.
    2012): its mean is 0 for independent features, however few the tokens and wide the features.
    """
    n = len(left)
    of_rows = [each.sum(axis=1) - np.diagonal(each) for each in (left, right)]
    product = np.vdot(left, right) - np.vdot(np.diagonal(left), np.diagonal(right))
    totals = of_rows[0].sum() * of_rows[1].sum() / ((n - 1) * (n - 2))
    return float((product + totals - 2 * of_rows[0] @ of_rows[1] / (n - 2)) / (n * (n - 3)))


def cka(left: np.ndarray, right: np.ndarray) -> float:
    """Return the debiased linear CKA of two Gram matrices of the same tokens (arXiv:1905.00414; debiased: arXiv:2010.15327).

    1 for features that are rotated, scaled or moved versions of each other, 0 on average for independent ones, which a sample
    can put a little below 0. NaN where the features are the same for all tokens.
    """
    between, own = hsic(left, right), hsic(left, left) * hsic(right, right)
    return between / own**0.5 if own > 0 else float("nan")


def pairwise(grams: Sequence[np.ndarray]) -> np.ndarray:
    """Return the debiased CKA of each two Gram matrices of the same tokens, a symmetric matrix."""
    found = np.empty((len(grams), len(grams)))
    for row, one in enumerate(grams):
        for column in range(row + 1):
            found[row, column] = found[column, row] = cka(one, grams[column])
    return found


def evenly(places: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the places, evenly spread, or all where there are no more."""
    return places[np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)]
