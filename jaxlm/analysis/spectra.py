"""Spectra of matrices: norms, ranks and tails, from the eigenvalues of the smaller Gram matrix."""

from typing import NamedTuple

import numpy as np


class Spectrum(NamedTuple):
    """What the singular values s of matrices come to, each of the shape of the stack; 0 for a matrix of zeros, NaN for one
    that is not finite."""

    frobenius: np.ndarray
    """sqrt(sum s^2)."""
    spectral: np.ndarray
    """The largest s."""
    stable_rank: np.ndarray
    """sum s^2 / max s^2 (Rudelson & Vershynin 2007, arXiv:math/0503442): at most the rank, and indifferent to small s."""
    effective_rank: np.ndarray
    """exp of the entropy of s / sum s (Roy & Vetterli 2007); NaN where the singular values were not computed."""


def spectrum(matrices: np.ndarray, largest: int = 1024, iterations: int = 40) -> Spectrum:
    """Return norms and ranks of each of a stack of matrices [..., m, n].

    Where min(m, n) exceeds `largest`, only the largest singular value is found, by power iteration (a lower bound, near where
    it stands clear of the second), and the effective rank is NaN.
    """
    matrices = np.asarray(matrices)
    outer, shape = matrices.shape[:-2], matrices.shape[-2:]
    flat = matrices.reshape(-1, *shape)
    if min(shape) > largest:
        squares = np.array([float(np.sum(np.square(matrix, dtype=np.float64))) for matrix in flat])
        tops = np.array([power_iteration(matrix, iterations) for matrix in flat])
        effective = np.full(len(flat), np.nan)
    else:
        values = np.stack([singular_values(matrix) for matrix in flat]) if len(flat) else np.zeros((0, min(shape)))
        squares, tops, effective = np.sum(values**2, axis=-1), values[:, -1], effective_rank(values)
    found = np.sqrt(squares), tops, _over(squares, tops**2), effective
    return Spectrum(*(each.reshape(outer) for each in found))


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Return the singular values of a matrix [m, n], rising, float64 [min(m, n)].

    They are roots of the eigenvalues of the smaller Gram matrix, so that those below 1e-8 of the largest are noise.
    NaN where the matrix is not finite.
    """
    if not np.isfinite(matrix).all():
        return np.full(min(matrix.shape), np.nan)
    tall = np.asarray(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T, np.float64)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(tall.T @ tall), 0.0))


def effective_rank(values: np.ndarray) -> np.ndarray:
    """Return exp(-sum p ln p), p = s / sum s, over the last axis of singular values (Roy & Vetterli 2007)."""
    share = _over(values, np.sum(values, axis=-1, keepdims=True))
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=-1)
    return np.where(np.any(values != 0, axis=-1), np.exp(entropy), 0.0)  # NaN is not 0, and stays


def power_iteration(matrix: np.ndarray, iterations: int = 40) -> float:
    """Return an estimate of the largest singular value of a matrix [m, n], never above it, from a fixed random start."""
    vector, top = np.random.default_rng(0).standard_normal(matrix.shape[1]).astype(matrix.dtype), 0.0
    for _ in range(iterations):
        size = float(np.linalg.norm(vector))
        if not size:
            return 0.0
        image = matrix @ (vector / size)
        top, vector = float(np.linalg.norm(image)), matrix.T @ image
    return top


def tail_exponent(values: np.ndarray, least: int = 10) -> float:
    """Return the exponent alpha of the density l^-alpha of the greatest eigenvalues l = s^2, float (Martin & Mahoney 2019,
    arXiv:1901.08276).

    The tail begins where the Kolmogorov-Smirnov distance to the fitted law is least, and has `least` values or more (Clauset et
    al. 2009, arXiv:0706.1062). NaN where there are fewer.
    """
    rising = np.sort(np.asarray(values, np.float64) ** 2)
    if not np.isfinite(rising).all():
        return float("nan")
    rising = rising[rising > 0]
    best = (np.inf, np.nan)
    for start in range(len(rising) - least + 1):
        tail = rising[start:]
        logs = np.log(tail / tail[0])
        if not logs.sum():
            continue
        alpha = 1 + len(tail) / logs.sum()
        fitted, steps = 1 - np.exp(-(alpha - 1) * logs), np.arange(len(tail) + 1) / len(tail)
        distance = max(np.max(np.abs(fitted - steps[:-1])), np.max(np.abs(steps[1:] - fitted)))
        best = min(best, (float(distance), float(alpha)))
    return best[1]


def _over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros(np.broadcast_shapes(top.shape, bottom.shape)), where=bottom != 0)
