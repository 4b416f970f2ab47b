"""A policy's decision about one example in words, and what would change it."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from efficient_empathy.selection.expressions import name_table, parse
from efficient_empathy.selection.policies import ExpressionPolicy, PaperPolicy, Policy

_STEPS = 1000
"""A scale is looked through in so many steps: hundredths where it runs from 0 to 10."""


@dataclass(frozen=True)
class Move:
    """The nearest other score that would put the example elsewhere."""

    dimension: str
    score: float
    boundary: float
    """Where the subset changes; whether it changes at this very score is the policy's to say."""
    distance: float
    subset: str
    """Where it would be beyond."""


def decide(policy: Policy, scores: Mapping[str, float]) -> str:
    """The subset that a policy gives one example."""
    index = policy.decide(np.asarray([list(scores.values())], np.float64), list(scores))[0]
    return policy.subsets[int(index)]


def why(policy: Policy, scores: Mapping[str, float]) -> str:
    """The policy in words, with the example's numbers put in."""
    if isinstance(policy, ExpressionPolicy):
        return "; ".join(_expression_words(policy, scores))
    rest = f"all other examples are {decide(policy, scores)}"
    s, r, t = scores["sensibility"], scores["rationality"], policy.threshold
    numbers = f"sensibility {s:g} {_relation(s, t)} {t:g} and rationality {r:g} {_relation(r, t)} {t:g}"
    if t in (s, r):
        return f"{numbers}: a tie at the threshold is on neither side, and {rest}"
    if s > t and r > t:
        return f"{numbers}: high on both, and {rest}"
    if s < t and r < t:
        return f"{numbers}: low on both, and {rest}"
    return numbers


def _relation(value: float, threshold: float) -> str:
    return ">" if value > threshold else "<" if value < threshold else "="


def _expression_words(policy: ExpressionPolicy, scores: Mapping[str, float]) -> list[str]:
    names = list(scores)
    values = np.asarray([list(scores.values())], np.float64)
    words = []
    for subset, text in policy.expressions.items():
        holds = bool(parse(text).matches(values, names)[0])
        filled = " ".join(text.split())
        for name, column in name_table(names).items():
            filled = re.sub(rf"\b{re.escape(name)}\b", f"{name} {values[0, column]:g}", filled)
        words.append(f"{subset} ({filled}): {'yes' if holds else 'no'}")
        if holds:
            return words
    return [*words, f"none holds, so {policy.subsets[-1]}"]


def nearest_moves(policy: Policy, scores: Mapping[str, float], scales: Mapping[str, tuple[float, float]]) -> list[Move]:
    """For each dimension the nearest score that would change the subset; the nearest of all first.

    Args:
        policy: what decided.
        scores: of the example, by dimension.
        scales: lowest and highest score of each dimension.
    """
    names, own = list(scores), decide(policy, scores)
    moves = []
    for column, name in enumerate(names):
        low, high = scales[name]
        grid = np.round(np.linspace(low, high, _STEPS + 1), 6)
        rows = np.tile(np.asarray(list(scores.values()), np.float64), (len(grid), 1))
        rows[:, column] = grid
        decision = policy.decide(rows, names)
        other = np.flatnonzero(decision != policy.subsets.index(own))
        if not len(other):
            continue
        nearest = other[np.argmin(np.abs(grid[other] - scores[name]))]
        boundary = _boundary(policy, scores, name, float(grid[nearest]))
        subset = policy.subsets[int(decision[nearest])]
        moves.append(Move(name, scores[name], boundary, round(abs(boundary - scores[name]), 4), subset))
    return sorted(moves, key=lambda move: move.distance)


def _boundary(policy: Policy, scores: Mapping[str, float], name: str, other: float) -> float:
    """Where the subset changes between an example's score and another one, by halving the way between them."""
    own, same = decide(policy, scores), scores[name]
    for _ in range(40):
        middle = (same + other) / 2
        if decide(policy, {**scores, name: middle}) == own:
            same = middle
        else:
            other = middle
    return round(other, 4)


def at_thresholds(
    policy: Policy, scores: Mapping[str, float], scales: Mapping[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    """The subset at every threshold inside the scale, as ranges ``from``, ``to`` (both left out); empty without a threshold."""
    if not isinstance(policy, PaperPolicy):
        return []
    values = [scores[name] for name in ("sensibility", "rationality")]
    low = max(scales[name][0] for name in ("sensibility", "rationality"))
    high = min(scales[name][1] for name in ("sensibility", "rationality"))
    ends = sorted({low, high, *(value for value in values if low < value < high)})
    ranges: list[dict[str, Any]] = []
    for start, stop in itertools.pairwise(ends):
        subset = decide(type(policy)((start + stop) / 2), scores)
        if ranges and ranges[-1]["subset"] == subset:
            ranges[-1]["to"] = stop
        else:
            ranges.append({"from": start, "to": stop, "subset": subset})
    return ranges


def threshold_words(ranges: Sequence[Mapping[str, Any]]) -> str:
    """Ranges of the threshold as one line."""
    if len(ranges) == 1:
        return f"{ranges[0]['subset']} at every threshold"
    last = len(ranges) - 1
    words = []
    for index, found in enumerate(ranges):
        start, stop = f"{found['from']:g}", f"{found['to']:g}"
        where = f"below {stop}" if index == 0 else f"above {start}" if index == last else f"between {start} and {stop}"
        words.append(f"{where} {found['subset']}")
    return "; ".join(words)
