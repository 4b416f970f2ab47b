"""Pairwise judging as a section of an evaluation: text for people, facts for machines."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.distill.asking import Progress
from efficient_empathy.distill.quality import Figure
from efficient_empathy.experts.pairwise import PairwisePlan, PairwiseReport, compare_all, plan_pairs
from efficient_empathy.experts.pairwise_figures import PairwiseResult
from efficient_empathy.experts.pairwise_options import PairwiseOptions
from efficient_empathy.experts.pairwise_pairs import Systems


@dataclass(frozen=True)
class PairwiseSection:
    """What a command shows of it."""

    text: str
    facts: dict[str, Any]
    """The same and more, as JSON can hold it."""


def pairwise_section(
    systems: Systems,
    options: PairwiseOptions,
    out: Path,
    baseline: str | None = None,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> PairwiseSection:
    """Judge the systems' answers in pairs, or say what that would cost; see ``pairwise.compare_all``.

    Args:
        systems: the answers folders by the systems' names.
        options: who judges, by what, and on how many contexts.
        out: the folder of the verdicts.
        baseline: the system that the others are compared with; None takes the first.
        dry_run: count and estimate only.
        progress: called after each answer of the judge.
    """
    if dry_run:
        plan = plan_pairs(systems, options, out, baseline)
        return PairwiseSection(_plan_text(plan, options), asdict(plan))
    report = compare_all(systems, options, out, baseline, progress)
    return PairwiseSection(report_text(report), report.to_dict())


def report_text(report: PairwiseReport) -> str:
    """One block of lines a comparison, and what it cost."""
    head = f"pairwise judging by {report.judge['name']}, each pair in both orders; criteria: {report.criteria['name']}"
    cost = "dollars not known" if report.usd is None else f"${report.usd:.4f}"
    tail = (
        f"{report.asked} questions asked now; in all {report.prompt_tokens} + {report.completion_tokens} tokens, {cost}"
    )
    return "\n\n".join([head, *(_result_text(result) for result in report.results), tail])


def _result_text(result: PairwiseResult) -> str:
    counts = {"win": result.wins, "tie": result.ties, "lose": result.losses}
    shares = ", ".join(f"{name} {count} ({_percent(_ratio(count, result.scored))})" for name, count in counts.items())
    rows = [
        ("verdicts", shares),
        ("win rate, ties as half", _figure(result.win_rate)),
        ("the same at equal length", _figure(result.length_controlled)),
        ("sign test without ties", f"{_p(result.sign_test)} (Holm: {_p(result.sign_test_holm)})"),
        ("changed with the order", _percent(result.flip_rate)),
        ("won by the one shown first", _percent(result.first_place)),
        ("won by the longer one", _percent(result.longer_wins)),
        ("mean length, characters", " against ".join(f"{length:.0f}" for length in result.mean_lengths)),
        (f"{result.first} is longer in", _percent(result.first_longer)),
        ("equal replies, not asked", f"{result.identical} of {result.pairs}"),
    ]
    if any(result.empty):
        rows.append(("empty replies", " against ".join(str(count) for count in result.empty)))
    if result.unscored:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result.unscored.items())
        rows.append(("unscored", f"{sum(result.unscored.values())} ({reasons})"))
    if result.not_asked:
        rows.append(("not asked", f"{result.not_asked}: --max-usd was reached; raise it and run again to go on"))
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{result.first} against {result.second}: {result.pairs} pairs, {result.scored} scored"]
    return "\n".join(lines + [f"  {name:<{width}}{value}" for name, value in rows])


def _plan_text(plan: PairwisePlan, options: PairwiseOptions) -> str:
    asking = plan.asking
    if asking.usd is None:
        usd = f"not known: no price for '{options.judging.judge}' at this address; see --prices"
    else:
        usd = f"about {asking.usd:.4f}"
    rows = [
        ("comparisons", str(plan.comparisons)),
        ("pairs", f"{plan.pairs}, {plan.identical} of equal replies, which are not asked about"),
        ("already answered", str(asking.stored)),
        ("calls", f"{asking.calls}, two a pair"),
        ("prompt tokens", f"about {asking.prompt_tokens}"),
        ("completion tokens", f"about {asking.completion_tokens}"),
        ("dollars", usd),
    ]
    return "\n".join(f"{name:<20}{value}" for name, value in rows)


def _ratio(count: int, total: int) -> float | None:
    return count / total if total else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{_percent(figure.value)} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def _p(value: float | None) -> str:
    return "-" if value is None else f"p = {value:.3g}"
