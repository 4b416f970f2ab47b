"""Spearman's rank correlation."""

import numpy as np


def spearman(found: np.ndarray, expected: np.ndarray) -> float:
    """Spearman's rank correlation of two vectors, ties at their mean rank; 0 when either is constant."""
    a, b = _ranks(found), _ranks(expected)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
