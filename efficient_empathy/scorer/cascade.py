"""The cascade: the fast tier decides what it is sure of, the transformer the rest.

How sure it is is measured, for the policy in use, on held-out rows that both tiers have rated: how often would the
transformer's score, as far from the fast one as it was there, put the row into another subset? The rows it is least sure of go
to the transformer, as many as a promise needs: the share of decisions that differ from the transformer's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import write_atomic

CASCADE_FILE = "cascade.json"
DEFAULT_MAX_FLIPS = 0.02
LEAST_PAIRS = 200
"""Held-out rows below which nothing can be promised."""
_DRAWS = 64
"""Differences that are tried on each row."""
_BINS = 8
_BLOCK = 4096
_Z = 1.96
"""The promise holds for the upper end of the two-sided 95 % interval."""


class Decides(Protocol):
    """What the cascade needs of a policy."""

    def check(self, dimensions: Sequence[str], scales: Mapping[str, tuple[float, float]] | None = None) -> None:
        """Raise EmpathyError if the policy cannot be applied to these dimensions."""

    def decide(self, scores: np.ndarray, dimensions: Sequence[str]) -> np.ndarray:
        """Choose the subset of each row of (n, d) scores."""


@dataclass(frozen=True)
class Pairs:
    """Rows that both tiers have rated and neither has learnt from."""

    fast: np.ndarray
    """float64 (n, d)."""
    transformer: np.ndarray
    """float64 (n, d)."""

    def write(self, path: Path) -> None:
        """Write them as JSON, 4 decimals."""
        body = {name: np.round(scores, 4).tolist() for name, scores in asdict(self).items()}
        write_atomic(path, orjson.dumps(body) + b"\n")

    @classmethod
    def read(cls, path: Path) -> "Pairs":
        """Read what ``write`` wrote."""
        body = orjson.loads(path.read_bytes())
        return cls(*(np.array(body[name], np.float64) for name in ("fast", "transformer")))


@dataclass(frozen=True)
class Plan:
    """Which tier keeps a promise, and what that came to on the held-out rows."""

    tier: str
    """``fast``, ``cascade`` or ``transformer``: the cheapest that keeps it."""
    max_flips: float
    """The promise: largest share of decisions that differ from the transformer's."""
    limit: float
    """Rows whose chance of another subset is at most this are decided by the fast tier; below 0, none are."""
    fast_share: float
    """Share of the held-out rows that the fast tier decided."""
    flips: float
    """Share of all held-out decisions that differed."""
    flips_high: float
    """Upper end of its 95 % interval (Wilson)."""
    rows: int
    """Held-out rows."""


class Doubts:
    """How likely it is, by policy and fast scores, that the transformer would choose another subset."""

    def __init__(self, pairs: Pairs, policy: Decides, dimensions: Sequence[str]):
        self._policy, self._dimensions = policy, tuple(dimensions)
        self._low, self._high = pairs.transformer.min(0), pairs.transformer.max(0)
        bins = max(1, min(_BINS, len(pairs.fast) // _DRAWS))
        columns = range(pairs.fast.shape[1])
        self._edges = [np.quantile(pairs.fast[:, d], np.linspace(0, 1, bins + 1)[1:-1]) for d in columns]
        # Differences by size of the fast score: at the ends of the scale they go one way. Those of two dimensions are
        # combined at random, the same way in every run.
        order = np.random.default_rng(0)
        self._differences = np.empty((pairs.fast.shape[1], bins, _DRAWS))
        for d in columns:
            found = np.searchsorted(self._edges[d], pairs.fast[:, d], side="right")
            for place in range(bins):
                # Ties may leave a bin empty: then all rows speak for it.
                inside = found == place if (found == place).any() else np.ones(len(found), bool)
                spread = np.quantile((pairs.transformer - pairs.fast)[inside, d], (np.arange(_DRAWS) + 0.5) / _DRAWS)
                self._differences[d, place] = order.permutation(spread)

    def of(self, scores: np.ndarray) -> np.ndarray:
        """Chance of another subset by the transformer, float64 (n,), for fast scores (n, d)."""
        scores = np.asarray(scores, np.float64)
        blocks = [self._of_block(scores[start : start + _BLOCK]) for start in range(0, len(scores), _BLOCK)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def _of_block(self, scores: np.ndarray) -> np.ndarray:
        count, columns = scores.shape
        moved = np.empty((count, _DRAWS, columns))
        for d in range(columns):
            bins = np.searchsorted(self._edges[d], scores[:, d], side="right")
            moved[:, :, d] = scores[:, [d]] + self._differences[d, bins]
        np.clip(moved, self._low, self._high, out=moved)
        decided = self._policy.decide(scores, self._dimensions)
        others = self._policy.decide(moved.reshape(-1, columns), self._dimensions).reshape(count, _DRAWS)
        return (others != decided[:, None]).mean(1)


def plan_cascade(pairs: Pairs, policy: Decides, dimensions: Sequence[str], max_flips: float) -> Plan:
    """Find how much the fast tier may decide.

    Args:
        pairs: held-out rows; the more, the closer to the promise the plan can go.
        policy: what is decided.
        dimensions: names of the columns.
        max_flips: largest share of decisions that may differ from the transformer's, over 0 and below 1.

    Raises:
        EmpathyError: the promise is no such share, or the rows are too few to promise anything.
    """
    check_max_flips(max_flips)
    if (rows := len(pairs.fast)) < LEAST_PAIRS:
        raise EmpathyError(
            f"the scorer has {rows} held-out rows to calibrate a cascade on, {LEAST_PAIRS} are needed: distil it with more "
            "--dialogues, or use --tier transformer."
        )
    points = curve(pairs, policy, dimensions)
    kept = [point for point in points if point.flips_high <= max_flips]
    best = max(kept, key=lambda point: point.fast_share, default=None)
    if best is None or best.fast_share == 0:
        return Plan("transformer", max_flips, -1.0, 0.0, 0.0, wilson_high(0, rows), rows)
    tier = "fast" if best.fast_share == 1 else "cascade"
    return Plan(tier, max_flips, best.limit, best.fast_share, best.flips, best.flips_high, rows)


@dataclass(frozen=True)
class Point:
    """One way to share the rows out between the tiers."""

    limit: float
    fast_share: float
    flips: float
    flips_high: float


def curve(pairs: Pairs, policy: Decides, dimensions: Sequence[str]) -> list[Point]:
    """What each limit gives on the held-out rows, from nothing for the fast tier to everything."""
    doubts = Doubts(pairs, policy, dimensions).of(pairs.fast)
    differs = policy.decide(pairs.fast, dimensions) != policy.decide(pairs.transformer, dimensions)
    points, rows = [], len(doubts)
    for limit in np.unique(doubts):
        taken = doubts <= limit
        flipped = int(differs[taken].sum())
        points.append(Point(float(limit), float(taken.mean()), flipped / rows, wilson_high(flipped, rows)))
    return points


def check_max_flips(max_flips: float) -> None:
    """Raise EmpathyError unless it is a share over 0 and below 1."""
    if not 0 < max_flips < 1:
        raise EmpathyError(f"max_flips must be a share over 0 and below 1, such as 0.02, not {max_flips:g}.")


def wilson_high(count: int, rows: int) -> float:
    """Upper end of the 95 % interval of a share (Wilson 1927)."""
    share, z2 = count / rows, _Z**2
    middle = share + z2 / (2 * rows)
    half = _Z * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    return (middle + half) / (1 + z2 / rows)


def describe(plan: Plan) -> dict[str, Any]:
    """What the manifest says of a plan."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(plan).items()}
