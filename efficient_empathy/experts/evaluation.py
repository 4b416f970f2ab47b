"""Comparing systems by their saved answers: figures with intervals, paired differences, and what to be wary of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from efficient_empathy.distill.quality import Figure
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.answer_folders import AnswerFolder, aligned, read_answers
from efficient_empathy.experts.cautions import cautions
from efficient_empathy.experts.runs import REFERENCE, Run, ScorerLike, measured
from efficient_empathy.experts.statistics import Draws, draw, holm, interval, p_value
from efficient_empathy.ranges import within


@dataclass(frozen=True)
class EvaluateOptions:
    """How systems are compared."""

    baseline: str | None = None
    """The system that the others are compared with; None takes the first."""
    resamples: int = 1000
    """How often the conversations are drawn."""
    seed: int = 0
    """Of the drawing."""
    compare: tuple[str, ...] = ()
    """Figures to compare, by name or pattern such as ``paper/*``; () compares all. Holm counts these alone."""

    def __post_init__(self) -> None:
        within("resamples", self.resamples, 20, 100_000)
        within("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class SystemFigure:
    """A figure of a system: the mean over its training seeds."""

    figure: Figure
    """Its interval is over conversations, the seeds being as they are."""
    rows: int
    """Rows that count for it; the fewest of all seeds."""
    seeds: tuple[float, ...]
    """The figure of each training seed: their spread is the other half of the uncertainty."""


@dataclass(frozen=True)
class Comparison:
    """A system's figure less the baseline's, on the same conversations."""

    system: str
    metric: str
    difference: Figure
    p: float
    """Of this comparison alone."""
    holm: float
    """Corrected for all comparisons of the evaluation."""
    seed_low: float
    """The least difference between any training seed of the one and any of the other."""
    seed_high: float
    """The greatest."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found."""

    baseline: str
    options: EvaluateOptions
    families: Mapping[str, tuple[str, ...]]
    """The figures' names, by the block of the table that they stand in."""
    figures: Mapping[str, Mapping[str, SystemFigure]]
    """By system, then by name. ``reference`` is what people answered."""
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]
    rows: int
    conversations: int
    folders: Mapping[str, Sequence[AnswerFolder]] = field(repr=False)
    runs: tuple[Run, ...] = field(repr=False)


def evaluate(
    systems: Mapping[str, Sequence[Path]],
    options: EvaluateOptions | None = None,
    scorers: Mapping[str, ScorerLike] | None = None,
) -> Evaluation:
    """Compare systems by the answers that they gave to the same contexts.

    Args:
        systems: the answers folders of each system, one a training seed; their order is that of the tables.
        options: the baseline, and how often conversations are drawn.
        scorers: judges of the answers, by the name that their figures carry: ``NAME/dimension``.

    Raises:
        EmpathyError: a folder was changed, systems answered other contexts, or a name is unknown.
    """
    options, scorers = options or EvaluateOptions(), scorers or {}
    baseline = _checked(systems, options)
    folders = _read(systems)
    first = folders[baseline][0]
    draws = draw([answer.dialogue_id for answer in first.answers], options.resamples, options.seed)
    runs = [
        measured(name, seed, folder.answers, [answer.text for answer in folder.answers], scorers)
        for name, found in folders.items()
        for seed, folder in enumerate(found)
    ]
    if any(answer.reference is not None for answer in first.answers):
        runs.append(measured(REFERENCE, 0, first.answers, [answer.reference for answer in first.answers], scorers))
    values = _values(runs, draws)
    comparisons = _compare(values, baseline, _chosen(runs, options), draws.times.shape[1])
    conversations = draws.times.shape[1]
    warnings = cautions(folders, scorers, len(comparisons), options.resamples, conversations)
    return Evaluation(
        baseline=baseline,
        options=options,
        families=_families(runs),
        figures=_figures(runs, values),
        comparisons=comparisons,
        warnings=tuple(dict.fromkeys(warnings)),
        rows=len(first.answers),
        conversations=conversations,
        folders=folders,
        runs=tuple(runs),
    )


def _checked(systems: Mapping[str, Sequence[Path]], options: EvaluateOptions) -> str:
    if not systems or not all(systems.values()):
        raise EmpathyError(
            "no answers folder was given; make one with: ee-cli generate --model MODEL … -o answers/NAME"
        )
    if REFERENCE in systems:
        raise EmpathyError(f"a system cannot be called '{REFERENCE}': that is what people answered. Write NAME=FOLDER.")
    baseline = options.baseline or next(iter(systems))
    if baseline not in systems:
        raise EmpathyError(f"there is no system '{baseline}' to be the baseline; there are: {', '.join(systems)}.")
    return baseline


def _read(systems: Mapping[str, Sequence[Path]]) -> dict[str, list[AnswerFolder]]:
    flat = aligned([read_answers(folder) for folders in systems.values() for folder in folders])
    taken = iter(flat)
    return {name: [next(taken) for _ in folders] for name, folders in systems.items()}


_Values = dict[str, dict[str, list[np.ndarray]]]
"""By system and figure: one array (1 + R,) a training seed."""


def _values(runs: Sequence[Run], draws: Draws) -> _Values:
    values: _Values = {}
    for run in runs:
        of_system = values.setdefault(run.system, {})
        for name, measure in run.measures.items():
            of_system.setdefault(name, []).append(measure.values(draws))
    return values


def _families(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    families: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, measure in run.measures.items():
            families.setdefault(measure.family, {})[name] = None
    return {family: tuple(names) for family, names in families.items()}


def _figures(runs: Sequence[Run], values: _Values) -> dict[str, dict[str, SystemFigure]]:
    figures: dict[str, dict[str, SystemFigure]] = {}
    for system, of_system in values.items():
        own = [run for run in runs if run.system == system]
        figures[system] = {}
        for name, seeds in of_system.items():
            measures = [run.measures[name] for run in own if name in run.measures]
            figures[system][name] = SystemFigure(
                interval(np.mean(seeds, axis=0), measures[0].recentred),
                min(measure.rows for measure in measures),
                tuple(float(seed[0]) for seed in seeds),
            )
    return figures


def _chosen(runs: Sequence[Run], options: EvaluateOptions) -> dict[str, bool]:
    """The figures to compare, and whether their interval is recentred."""
    known = {name: measure.recentred for run in runs for name, measure in run.measures.items()}
    for pattern in options.compare:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise EmpathyError(f"no figure is called '{pattern}'; there are: {', '.join(known)}.")
    patterns = options.compare or ("*",)
    return {name: flag for name, flag in known.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _compare(values: _Values, baseline: str, chosen: Mapping[str, bool], conversations: int) -> tuple[Comparison, ...]:
    pairs = [
        (system, name)
        for system, found in values.items()
        for name in chosen
        if system not in (baseline, REFERENCE) and name in found and name in values[baseline]
    ]
    differences = [np.mean(values[s][name], axis=0) - np.mean(values[baseline][name], axis=0) for s, name in pairs]
    p_values = [p_value(difference, conversations) for difference in differences]
    found = []
    for (system, name), difference, p, corrected in zip(pairs, differences, p_values, holm(p_values), strict=True):
        ours, theirs = ([float(seed[0]) for seed in values[s][name]] for s in (system, baseline))
        found.append(
            Comparison(
                system=system,
                metric=name,
                difference=interval(difference, chosen[name]),
                p=p,
                holm=corrected,
                seed_low=min(ours) - max(theirs),
                seed_high=max(ours) - min(theirs),
            )
        )
    return tuple(found)
