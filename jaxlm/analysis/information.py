"""What one label of a token tells of another: mutual information in bits, and how much of it is chance."""

import numpy as np


def mutual_information(left: np.ndarray, right: np.ndarray, corrected: bool = False) -> float:
    """Return the mutual information of two labels of the same n things, integers [n], in bits.

    That of the observed shares is too large by about (l - 1)(r - 1) / (2 n ln 2) for l and r labels; `corrected` adds the
    Miller-Madow term (labels seen - 1) / 2n to each entropy (Miller 1955), and may then come out a little below 0.
    """
    if not len(left):
        return float("nan")
    _, left = np.unique(left, return_inverse=True)
    _, right = np.unique(right, return_inverse=True)
    both = left.astype(np.int64) * (int(right.max()) + 1) + right
    return _entropy(left, corrected) + _entropy(right, corrected) - _entropy(both, corrected)


def _entropy(labels: np.ndarray, corrected: bool) -> float:
    _, counts = np.unique(labels, return_counts=True)
    share = counts / counts.sum()
    bias = (len(counts) - 1) / (2 * counts.sum()) if corrected else 0.0
    return float((-np.sum(share * np.log(share)) + bias) / np.log(2))


def entropy(labels: np.ndarray) -> float:
    """Return the entropy of the shares of labels, integers [n], in bits."""
    return _entropy(labels, False) if len(labels) else float("nan")


def by_chance(left: np.ndarray, right: np.ndarray, times: int = 4, seed: int = 0) -> float:
    """Return the mean mutual information in bits once `right` is shuffled: what would be found if neither told of the other."""
    rng = np.random.default_rng(seed)
    return float(np.mean([mutual_information(left, rng.permutation(right)) for _ in range(times)]))


def telling(labels: np.ndarray, groups: np.ndarray, num_groups: int, count: int) -> list[list[int]]:
    """Return, for each group, the labels that add most to the mutual information with it, best first; as many as there are.

    A label l adds n(l, g) log(p(g | l) / p(g)) to group g: it is frequent there, and rarer elsewhere.
    """
    names, labels = np.unique(labels, return_inverse=True)
    seen = np.zeros((num_groups, len(names)))
    np.add.at(seen, (groups, labels), 1)
    expected = seen.sum(axis=1, keepdims=True) * seen.sum(axis=0, keepdims=True) / max(seen.sum(), 1)
    adds = np.where(seen > 0, seen * np.log(np.where(seen > 0, seen, 1) / np.where(expected > 0, expected, 1)), 0.0)
    best = np.argsort(-adds, axis=1, kind="stable")[:, :count]
    return [[int(names[label]) for label in row if adds[group, label] > 0] for group, row in enumerate(best)]
