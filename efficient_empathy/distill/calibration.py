"""From raw outputs to the judge's scale, and held-out figures in which no choice was made on the rows it is measured on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from efficient_empathy.distill.batches import split_by_conversation
from efficient_empathy.distill.decision import Decide, middles_of, separate_decisions
from efficient_empathy.distill.student import exceedances, expected_scores, split_points
from efficient_empathy.distill.training import choose_epoch
from efficient_empathy.scorer.artifact import Scale

_STEEPEST = 10.0
"""Outputs that vary so much less than the judge's scores are noise, and rounding with it, that is not to be blown up."""
_MOST_BENT = 2.0
"""No side is steeper or flatter than the line through all rows by more than this: the bend rests on few rows."""
_SHARPNESS = np.geomspace(0.25, 4.0, 81)
_DRAWS = 200
_MOST_DRAWN = 100_000
"""Rows of all draws together: the more rows are held out, the fewer draws of each are needed."""
_CANDIDATES = np.arange(1, 100) / 100
_ROUNDS = 5


@dataclass(frozen=True)
class Line:
    """``raw * slope + intercept``, one number a dimension each."""

    slope: np.ndarray
    """Float (d,)."""
    intercept: np.ndarray
    """Float (d,)."""

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Scores of raw outputs, (n, d)."""
        return raw * self.slope + self.intercept


@dataclass(frozen=True)
class Calibration:
    """Two lines a dimension that meet at the middle of its scale; the raw output ``cut`` becomes the middle."""

    middle: np.ndarray
    """Float (d,)."""
    cut: np.ndarray
    """Float (d,)."""
    below: np.ndarray
    """Slope under the cut, float (d,)."""
    above: np.ndarray
    """Slope over it, float (d,)."""

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Scores of raw outputs, (n, d)."""
        distance = raw - self.cut
        return self.middle + np.where(distance > 0, self.above, self.below) * distance


def fit_line(raw: np.ndarray, scores: np.ndarray) -> Line:
    """Match mean and spread of the outputs to the judge's. Ranks do not change.

    Args:
        raw: outputs for rows not trained on, (n, d).
        scores: the judge's scores of the same rows, (n, d).
    """
    spread = raw.std(0)
    slope = np.minimum(scores.std(0) / np.where(spread > 1e-6, spread, 1.0), _STEEPEST)
    slope = np.where(scores.std(0) > 0, slope, 1.0)  # the judge's spread is not known: better some ranking than none
    return Line(slope, scores.mean(0) - slope * raw.mean(0))


def fit_calibration(
    probabilities: np.ndarray,
    scores: np.ndarray,
    scales: tuple[Scale, ...],
    unlabelled: np.ndarray | None = None,
) -> Calibration:
    """Calibrate a student for the decision, by what it says itself of how sure it is.

    Too few rows are held out to find the best cuts by counting how many of them are decided right. They tell how sure the student
    may be, by one number a dimension (temperature scaling, Guo et al. 2017), and how what it leaves unsaid is correlated between
    the dimensions. So scores are drawn from its probabilities, again and again, for these rows and unlabelled ones. The cuts are
    those of the highest F1 against these draws (expected F1, Ye et al. 2012).

    Args:
        probabilities: that the score is more than each point, for rows not trained on, (n, points).
        scores: the judge's scores of the same rows, (n, d).
        scales: the dimensions.
        unlabelled: probabilities for other rows not trained on, (m, points).
    """
    more = probabilities[:0] if unlabelled is None else unlabelled
    every = np.concatenate([probabilities, more])
    drawn = draw(probabilities, scores, every, scales)
    return calibrate(expected_scores(probabilities, scales), scores, expected_scores(every, scales), drawn, scales)


def calibrate(
    raw: np.ndarray, scores: np.ndarray, drawn_for: np.ndarray, drawn: np.ndarray, scales: tuple[Scale, ...]
) -> Calibration:
    """Cut where the macro-F1 of the decision is highest; on each side bring the mean distance from the middle to the judge's.

    Where the lines need not bend too far for it, the mean over all rows is the judge's too. Ranks do not change.

    Args:
        raw: outputs for rows not trained on, (n, d).
        scores: the judge's scores of the same rows, (n, d).
        drawn_for: outputs for the rows that the cuts are chosen by, (m, d).
        drawn: what the judge may have said of each of those, (draws, m, d).
        scales: the dimensions.
    """
    middle, line = middles_of(scales), fit_line(raw, scores)
    cut = (middle - line.intercept) / line.slope
    # On which side the judge is, or the outputs are, has to vary for there to be a choice; else the line is all that is known.
    free = (np.ptp(raw, axis=0) > 1e-6) & (scores.min(0) < middle) & (scores.max(0) > middle)
    for columns, decide in separate_decisions(scales):
        some = (drawn_for[:, columns], drawn[..., columns], cut[columns], free[columns], middle[columns])
        cut[columns] = _best_cuts(*some, decide)

    def distances(values: np.ndarray, origin: np.ndarray) -> np.ndarray:
        return np.stack([np.maximum(origin - values, 0).mean(0), np.maximum(values - origin, 0).mean(0)])

    ours, theirs = distances(raw, cut), distances(scores, middle)
    both = free & (ours > 0).all(0)
    wanted = np.where(both, theirs / np.where(ours > 0, ours, 1.0), line.slope)
    slopes = np.clip(wanted, line.slope / _MOST_BENT, line.slope * _MOST_BENT)
    return Calibration(middle, cut, slopes[0], slopes[1])


def draw(probabilities: np.ndarray, scores: np.ndarray, rows: np.ndarray, scales: tuple[Scale, ...]) -> np.ndarray:
    """What the judge may say of some rows, by a Gaussian copula: whole points of the scales, (draws, m, d).

    Args:
        probabilities: that the score is more than each point, for rows not trained on, (n, points).
        scores: the judge's scores of the same rows, (n, d).
        rows: probabilities for the rows to draw for, (m, points).
        scales: the dimensions.
    """
    from scipy.special import ndtr

    answers = split_points(exceedances(scores, scales), scales)
    odds, wanted = (split_points(_log_odds(some), scales) for some in (probabilities, rows))
    sharpness = [_as_sure_as_right(*both) for both in zip(odds, answers, strict=True)]
    sure, wanted = ([_sigmoid(one * by) for one, by in zip(some, sharpness, strict=True)] for some in (odds, wanted))
    left = scores - expected_scores(np.concatenate(sure, axis=1), scales)
    left = (left - left.mean(0)) / np.where(left.std(0) > 0, left.std(0), 1.0)
    correlation = left.T @ left / len(left)
    np.fill_diagonal(correlation, 1.0)
    shape = (int(np.clip(_MOST_DRAWN // len(rows), 10, _DRAWS)), len(rows))
    lots = ndtr(np.random.default_rng(0).multivariate_normal(np.zeros(len(scales)), correlation, shape))
    points = [np.sum([lots[..., d] < column for column in wanted[d].T], axis=0) for d in range(len(scales))]
    return np.stack([scale.low + found for scale, found in zip(scales, points, strict=True)], axis=-1)


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.clip(probabilities, 1e-6, 1)) - np.log(np.clip(1 - probabilities, 1e-6, 1)), np.float64)


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-odds)))


def _as_sure_as_right(odds: np.ndarray, answers: np.ndarray) -> float:
    """The number that log-odds have to be multiplied by for the answers to be most likely."""

    def loss(sharpness: float) -> float:
        return float((np.logaddexp(0, sharpness * odds) - answers * sharpness * odds).mean())

    return float(min(_SHARPNESS, key=loss))


def _best_cuts(
    raw: np.ndarray, drawn: np.ndarray, cut: np.ndarray, free: np.ndarray, middle: np.ndarray, decide: Decide
) -> np.ndarray:
    """The raw outputs, (d,), to cut at so that one decision agrees best with the drawn scores, column after column in turns.

    Args:
        raw: outputs, (n, d), of the dimensions that are decided by.
        drawn: what the judge may have said, (draws, n, d).
        cut: where to start; only what is better is taken.
        free: which columns may be cut elsewhere, (d,).
        middle: of each scale, (d,).
        decide: the decision.
    """
    draws, rows, _ = drawn.shape
    classes, codes = np.unique(decide(drawn.reshape(draws * rows, -1)), return_inverse=True)
    shares = np.zeros((rows, len(classes) + 1))  # the last column is of classes that were never drawn
    np.add.at(shares, (np.tile(np.arange(rows), draws), codes), 1 / draws)

    def figure(trial: np.ndarray) -> float:
        found = decide(middle + np.sign(raw - trial))
        return _expected_macro_f1(np.where(np.isin(found, classes), np.searchsorted(classes, found), -1), shares)

    best = figure(cut)
    for _ in range(_ROUNDS):
        before = best
        for column in np.flatnonzero(free):
            for place in np.quantile(raw[:, column], _CANDIDATES):
                trial = np.where(np.arange(len(cut)) == column, place, cut)
                if (value := figure(trial)) > best:
                    best, cut = value, trial
        if best == before:
            break
    return cut


def _expected_macro_f1(found: np.ndarray, shares: np.ndarray) -> float:
    """Macro-F1 of classes, (n,), against the share that each class has in each row, (n, classes)."""
    count = shares.shape[1]
    ours = np.bincount(found % count, minlength=count)
    hits = np.bincount(found % count, weights=shares[np.arange(len(found)), found], minlength=count)
    total = ours + shares.sum(0)
    present = total > 0
    return float((2 * hits[present] / total[present]).mean())


def clipped(scores: np.ndarray, scales: tuple[Scale, ...]) -> np.ndarray:
    """Scores (n, d) held within the ends of their scales, as the shipped graph holds its own."""
    low, high = (np.array([getattr(scale, end) for scale in scales], scores.dtype) for end in ("low", "high"))
    return np.clip(scores, low, high)


def cross_fitted(
    epochs: Sequence[np.ndarray],
    scores: np.ndarray,
    groups: Sequence[str],
    scales: tuple[Scale, ...],
    seed: int,
    unlabelled: Mapping[int, np.ndarray] | None = None,
) -> np.ndarray:
    """Scores for held-out rows as a user would get them, with nothing chosen on the rows themselves.

    The rows are halved by conversation. Epoch and calibration for one half are chosen on the other.

    Args:
        epochs: probabilities after each epoch, each (n, points).
        scores: the judge's scores, (n, d).
        groups: the conversation of each row.
        scales: the dimensions.
        seed: of the halving.
        unlabelled: probabilities for other rows not trained on, each (m, points), by the index of the epoch; not of all epochs.

    Returns:
        Scores, float (n, d), within their scales.
    """
    halves = split_by_conversation(groups, 0.5, seed)
    found = np.zeros_like(scores, dtype=np.float64)
    raw = [expected_scores(probabilities, scales) for probabilities in epochs]
    for here, there in (halves, halves[::-1]):
        chosen = choose_epoch([outputs[there] for outputs in raw], scores[there])
        calibration = fit_calibration(epochs[chosen][there], scores[there], scales, (unlabelled or {}).get(chosen))
        found[here] = calibration.apply(raw[chosen][here])
    return clipped(found, scales)
