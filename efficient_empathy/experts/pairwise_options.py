"""The options of pairwise judging: one object for Python, the command line, the YAML file and the manifest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from efficient_empathy.distill.judge_options import ASKING_OPTIONS, Options, gather, judge_option
from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.ranges import within

_MOST = 1_000_000


@dataclass(frozen=True)
class PairwiseOptions:
    """Who compares replies, by what, and on how many contexts."""

    judging: JudgeOptions
    """Who judges and for how much money; its ``seed`` draws the contexts. Its rubric and budget are for labels only."""
    criteria: str | None = None
    """A YAML file of criteria, or the criteria in words; None for empathy."""
    pairs: int = 200
    """Contexts to compare the systems on, 1 to a million; drawn by seed, spread over as many conversations as possible."""
    resamples: int = 1000
    """Bootstrap resamples of the conversations for the intervals, 1 to a million."""

    def __post_init__(self) -> None:
        within("pairs", self.pairs, 1, _MOST)
        within("resamples", self.resamples, 1, _MOST)


_PAIR_OPTIONS: Options = {
    "criteria": click.option(
        "--criteria",
        metavar="FILE|TEXT",
        help="What makes one reply better: a YAML file, or the words themselves.  [default: empathy]",
    ),
    "pairs": click.option(
        "--pairs",
        type=click.IntRange(1, _MOST),
        default=PairwiseOptions.pairs,
        show_default=True,
        help="Contexts that the judge compares answers on; drawn by --seed, spread over conversations.",
    ),
}


def pairwise_options() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of pairwise judging to a command that has ``--seed`` and may have ``--resamples``.

    The command gets them as one argument, ``pairing``: a ``PairwiseOptions`` or, where no judge was named, None.
    """

    def build(own: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        pair = {name: own.pop(name) for name in _PAIR_OPTIONS}
        if own["judge"] is None:
            return {"pairing": None}
        more = {"resamples": values["resamples"]} if "resamples" in values else {}
        return {"pairing": PairwiseOptions(JudgeOptions(**own, seed=values["seed"]), **pair, **more)}

    decorate: Callable[[Callable[..., Any]], Callable[..., Any]] = gather(
        {**judge_option(required=False), **_PAIR_OPTIONS, **ASKING_OPTIONS}, build
    )
    return decorate
