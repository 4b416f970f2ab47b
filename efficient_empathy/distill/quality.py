"""How well scores agree with the judge: point figures and their intervals, resampled by conversation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.ranks import spearman

_Metric = Callable[[np.ndarray], float]
"""A figure computed on the given row indices, int64 (m,), which may repeat."""


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_absolute_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean absolute difference, in points of the scale."""
    return float(np.abs(found - expected).mean())


def quadratic_kappa(found: np.ndarray, expected: np.ndarray, scale: Scale) -> float:
    """Cohen's kappa with quadratic weights of whole-point scores; found scores are rounded first.

    1 is full agreement, 0 what chance gives with the same marginals; 0 too when nothing varies.
    """
    low, levels = int(scale.low), int(scale.high - scale.low) + 1
    a = np.clip(np.rint(found).astype(int) - low, 0, levels - 1)
    b = np.clip(np.rint(expected).astype(int) - low, 0, levels - 1)
    observed = np.bincount(a * levels + b, minlength=levels * levels).reshape(levels, levels) / len(a)
    chance = np.outer(observed.sum(1), observed.sum(0))
    weights = np.subtract.outer(np.arange(levels), np.arange(levels)) ** 2
    disagreement = float((weights * chance).sum())
    return 1 - float((weights * observed).sum()) / disagreement if disagreement > 0 else 0.0


def macro_f1(found: np.ndarray, expected: np.ndarray, classes: int) -> float:
    """Mean F1 over the classes that occur in either vector of class indices."""
    confusion = np.bincount(found * classes + expected, minlength=classes * classes).reshape(classes, classes)
    hits = confusion.diagonal()
    total = confusion.sum(0) + confusion.sum(1)
    present = total > 0
    return float((2 * hits[present] / total[present]).mean())


def with_interval(metric: _Metric, groups: Sequence[str], resamples: int = 1000, seed: int = 0) -> Figure:
    """A figure on all rows, with the 2.5th and 97.5th percentile over resampled conversations.

    Args:
        metric: gives the figure on some row indices.
        groups: the conversation of each row; a conversation is drawn with all of its rows.
        resamples: how often conversations are drawn, with replacement.
        seed: of the drawing.
    """
    _, inverse = np.unique(np.asarray(groups), return_inverse=True)
    rows = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[rows], np.arange(inverse.max() + 1))
    members = np.split(rows, starts[1:])
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = rng.integers(len(members), size=len(members))
        drawn.append(metric(np.concatenate([members[group] for group in chosen])))
    return figure_of(metric(np.arange(len(inverse))), drawn)


def figure_of(value: float, drawn: Sequence[float] | np.ndarray) -> Figure:
    """A figure with the 2.5th and 97.5th percentile of the values that resampling gave."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Figure(float(value), float(low), float(high))


@dataclass(frozen=True)
class Judged:
    """Rows with the judge's scores, as everything here needs them."""

    scores: np.ndarray
    """The judge's scores, float (n, d)."""
    groups: Sequence[str]
    """The conversation of each row."""
    dimensions: tuple[Scale, ...]
    decide: Callable[[np.ndarray], np.ndarray]
    """Class index of each row from its scores, (n, d) to (n,)."""
    classes: int


def agreement(found: np.ndarray, judged: Judged, resamples: int = 1000, seed: int = 0) -> Mapping[str, Figure]:
    """Every figure of a scorer against the judge, by name.

    ``spearman/<dimension>``, ``mae/<dimension>``, ``kappa/<dimension>``, ``decision/accuracy``, ``decision/macro_f1``.
    """
    metrics: dict[str, _Metric] = {}
    for column, scale in enumerate(judged.dimensions):
        a, b = found[:, column], judged.scores[:, column]
        metrics[f"spearman/{scale.name}"] = lambda rows, a=a, b=b: spearman(a[rows], b[rows])  # type: ignore[misc]
        metrics[f"mae/{scale.name}"] = lambda rows, a=a, b=b: mean_absolute_error(a[rows], b[rows])  # type: ignore[misc]
        metrics[f"kappa/{scale.name}"] = lambda rows, a=a, b=b, s=scale: quadratic_kappa(a[rows], b[rows], s)  # type: ignore[misc]
    # Many dimensions make many classes, of which few occur: only those are counted.
    occurring, both = np.unique([judged.decide(found), judged.decide(judged.scores)], return_inverse=True)
    ours, theirs = both.reshape(2, -1)
    metrics["decision/accuracy"] = lambda rows: float((ours[rows] == theirs[rows]).mean())
    metrics["decision/macro_f1"] = lambda rows: macro_f1(ours[rows], theirs[rows], len(occurring))
    return {name: with_interval(metric, judged.groups, resamples, seed) for name, metric in metrics.items()}
