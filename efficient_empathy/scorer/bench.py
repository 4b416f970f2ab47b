"""What each tier and precision of a scorer folder costs on this machine, and how far it is from the fp32 transformer."""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from efficient_empathy.dialogues.types import Example
from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError
from efficient_empathy.ranges import within
from efficient_empathy.scorer.artifact import read_artifact
from efficient_empathy.scorer.cascade import DEFAULT_MAX_FLIPS, check_max_flips
from efficient_empathy.scorer.job import Route
from efficient_empathy.scorer.ranks import spearman
from efficient_empathy.scorer.scorer import CASCADE, Scorer, can_cascade
from efficient_empathy.scorer.tiers import FAST, TRANSFORMER

_WARM_UP = 64
_REFERENCE = (TRANSFORMER, "fp32")


@dataclass(frozen=True)
class BenchOptions:
    """How to measure."""

    device: str = "auto"
    """One of ``DEVICES``."""
    threads: int | None = None
    """Threads that compute, on CPUs a batch each; None takes all usable cores."""
    rounds: int = 3
    """Passes over the examples; the median counts. 1 to 100."""
    usd_per_hour: float | None = None
    """What the machine costs; None leaves dollars out."""
    max_flips: float = DEFAULT_MAX_FLIPS
    """The cascade's promise, and the most flips of what is recommended."""

    def __post_init__(self) -> None:
        within("rounds", self.rounds, 1, 100)
        if self.usd_per_hour is not None and not 0 <= self.usd_per_hour < float("inf"):
            raise EmpathyError(f"usd_per_hour must be a price of at least 0, not {self.usd_per_hour}.")
        check_max_flips(self.max_flips)


@dataclass(frozen=True)
class Measured:
    """One tier in one precision."""

    tier: str
    precision: str
    examples_per_second: float
    """Median of the rounds; text to scores, in one process."""
    tokens_per_second: float | None
    """Of the transformer, without padding; None for the fast tier."""
    padding_share: float | None
    """Share of the computed tokens that was padding."""
    rss_mb: float | None
    """Largest resident memory of a process that did nothing else, with the examples; None where the system does not say."""
    spearman: tuple[float, ...]
    """With the fp32 transformer, for each dimension."""
    flips: float
    """Share of decisions that differ from the fp32 transformer's."""
    fast_share: float | None
    """Share of the rows that the fast tier decided, in a cascade."""
    usd_per_million: float | None
    """Dollars for a million examples."""


def bench(
    folder: Path,
    examples: Sequence[Example],
    policy: Route,
    options: BenchOptions,
    told: Callable[[str], None] = lambda line: None,
) -> list[Measured]:
    """Measure all that a scorer folder offers, each in a process of its own.

    Args:
        folder: the scorer folder.
        examples: the user's rows, some hundred at least.
        policy: what is decided.
        options: how to measure.
        told: hears what is being measured.

    Raises:
        EmpathyError: no examples, a folder that is none, or a tier that cannot run.
    """
    if not examples:
        raise EmpathyError("there are no examples to measure on; name a file of dialogues with listener turns.")
    spec, _ = read_artifact(folder)
    policy.check(tuple(scale.name for scale in spec.dimensions), {s.name: (s.low, s.high) for s in spec.dimensions})
    kinds = [(tier, precision) for tier, files in spec.tiers.items() for precision in files]
    if can_cascade(spec):
        kinds.append((CASCADE, "int8" if "int8" in spec.tiers[TRANSFORMER] else "fp32"))
    kinds.sort(key=lambda kind: kind != _REFERENCE)
    found: list[Measured] = []
    reference: np.ndarray | None = None
    for number, (tier, precision) in enumerate(kinds, 1):
        told(f"{number} of {len(kinds)}: {tier} {precision}, {len(examples)} examples, {options.rounds} times")
        given = _in_own_process(folder, tier, precision, examples, policy, options)
        if reference is None:
            reference = given["scores"]
        found.append(_figures(tier, precision, given, reference, policy, spec, options))
    return found


def recommend(found: Sequence[Measured], max_flips: float) -> Measured:
    """The fastest whose decisions differ from the fp32 transformer's by no more than a share; that transformer always fits."""
    fitting = [one for one in found if one.flips <= max_flips or (one.tier, one.precision) == _REFERENCE]
    return max(fitting, key=lambda one: one.examples_per_second)


def _figures(
    tier: str,
    precision: str,
    given: dict[str, Any],
    reference: np.ndarray,
    policy: Route,
    spec: Any,
    options: BenchOptions,
) -> Measured:
    names = tuple(scale.name for scale in spec.dimensions)
    scores = given["scores"]
    rate = len(scores) / statistics.median(given["seconds"])
    seconds = statistics.median(given["seconds"])
    real, computed = given["tokens"]
    price = options.usd_per_hour
    return Measured(
        tier=tier,
        precision=precision,
        examples_per_second=rate,
        tokens_per_second=real / len(given["seconds"]) / seconds if real else None,
        padding_share=1 - real / computed if computed else None,
        rss_mb=given["rss_mb"],
        spearman=tuple(_agreement(scores[:, d], reference[:, d]) for d in range(scores.shape[1])),
        flips=float((policy.decide(scores, names) != policy.decide(reference, names)).mean()),
        fast_share=given["fast_share"],
        usd_per_million=None if price is None else price / 3600 * 1e6 / rate,
    )


def _agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Spearman's rank correlation; equal scores agree also where they are constant."""
    return 1.0 if np.array_equal(found, expected) else spearman(found, expected)


def _in_own_process(
    folder: Path, tier: str, precision: str, examples: Sequence[Example], policy: Route, options: BenchOptions
) -> dict[str, Any]:
    # Spawned, so that its memory is its own; see also workers.py.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    work = (theirs, folder, tier, precision, list(examples), policy, options)
    process = context.Process(target=_measure, args=work, daemon=True)
    process.start()
    theirs.close()
    try:
        given = ours.recv()
    except EOFError:
        process.join()
        raise EmpathyError(
            f"measuring {tier} {precision} ended with exit code {process.exitcode}; fewer --limit examples need less memory."
        ) from None
    process.join()
    if isinstance(given, str):
        raise EmpathyError(given)
    return given


def _measure(
    connection: Connection,
    folder: Path,
    tier: str,
    precision: str,
    examples: Sequence[Example],
    policy: Route,
    options: BenchOptions,
) -> None:
    try:
        scorer = Scorer.load(
            folder,
            device=options.device,
            precision="auto" if tier == FAST else precision,
            tier=tier,
            threads=options.threads or usable_cores(),
            policy=policy,
            max_flips=options.max_flips,
        )
        scorer.score(examples[:_WARM_UP])
    except EmpathyError as error:
        connection.send(str(error))
        return
    before, seconds = scorer.tokens, []
    for _ in range(options.rounds):
        begin = time.perf_counter()
        rated = scorer.rate(examples)
        seconds.append(time.perf_counter() - begin)
    tokens = scorer.tokens - before
    by = rated.by_transformer
    connection.send(
        {
            "scores": rated.scores,
            "seconds": seconds,
            "tokens": (tokens.real, tokens.computed),
            "fast_share": None if by is None else float(1 - by.mean()),
            "rss_mb": _rss_mb(),
        }
    )


def _rss_mb() -> float | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    # Linux counts kilobytes, macOS bytes.
    return round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1
    )
