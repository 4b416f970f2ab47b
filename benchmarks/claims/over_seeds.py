"""The mean of a figure over a few seeds, with an interval that covers both the conversations and the trainings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05


@dataclass(frozen=True)
class Noise:
    """How much a figure varies from seed to seed."""

    variance: float
    freedom: int
    """Degrees of freedom that the variance was estimated with."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, its 95 % interval, and the p-value of its difference from 0."""

    value: float
    low: float
    high: float
    p: float


def noise_of_one(values_S: np.ndarray) -> Noise | None:
    """How much the figure of one system varies, (S,); None where there is one seed."""
    return Noise(float(np.var(values_S, ddof=1)), len(values_S) - 1) if len(values_S) > 1 else None


def noise_of_differences(values_SK: np.ndarray) -> Noise | None:
    """How much the difference of two trained systems varies, from all K systems together; None where there is one seed.

    A layout in blocks: what is left of (seeds, systems) without the mean of each seed and of each system, with (S - 1)(K - 1)
    degrees of freedom; a difference varies twice as much. Three seeds of one difference alone have two degrees of freedom,
    and a t interval of two is four times as wide as with many. Takes it that all trainings vary alike.
    """
    seeds, systems = values_SK.shape
    if seeds < 2:
        return None
    left = values_SK - values_SK.mean(0) - values_SK.mean(1, keepdims=True) + values_SK.mean()
    freedom = (seeds - 1) * (systems - 1)
    return Noise(2 * float((left**2).sum()) / freedom, freedom)


def mean_over_seeds(arrays: Sequence[np.ndarray], conversations: int, noise: Noise | None) -> Mean:
    """Mean over seeds with a t interval.

    Its variance is that over resampled conversations, which all seeds share, plus that between seeds divided by their number; the
    degrees of freedom are Welch and Satterthwaite's. (Resampling three seeds instead would show only two thirds of their
    variance, and no tail.) What seeds and conversations do together is in both terms: the interval is a little too wide.

    Args:
        arrays: one a seed, (1 + R,): its figure, then the figure on each resample of the conversations, the same for all seeds;
            resamples without the figure hold nan and are left out.
        conversations: how many were resampled.
        noise: between the seeds; None with one seed, when the interval says nothing of other trainings.
    """
    from scipy.stats import t

    mean = np.mean(arrays, axis=0)
    value, drawn = float(mean[0]), mean[1:][np.isfinite(mean[1:])]
    parts = [(float(drawn.var()) if len(drawn) else 0.0, conversations - 1)]
    if noise is not None:
        parts.append((noise.variance / len(arrays), noise.freedom))
    variance = sum(part for part, _ in parts)
    if variance == 0.0:  # nothing varies, as where two systems are one
        return Mean(value, value, value, float(value == 0.0))
    freedom = variance**2 / sum(part**2 / of for part, of in parts)
    error = variance**0.5
    reach = error * float(t.ppf(1 - LEVEL / 2, freedom))
    return Mean(value, value - reach, value + reach, 2 * float(t.sf(abs(value) / error, freedom)))
