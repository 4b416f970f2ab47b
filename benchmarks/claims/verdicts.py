"""From differences to words. The rules were set before two of three seeds were run; nothing here knows a result.

A difference is *better* or *worse* when it comes from three seeds or more, its 95 % interval excludes 0, and its p-value does
after Holm's correction for all that is tested. It is *small* when its whole interval lies within the figure's margin, *large*
when the interval lies wholly outside and the corrected p-value is small too. Anything else has not been shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from claims.pooling import DECIDING, Metric

SEEDS, LEVEL = 3, 0.05
HELD, FAILED, OPEN = "held", "did not hold", "cannot tell"
FEW = "too few seeds"


@dataclass(frozen=True)
class Verdict:
    """A word, and what it follows from."""

    word: str
    why: str


def finding(one: dict, metric: Metric) -> str:
    """What one deciding comparison shows of a claim that something is better."""
    if len(one["seeds"]) < SEEDS:
        return FEW
    if not _shown(one) or one["low"] <= 0 <= one["high"]:
        return "not shown"
    return "better" if one["value"] * metric.better > 0 else "worse"


def size(one: dict, metric: Metric) -> str:
    """What one deciding comparison shows of a claim that something changes little."""
    assert metric.margin is not None
    if len(one["seeds"]) < SEEDS:
        return FEW
    if -metric.margin < one["low"] and one["high"] < metric.margin:
        return "small"
    outside = one["low"] > metric.margin or one["high"] < -metric.margin
    return "large" if outside and _shown(one) else "not shown"


def _shown(one: dict) -> bool:
    return one["holm"] <= LEVEL


def superior(comparisons: Sequence[dict]) -> Verdict:
    """Whether a system is better than each system that it is compared with."""
    if early := _early(comparisons):
        return early
    words, reasons = [], []
    for baseline in dict.fromkeys(one["baseline"] for one in comparisons):
        found = _by_word(comparisons, baseline, finding)
        if bool(found["better"]) == bool(found["worse"]):
            words.append(OPEN)
        else:
            words.append(HELD if found["better"] else FAILED)
        reasons.append(f"against {baseline}, {_told(found)}")
    return Verdict(_joined(words), "; ".join(reasons))


def robust(comparisons: Sequence[dict]) -> Verdict:
    """Whether every other threshold changes each figure by less than its margin."""
    if early := _early(comparisons):
        return early
    words, reasons = [], []
    for system in dict.fromkeys(one["system"] for one in comparisons):
        own = [one for one in comparisons if one["system"] == system]
        found = _by_word(own, own[0]["baseline"], size)
        words.append(FAILED if found["large"] else OPEN if found["not shown"] else HELD)
        reasons.append(f"{system}: {_told(found)}")
    return Verdict(_joined(words), "; ".join(reasons))


def verdict(claim: str, comparisons: Sequence[dict]) -> Verdict:
    """The verdict on a claim, ``a``, ``b`` or ``c``, from all comparisons of a run."""
    names = {metric.name for metric in DECIDING}
    own = [one for one in comparisons if one["claim"] == claim and one["metric"] in names]
    return (robust if claim == "b" else superior)(own)


def _early(comparisons: Sequence[dict]) -> Verdict | None:
    if not comparisons:
        return Verdict(OPEN, "nothing was compared")
    seeds = min(len(one["seeds"]) for one in comparisons)
    if seeds < SEEDS:
        return Verdict(OPEN, f"{seeds} of the {SEEDS} seeds that a verdict needs")
    return None


def _by_word(comparisons: Sequence[dict], baseline: str, rule) -> dict[str, list[str]]:
    labels = {metric.name: metric for metric in DECIDING}
    found: dict[str, list[str]] = {word: [] for word in ("better", "worse", "small", "large", "not shown")}
    for one in comparisons:
        if one["baseline"] == baseline:
            metric = labels[one["metric"]]
            found[rule(one, metric)].append(metric.label)
    return found


def _told(found: dict[str, list[str]]) -> str:
    return ", ".join(f"{word} in {' and '.join(labels)}" for word, labels in found.items() if labels)


def _joined(words: Sequence[str]) -> str:
    """A claim holds where it holds everywhere, and does not hold where it fails anywhere."""
    if FAILED in words:
        return FAILED
    return HELD if set(words) == {HELD} else OPEN
