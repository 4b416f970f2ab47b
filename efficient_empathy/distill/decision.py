"""The decision that scorers are calibrated for and measured by."""

from collections.abc import Callable

import numpy as np

from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.selection.policies import PaperPolicy

Decide = Callable[[np.ndarray], np.ndarray]


def decision_rule(scales: tuple[Scale, ...]) -> tuple[Decide, int, str]:
    """The decision that quality and parity are measured by.

    The paper's rule at the middle of the scale where there are a sensibility and a rationality of one scale; for another
    rubric, which side of the middle of its scale each dimension is on.

    Returns:
        The decision, (n, d) scores to (n,) classes; the number of classes; what it is called.
    """
    policy, names = _paper_rule(scales), tuple(scale.name for scale in scales)
    if policy is not None:
        return (lambda scores: policy.decide(scores, names)), 3, f"paper rule, T = {policy.threshold:g}"
    middles, bits = middles_of(scales), 1 << np.arange(len(scales))
    return (lambda scores: ((scores > middles) * bits).sum(1)), 1 << len(scales), "above or below each scale's middle"


def separate_decisions(scales: tuple[Scale, ...]) -> list[tuple[list[int], Decide]]:
    """The decisions that a calibration has to serve: the columns of each, and the decision on the scores of these.

    The paper's rule takes two dimensions together; every other dimension has a side of its middle for itself.
    """
    found: list[tuple[list[int], Decide]] = []
    alone = list(range(len(scales)))
    if _paper_rule(scales) is not None:
        both = [column for column in alone if scales[column].name in ("sensibility", "rationality")]
        found.append((both, decision_rule(tuple(scales[column] for column in both))[0]))
        alone = [column for column in alone if column not in both]
    return found + [([column], decision_rule((scales[column],))[0]) for column in alone]


def middles_of(scales: tuple[Scale, ...]) -> np.ndarray:
    """The middle of each scale, float (d,)."""
    return np.array([(scale.low + scale.high) / 2 for scale in scales])


def _paper_rule(scales: tuple[Scale, ...]) -> PaperPolicy | None:
    middles = {scale.name: (scale.low + scale.high) / 2 for scale in scales}
    threshold = middles.get("rationality")
    if threshold is None or middles.get("sensibility") != threshold:  # the rule has one threshold for both
        return None
    return PaperPolicy(float(threshold))
