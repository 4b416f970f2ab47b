"""The tables of an evaluation as text, and the cells that text and HTML share."""

from collections.abc import Iterator, Sequence
from statistics import stdev

from efficient_empathy.distill.quality import Figure
from efficient_empathy.experts.evaluation import Comparison, Evaluation, SystemFigure
from efficient_empathy.experts.metrics import COMPARABLE, FORM, LIKELIHOOD, PAPER
from efficient_empathy.scorer.summary import text_table

WIDTH = 110
LEVEL = 0.05
_MORE_DIGITS = ("scorer ", LIKELIHOOD)
_TITLES = {
    LIKELIHOOD: "likelihood of the references (lower is better)",
    PAPER: "the paper's metrics, by its definitions (times 100)",
    COMPARABLE: "comparable: sacreBLEU, and Dist adjusted for length (times 100)",
    FORM: "form (number of words; rates in percent)",
}

Table = tuple[str, list[list[str]]]
"""A title, and rows of cells with the header first."""


def text_report(evaluation: Evaluation) -> str:
    """All tables for a terminal of 110 columns, then what to be wary of."""
    parts = [_head(evaluation)]
    for title, rows in tables(evaluation):
        blocks = [text_table(block[0], block[1:]) for block in _narrow(rows)]
        parts.append("\n\n".join([f"{title}\n{blocks[0]}", *blocks[1:]]))
    if evaluation.warnings:
        parts.append("\n".join(f"! {warning}" for warning in evaluation.warnings))
    return "\n\n".join(parts)


def tables(evaluation: Evaluation) -> Iterator[Table]:
    """The figures by family, the spread over training seeds, and each system against the baseline."""
    yield from _figure_tables(evaluation)
    yield from _seed_table(evaluation)
    for system in dict.fromkeys(comparison.system for comparison in evaluation.comparisons):
        yield _comparison_table(evaluation, system)


def _head(evaluation: Evaluation) -> str:
    return (
        f"{evaluation.rows} answers in {evaluation.conversations} conversations; in brackets the 95 % interval, bootstrap over "
        f"conversations\n({evaluation.options.resamples} resamples, seed {evaluation.options.seed})"
    )


def _figure_tables(evaluation: Evaluation) -> Iterator[Table]:
    systems = list(evaluation.figures)
    for family, names in evaluation.families.items():
        rows = [["", *systems]]
        for name in names:
            found = [evaluation.figures[system].get(name) for system in systems]
            rows.append([name, *("-" if one is None else cell(one.figure, digits(family)) for one in found)])
        yield _TITLES.get(family, f"{family} (mean score)"), rows


def _seed_table(evaluation: Evaluation) -> Iterator[Table]:
    seeds = {system: max(len(one.seeds) for one in found.values()) for system, found in evaluation.figures.items()}
    systems = [system for system, count in seeds.items() if count > 1]
    if not systems:
        return
    rows = [["", *(f"{system} ({seeds[system]} seeds)" for system in systems)]]
    for family, names in evaluation.families.items():
        for name in names:
            found = [evaluation.figures[system].get(name) for system in systems]
            rows.append([name, *(_spread(one, digits(family)) for one in found)])
    yield "training seeds: lowest to highest (standard deviation)", rows


def _spread(figure: SystemFigure | None, places: int) -> str:
    if figure is None or len(figure.seeds) < 2:
        return "-"
    low, high, deviation = min(figure.seeds), max(figure.seeds), stdev(figure.seeds)
    return f"{low:.{places}f} to {high:.{places}f} ({deviation:.{places}f})"


def _comparison_table(evaluation: Evaluation, system: str) -> Table:
    several = any(
        len(figure.seeds) > 1 for name in (system, evaluation.baseline) for figure in evaluation.figures[name].values()
    )
    family_of = {name: family for family, names in evaluation.families.items() for name in names}
    rows = [["", "difference", "p", "Holm", "", *(["any two seeds"] if several else [])]]
    own = {comparison.metric: comparison for comparison in evaluation.comparisons if comparison.system == system}
    for comparison in (own[name] for name in family_of if name in own):
        places = digits(family_of[comparison.metric])
        row = [comparison.metric, cell(comparison.difference, places), _p(comparison.p), _p(comparison.holm)]
        row.append("*" if comparison.holm < LEVEL else "")
        rows.append(row + ([_any_two(comparison, places)] if several else []))
    title = (
        f"{system} less {evaluation.baseline}, on the same conversations (* Holm-corrected p < {LEVEL} among "
        f"{len(evaluation.comparisons)} comparisons)"
    )
    return title, rows


def _any_two(comparison: Comparison, places: int) -> str:
    return f"{comparison.seed_low:+.{places}f} to {comparison.seed_high:+.{places}f}"


def cell(figure: Figure, places: int) -> str:
    """A figure with its interval."""
    return f"{figure.value:.{places}f} [{figure.low:.{places}f}, {figure.high:.{places}f}]"


def digits(family: str) -> int:
    """Decimal places that the figures of a family are shown with."""
    return 3 if family.startswith(_MORE_DIGITS) else 2


def _p(value: float) -> str:
    return f"{value:.4f}"


def _narrow(rows: Sequence[Sequence[str]]) -> Iterator[list[list[str]]]:
    """The table cut into blocks of columns that fit, each with the names again."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    start = 1
    while start < len(widths):
        stop, used = start + 1, widths[0] + 2 + widths[start]
        while stop < len(widths) and used + 2 + widths[stop] <= WIDTH:
            used += 2 + widths[stop]
            stop += 1
        yield [[row[0], *row[start:stop]] for row in rows]
        start = stop
