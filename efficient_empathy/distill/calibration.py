"""From raw outputs to the judge's scale, and held-out figures in which no choice was made on the rows it is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efficient_empathy.distill.batches import split_by_conversation
from efficient_empathy.distill.decision import middles_of, separate_decisions
from efficient_empathy.distill.student import exceedances, expected_scores
from efficient_empathy.distill.training import choose_epoch
from efficient_empathy.scorer.artifact import Scale

_STEEPEST = 10.0
"""Outputs that vary so much less than the judge's scores are noise, and rounding with it, that is not to be blown up."""
_MOST_BENT = 2.0
"""No side is steeper or flatter than the line through all rows by more than this: the bend rests on few rows."""
_SHARPNESS = np.geomspace(0.25, 4.0, 81)
_DRAWS = 200
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


def fit_calibration(probabilities: np.ndarray, scores: np.ndarray, scales: tuple[Scale, ...]) -> Calibration:
    """Calibrate a student for the decision, by what it says itself of how sure it is.

    Too few rows are held out to find the best cuts by counting how many of them are decided right. So their probabilities are
    made as sure as the judge's scores warrant, by one number a dimension (temperature scaling, Guo et al. 2017), and scores are
    drawn from them, again and again, as correlated between the dimensions as what the student leaves unsaid. The cuts are those
    of the highest F1 against these draws (expected F1, Ye et al. 2012).

    Args:
        probabilities: that the score is more than each point, for rows not trained on, (n, points).
        scores: the judge's scores of the same rows, (n, d).
        scales: the dimensions.
    """
    return calibrate(expected_scores(probabilities, scales), scores, draw(probabilities, scores, scales), scales)


def calibrate(raw: np.ndarray, scores: np.ndarray, drawn: np.ndarray, scales: tuple[Scale, ...]) -> Calibration:
    """Cut where the macro-F1 of the decision is highest; on each side bring the mean distance from the middle to the judge's.

    Where the lines need not bend too far for it, the mean over all rows is the judge's too. Ranks do not change.

    Args:
        raw: outputs for rows not trained on, (n, d).
        scores: the judge's scores of the same rows, (n, d).
        drawn: what the judge may have said of each row, (draws, n, d): the cuts are chosen by these.
        scales: the dimensions.
    """
    middle, line = middles_of(scales), fit_line(raw, scores)
    cut = (middle - line.intercept) / line.slope
    # On which side the judge is, or the outputs are, has to vary for there to be a choice; else the line is all that is known.
    open_columns = (np.ptp(raw, axis=0) > 1e-6) & (scores.min(0) < middle) & (scores.max(0) > middle)
    cut = _best_cuts(raw, drawn, cut, open_columns, scales)

    def distances(values: np.ndarray, origin: np.ndarray) -> np.ndarray:
        return np.stack([np.maximum(origin - values, 0).mean(0), np.maximum(values - origin, 0).mean(0)])

    ours, theirs = distances(raw, cut), distances(scores, middle)
    both = open_columns & (ours > 0).all(0)
    wanted = np.where(both, theirs / np.where(ours > 0, ours, 1.0), line.slope)
    slopes = np.clip(wanted, line.slope / _MOST_BENT, line.slope * _MOST_BENT)
    return Calibration(middle, cut, slopes[0], slopes[1])


def draw(probabilities: np.ndarray, scores: np.ndarray, scales: tuple[Scale, ...]) -> np.ndarray:
    """What the judge may have said of each row, by a Gaussian copula: whole points of the scales, (draws, n, d)."""
    from scipy.special import ndtr

    ends = np.cumsum([round(scale.high - scale.low) for scale in scales])[:-1]
    answers = np.split(exceedances(scores, scales), ends, axis=1)
    sure = [_as_sure_as_right(*both) for both in zip(np.split(probabilities, ends, axis=1), answers, strict=True)]
    left = scores - expected_scores(np.concatenate(sure, axis=1), scales)
    spread = np.where(left.std(0) > 0, left.std(0), 1.0)
    correlation = ((left - left.mean(0)) / spread).T @ ((left - left.mean(0)) / spread) / len(left)
    np.fill_diagonal(correlation, 1.0)
    normal = np.random.default_rng(0).multivariate_normal(np.zeros(len(scales)), correlation, (_DRAWS, len(scores)))
    lots = ndtr(normal)
    points = [np.sum([lots[..., d] < column for column in sure[d].T], axis=0) for d in range(len(scales))]
    return np.stack([scale.low + found for scale, found in zip(scales, points, strict=True)], axis=-1)


def _as_sure_as_right(probabilities: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Probabilities with all log-odds multiplied by the number that makes the answers most likely."""
    odds = np.log(np.clip(probabilities, 1e-6, 1 - 1e-6)) - np.log(np.clip(1 - probabilities, 1e-6, 1 - 1e-6))

    def loss(sharpness: float) -> float:
        return float((np.logaddexp(0, sharpness * odds) - answers * sharpness * odds).mean())

    return np.asarray(1 / (1 + np.exp(-min(_SHARPNESS, key=loss) * odds)))


def _best_cuts(
    raw: np.ndarray, drawn: np.ndarray, start: np.ndarray, open_columns: np.ndarray, scales: tuple[Scale, ...]
) -> np.ndarray:
    """The raw outputs, (d,), to cut at so that decisions agree best with the drawn scores; one column after the other, in turns."""
    middle, cut = middles_of(scales), start.copy()
    rows = np.tile(np.arange(len(raw)), len(drawn))
    places = np.quantile(raw, _CANDIDATES, axis=0)
    for columns, decide in separate_decisions(scales):
        classes, codes = np.unique(decide(drawn[..., columns].reshape(-1, len(columns))), return_inverse=True)
        shares = np.zeros((len(raw), len(classes) + 1))  # the last column is of classes that were never drawn
        np.add.at(shares, (rows, codes), 1 / len(drawn))

        def figure(trial: np.ndarray) -> float:
            found = decide(middle[columns] + np.sign(raw[:, columns] - trial[columns]))  # noqa: B023 - called in this turn only
            return _expected_macro_f1(np.where(np.isin(found, classes), np.searchsorted(classes, found), -1), shares)  # noqa: B023

        best = figure(cut)
        for _ in range(_ROUNDS):
            before = best
            for column in (column for column in columns if open_columns[column]):
                for place in places[:, column]:
                    trial = cut.copy()
                    trial[column] = place
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
    epochs: Sequence[np.ndarray], scores: np.ndarray, groups: Sequence[str], scales: tuple[Scale, ...], seed: int
) -> np.ndarray:
    """Scores for held-out rows as a user would get them, with nothing chosen on the rows themselves.

    The rows are halved by conversation. Epoch and calibration for one half are chosen on the other.

    Args:
        epochs: probabilities after each epoch, each (n, points).
        scores: the judge's scores, (n, d).
        groups: the conversation of each row.
        scales: the dimensions.
        seed: of the halving.

    Returns:
        Scores, float (n, d), within their scales.
    """
    halves = split_by_conversation(groups, 0.5, seed)
    found = np.zeros_like(scores, dtype=np.float64)
    raw = [expected_scores(probabilities, scales) for probabilities in epochs]
    for here, there in (halves, halves[::-1]):
        chosen = choose_epoch([outputs[there] for outputs in raw], scores[there])
        calibration = fit_calibration(epochs[chosen][there], scores[there], scales)
        found[here] = calibration.apply(raw[chosen][here])
    return clipped(found, scales)
