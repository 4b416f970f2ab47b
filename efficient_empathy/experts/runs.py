"""One answers folder with its figures: texts, likelihoods, and what scorers make of the answers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from efficient_empathy.dialogues.types import Example
from efficient_empathy.experts.answer_folders import Answer
from efficient_empathy.experts.measures import Measure, mean_measure
from efficient_empathy.experts.metrics import FORM, Texts, likelihood_measures, text_measures

_log = logging.getLogger(__name__)

REFERENCE = "reference"
"""Stands as a system for what people answered."""


class ScorerLike(Protocol):
    """What is asked of a scorer; ``efficient_empathy.Scorer`` is one."""

    digest: str
    precision: str

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the score columns."""

    @property
    def scales(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest score of each dimension."""

    def score(self, examples: Sequence[Example]) -> np.ndarray:
        """Scores of some examples, (n, d)."""


@dataclass(frozen=True)
class Run:
    """One answers folder with its figures."""

    system: str
    seed: int
    """Its place among the folders of the system, from 0."""
    answers: tuple[Answer, ...]
    texts: tuple[str | None, ...]
    measures: Mapping[str, Measure]


def measured(
    system: str, seed: int, answers: Sequence[Answer], texts: Sequence[str | None], scorers: Mapping[str, ScorerLike]
) -> Run:
    """Every figure of one set of answers.

    Args:
        system: its name.
        seed: which of the system's folders it is.
        answers: the rows of the folder.
        texts: what to measure: the answers or, for ``reference``, what people answered; None where there is nothing.
        scorers: judges of the answers, by name.
    """
    _log.info("measuring %s (folder %d): %d rows", system, seed + 1, len(answers))
    references = [answer.reference for answer in answers]
    contexts = [answer.context for answer in answers]
    if system == REFERENCE:
        found = text_measures(Texts(contexts, [None] * len(answers), texts))
    else:
        nll, tokens = [answer.nll for answer in answers], [answer.nll_tokens for answer in answers]
        found = [
            *likelihood_measures(nll, tokens, references),
            *text_measures(Texts(contexts, references, texts)),
            *mean_measure("cut_rate", FORM, np.array([answer.cut for answer in answers], np.float64), 100),
        ]
    for name, scorer in scorers.items():
        _log.info("scoring %s with %s", system, name)
        found += _scored(name, scorer, answers, texts)
    return Run(system, seed, tuple(answers), tuple(texts), {measure.name: measure for measure in found})


def _scored(name: str, scorer: ScorerLike, answers: Sequence[Answer], texts: Sequence[str | None]) -> list[Measure]:
    """Mean score of each dimension. An empty answer has nothing to be scored: it is left out, not given a number."""
    rows = [(row, text) for row, text in enumerate(texts) if text is not None and text.strip()]
    examples = [
        Example(answers[row].id, answers[row].dialogue_id, len(answers[row].context), answers[row].context, text)
        for row, text in rows
    ]
    scores = np.full((len(texts), len(scorer.dimensions)), np.nan)
    if rows:
        scores[[row for row, _ in rows]] = np.round(scorer.score(examples).astype(np.float64), 4)
    return [
        measure
        for column, dimension in enumerate(scorer.dimensions)
        for measure in mean_measure(f"{name}/{dimension}", f"scorer {name}", scores[:, column])
    ]
