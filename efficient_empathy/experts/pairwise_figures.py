"""From verdicts in both orders to figures: wins, intervals, position and length bias."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from efficient_empathy.distill.quality import Figure
from efficient_empathy.experts.pairwise_criteria import Winner
from efficient_empathy.experts.statistics import draw, interval

Outcome = Literal["win", "tie", "lose"]
NOT_ASKED = "not-asked"
_PLACES = ("first", "second")
_POINTS = {"win": 1.0, "tie": 0.5, "lose": 0.0}

# Keeps the coefficients finite where one side wins everything; at 200 pairs it moves the win rate by less than 0.0001.
_RIDGE = 0.01
_STEPS = 200
# Weights of rows under resamples that are in memory at once.
_BLOCK_CELLS = 2_000_000


@dataclass(frozen=True)
class JudgedPair:
    """Two systems' replies to one context, and what the judge said of them in each order."""

    id: str
    dialogue_id: str
    lengths: tuple[int, int]
    """Characters of the first and of the second system's reply; 0 for an empty one."""
    identical: bool
    """Whether the replies are the same: then it is a tie, and nobody was asked."""
    verdicts: tuple[Winner | None, ...]
    """Who won when the first system's reply was shown first, and when the second's was; None where there is no verdict."""
    reasons: tuple[str | None, ...]
    """Why there is none; None where there is."""
    shares: tuple[dict[str, float] | None, ...]
    """The share of the verdicts ``first``, ``second`` and ``tie``: 1 and 0, or a local judge's probabilities."""

    @property
    def outcome(self) -> Outcome | None:
        """For the first system: won or lost only if both orders say so, else a tie; None where a verdict lacks."""
        if not self.identical and None in self.verdicts:
            return None
        agreed = self.verdicts[0] if len(set(self.verdicts)) == 1 else "tie"
        outcomes: dict[str | None, Outcome] = {"first": "win", "second": "lose"}
        return outcomes.get(agreed, "tie")

    @property
    def problem(self) -> str | None:
        """Why there is no outcome; what was asked and could not be read goes before what was not asked."""
        reasons = sorted((reason == NOT_ASKED, reason) for reason in self.reasons if reason is not None)
        return reasons[0][1] if reasons else None


@dataclass(frozen=True)
class PairwiseResult:
    """How the first system fares against the second; shares are of the pairs named, None where there are none."""

    first: str
    second: str
    pairs: int
    """Contexts compared: ``wins + ties + losses + unscored + not_asked``."""
    wins: int
    """Of the first system, in both orders."""
    ties: int
    losses: int
    unscored: dict[str, int]
    """Pairs with a verdict that is missing or could not be read, by reason; they count in no figure below."""
    not_asked: int
    """Pairs left over when the spending limit was reached."""
    identical: int
    """Ties (among ``ties``) whose replies are the same, so that nobody was asked."""
    empty: tuple[int, int]
    """Empty replies of the first and of the second system."""
    win_rate: Figure | None
    """(wins + ties / 2) / scored pairs, with a 95 % bootstrap interval over conversations."""
    length_controlled: Figure | None
    """The win rate at equal length, see ``length_controlled``."""
    sign_test: float | None
    """Exact two-sided p-value that wins and losses are equally likely, ties left out."""
    sign_test_holm: float | None
    """The same, corrected by Holm for the comparisons judged together."""
    flip_rate: float | None
    """Of the pairs asked in both orders, the share whose verdict changed with the order."""
    first_place: float | None
    """Of all single verdicts that name a winner, the share that went to the reply shown first; 0.5 without position bias."""
    longer_wins: float | None
    """Of the wins and losses between replies of unequal length, the share that went to the longer one."""
    first_longer: float | None
    """Of the scored pairs of unequal length, the share where the first system's reply is the longer one. Near 0 or 1, system
    and length can hardly be told apart."""
    mean_lengths: tuple[float, float]
    """Characters, over all pairs."""

    @property
    def scored(self) -> int:
        """Pairs with an outcome."""
        return self.wins + self.ties + self.losses

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it, with the shares of wins, ties and losses among the scored pairs."""
        shares = {name: _share(getattr(self, name), self.scored) for name in ("wins", "ties", "losses")}
        return {**asdict(self), "scored": self.scored, "shares": shares}


def summarise(
    names: tuple[str, str], pairs: Sequence[JudgedPair], resamples: int = 1000, seed: int = 0
) -> PairwiseResult:
    """All figures of one comparison, from its verdicts alone.

    Args:
        names: of the first and the second system.
        pairs: at least one.
        resamples: of the conversations.
        seed: of the resampling.
    """
    scored = [pair for pair in pairs if pair.outcome is not None]
    outcomes = Counter(pair.outcome for pair in scored)
    problems = Counter(pair.problem for pair in pairs if pair.outcome is None)
    both = [pair.verdicts for pair in scored if not pair.identical]
    # The reply shown first is the first system's in the first order, the second's in the second.
    decisive = [
        verdict == place
        for verdicts in both
        for verdict, place in zip(verdicts, _PLACES, strict=True)
        if verdict != "tie"
    ]
    unequal = [pair for pair in scored if pair.lengths[0] != pair.lengths[1]]
    longer = [pair.lengths[0] > pair.lengths[1] for pair in unequal]
    decided = [
        (pair.outcome == "win") == first for pair, first in zip(unequal, longer, strict=True) if pair.outcome != "tie"
    ]
    raw, controlled = _rates(scored, resamples, seed)
    wins, losses = outcomes["win"], outcomes["lose"]
    return PairwiseResult(
        first=names[0],
        second=names[1],
        pairs=len(pairs),
        wins=wins,
        ties=outcomes["tie"],
        losses=losses,
        unscored={str(name): count for name, count in sorted(problems.items()) if name != NOT_ASKED},
        not_asked=problems[NOT_ASKED],
        identical=sum(pair.identical for pair in pairs),
        empty=tuple(sum(pair.lengths[side] == 0 for pair in pairs) for side in (0, 1)),  # type: ignore[arg-type]
        win_rate=raw,
        length_controlled=controlled,
        sign_test=sign_test(wins, losses) if scored else None,
        sign_test_holm=None,
        flip_rate=_share(sum(one != other for one, other in both), len(both)),
        first_place=_share(sum(decisive), len(decisive)),
        longer_wins=_share(sum(decided), len(decided)),
        first_longer=_share(sum(longer), len(longer)),
        mean_lengths=tuple(float(np.mean([pair.lengths[side] for pair in pairs])) for side in (0, 1)),  # type: ignore[arg-type]
    )


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value that wins and losses are equally likely; ties are left out. 1 where nothing was decided.

    Twice the binomial probability of as few of the rarer outcome as there were, or fewer.
    """
    count = wins + losses

    def probability(k: int) -> float:
        return math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2))

    return min(1.0, 2 * math.fsum(probability(k) for k in range(min(wins, losses) + 1)))


def length_controlled(points: np.ndarray, differences: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Win rates at equal length: what the judge would say if neither system's replies were the longer ones.

    The points are regressed on tanh(length difference / its standard deviation) by logistic regression with an intercept;
    the value at difference 0 is the answer. This is the length term of AlpacaEval 2's regression (Dubois et al. 2024,
    "Length-Controlled AlpacaEval", section 3), without its term for how hard an instruction is. A small ridge (0.01) keeps the
    coefficients finite.

    Args:
        points: (n,): 1 for a win of the first system, 0.5 for a tie, 0 for a loss.
        differences: (n,): length of the first system's reply less that of the second's.
        weights: (r, n): how often each row counts, once for every win rate asked for; no row of zeros.

    Returns:
        (r,): win rates.
    """
    totals = weights.sum(1)
    means = weights @ differences / totals
    spread = np.sqrt(np.maximum(weights @ differences**2 / totals - means**2, 0.0))
    # Where all differences are the same there is no spread: then only who is longer counts.
    x = np.tanh(differences / np.maximum(spread, 1e-9)[:, None])
    intercept, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(-(intercept[:, None] + slope[:, None] * x)))
        residuals, curvature = weights * (points - expected), weights * expected * (1 - expected)
        gradient = residuals.sum(1) - _RIDGE * intercept, (residuals * x).sum(1) - _RIDGE * slope
        a, b, c = curvature.sum(1) + _RIDGE, (curvature * x).sum(1), (curvature * x * x).sum(1) + _RIDGE
        determinant = a * c - b * b
        steps = np.stack([c * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]]) / determinant
        sizes = np.abs(steps).sum(0)
        # As |x| <= 1 no logit moves by more than 1, and Newton's step then cannot overshoot.
        steps *= np.minimum(1, 1 / np.maximum(sizes, 1))
        intercept, slope = intercept + steps[0], slope + steps[1]
        if sizes.max() < 1e-9:
            break
    return np.asarray(1 / (1 + np.exp(-intercept)))


def _rates(scored: Sequence[JudgedPair], resamples: int, seed: int) -> tuple[Figure | None, Figure | None]:
    """The win rate and the length-controlled one, under the same resamples."""
    if not scored:
        return None, None
    points = np.array([_POINTS[str(pair.outcome)] for pair in scored])
    differences = np.array([float(pair.lengths[0] - pair.lengths[1]) for pair in scored])
    draws = draw([pair.dialogue_id for pair in scored], resamples, seed)
    raw, controlled = [], []
    block = max(1, _BLOCK_CELLS // len(scored))
    for start in range(0, len(draws.times), block):
        weights = draws.times[start : start + block, draws.group_of_row].astype(np.float64)
        raw.append(weights @ points / weights.sum(1))
        controlled.append(length_controlled(points, differences, weights))
    return interval(np.concatenate(raw)), interval(np.concatenate(controlled))


def _share(count: float, total: int) -> float | None:
    return count / total if total else None
