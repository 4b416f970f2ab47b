"""Ranks, and Spearman's correlation of them."""

import numpy as np


def spearman(found: np.ndarray, expected: np.ndarray) -> float:
    """Spearman's rank correlation of two vectors, ties at their mean rank; 0 when either is constant."""
    a, b = mean_ranks(found), mean_ranks(expected)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, (n,) to float64 (n,); equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
