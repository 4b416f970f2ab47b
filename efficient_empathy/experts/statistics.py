"""Resampled conversations, paired differences and the correction for many comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efficient_empathy.distill.quality import Figure, figure_of

_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Draws:
    """How often each conversation stands in each resample: one set for all systems and figures, so differences are paired.

    The first "resample" holds every conversation once: what is computed on it is the figure itself.
    """

    group_of_row: np.ndarray
    """int64 (n,): the conversation of each row, counted from 0."""
    times: np.ndarray
    """uint16 (1 + R, G): how often each conversation was drawn."""

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of the rows of each resample: (n,) or (n, k) to float64 (1 + R, k)."""
        columns = np.asarray(values, np.float64).reshape(len(self.group_of_row), -1)
        grouped = np.zeros((self.times.shape[1], columns.shape[1]))
        np.add.at(grouped, self.group_of_row, columns)
        # In blocks: the whole table as float64 would be four times as large.
        blocks = (self.times[start : start + _BLOCK] for start in range(0, len(self.times), _BLOCK))
        return np.concatenate([block.astype(np.float64) @ grouped for block in blocks])


def draw(groups: Sequence[str], resamples: int = 1000, seed: int | np.random.Generator = 0) -> Draws:
    """Draw conversations with replacement, as many as there are; a conversation comes with all of its rows.

    Args:
        groups: the conversation of each row.
        resamples: how often they are drawn, R.
        seed: of the drawing, or the generator itself.
    """
    _, group_of_row = np.unique(np.asarray(groups), return_inverse=True)
    count = int(group_of_row.max()) + 1
    rng = np.random.default_rng(seed)
    times = np.ones((1 + resamples, count), np.uint16)
    for resample in range(resamples):
        times[1 + resample] = np.bincount(rng.integers(count, size=count), minlength=count)
    return Draws(group_of_row, times)


def interval(values: np.ndarray, recentred: bool = False) -> Figure:
    """A figure with its 95 % percentile interval.

    Args:
        values: (1 + R,): the figure, then its value on each resample; resamples that have none hold nan and are left out.
        recentred: move the resampled values so that their mean is the figure. For counts of distinct things: a resample
            holds only some 63 % of the conversations, so it always holds fewer of them than the whole does.
    """
    drawn = _drawn(values)
    return figure_of(values[0], drawn - drawn.mean() + values[0] if recentred else drawn)


def p_value(differences: np.ndarray, conversations: int | None = None) -> float:
    """Two-sided bootstrap p-value of a difference, never 0.

    (1 + how many resampled differences lie as far from their own mean as the observed one lies from 0) / (1 + R): the
    resampled differences, moved to a mean of 0, stand for what chance gives where there is no difference. sacreBLEU's
    paired bootstrap counts the same way.

    Args:
        differences: (1 + R,): the observed difference, then that of each resample.
        conversations: how many were resampled, where they may be few: that all of n point one way has a chance of 2^(1 - n)
            where there is no difference, and no p-value may be lower. None where there are many.
    """
    drawn = _drawn(differences)
    as_far = np.abs(drawn - drawn.mean()) >= abs(differences[0])
    least = 0.0 if conversations is None else 2.0 ** (1 - conversations)
    return max(least, float(1 + as_far.sum()) / (1 + len(drawn)))


def _drawn(values: np.ndarray) -> np.ndarray:
    drawn = values[1:][np.isfinite(values[1:])]
    return drawn if len(drawn) else values[:1]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of one false finding or more among all of them is kept below the level.

    The k-th smallest of m p-values (k from 0) is multiplied by m - k; none may fall below a smaller one's result, nor rise
    above 1. Holds however the comparisons depend on each other. (Holm 1979)
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
