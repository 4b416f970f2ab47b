"""From raw outputs to the judge's scale, and held-out figures in which no choice was made on the rows it is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efficient_empathy.distill.batches import split_by_conversation
from efficient_empathy.distill.training import choose_epoch
from efficient_empathy.scorer.artifact import Scale

_STEEPEST = 10.0
"""Outputs that vary so much less than the judge's scores are noise, and rounding with it, that is not to be blown up."""


@dataclass(frozen=True)
class Calibration:
    """``expected * slope + intercept``, one number a dimension each."""

    slope: np.ndarray
    """Float (d,)."""
    intercept: np.ndarray
    """Float (d,)."""

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Scores of raw outputs, (n, d)."""
        return raw * self.slope + self.intercept


def fit_calibration(raw: np.ndarray, scores: np.ndarray) -> Calibration:
    """Match mean and spread of the outputs to the judge's.

    Expected scores crowd round the mean, and a fixed threshold would then call too few rows high or low; with the judge's
    spread the subsets get about the judge's shares. Ranks do not change.

    Args:
        raw: outputs for rows not trained on, (n, d).
        scores: the judge's scores of the same rows, (n, d).
    """
    spread = raw.std(0)
    slope = np.minimum(scores.std(0) / np.where(spread > 1e-6, spread, 1.0), _STEEPEST)
    slope = np.where(scores.std(0) > 0, slope, 1.0)  # the judge's spread is not known: better some ranking than none
    return Calibration(slope, scores.mean(0) - slope * raw.mean(0))


def clipped(scores: np.ndarray, scales: tuple[Scale, ...]) -> np.ndarray:
    """Scores (n, d) held within the ends of their scales, as the shipped graph holds its own."""
    low, high = (np.array([getattr(scale, end) for scale in scales], scores.dtype) for end in ("low", "high"))
    return np.clip(scores, low, high)


def cross_fitted(
    epochs: Sequence[np.ndarray], scores: np.ndarray, groups: Sequence[str], scales: tuple[Scale, ...], seed: int
) -> np.ndarray:
    """Scores for held-out rows as a user would get them, with nothing chosen on the rows themselves.

    The rows are halved by conversation. Epoch and calibration for one half are chosen on the other.

    Args:
        epochs: raw outputs after each epoch, each (n, d).
        scores: the judge's scores, (n, d).
        groups: the conversation of each row.
        scales: the dimensions.
        seed: of the halving.

    Returns:
        Scores, float (n, d), within their scales.
    """
    halves = split_by_conversation(groups, 0.5, seed)
    found = np.zeros_like(scores, dtype=np.float64)
    for here, there in (halves, halves[::-1]):
        chosen = epochs[choose_epoch([raw[there] for raw in epochs], scores[there])]
        found[here] = fit_calibration(chosen[there], scores[there]).apply(chosen[here])
    return clipped(found, scales)
