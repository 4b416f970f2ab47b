"""Rates one unit: reads it, scores it in chunks, routes each example, and commits its files."""

import contextlib
import functools
import gc
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from efficient_empathy.dialogues import Reject, Row, Unit, read_examples
from efficient_empathy.dialogues.records import reject_line
from efficient_empathy.dialogues.types import Example
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import versions
from efficient_empathy.scorer import runfolder
from efficient_empathy.scorer.chunks import Chunk
from efficient_empathy.scorer.job import VERSIONED, Job, RatesExamples, Route, folders_of
from efficient_empathy.scorer.outputs import JsonlPart, Part
from efficient_empathy.scorer.results import UnitResult
from efficient_empathy.scorer.scorer import Rated, Scorer
from efficient_empathy.scorer.tiers import FAST, TRANSFORMER

_DECIMALS = 4
_OBJECTS_A_COLLECTION = 200_000
_PROCESS = secrets.token_hex(4)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Let the garbage collector look seldom: a chunk's many objects hold no cycles, and looking for them took an eighth."""
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(max(before[0], _OBJECTS_A_COLLECTION), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_few_collections()
def rate_unit(
    job: Job,
    unit: Unit,
    scorer: RatesExamples,
    route: Route | None,
    on_chunk: Callable[[Mapping[str, int]], None] | None = None,
) -> UnitResult:
    """Rate one unit and write its files and, last of all, the record that makes it done.

    It depends on nothing that another unit does, so units may be rated in any order and anywhere.
    """
    subsets = folders_of(route)
    result = UnitResult.of(unit, subsets, len(scorer.dimensions))
    rejects = JsonlPart(_temporary(job, unit, runfolder.REJECTED))
    parts = {subset: _new_part(job, unit, subset) for subset in subsets}
    tokens_before = getattr(scorer, "tokens", None)
    rows: list[Row] = []
    examples: list[Example] = []
    for item in read_examples(unit, job.examples):
        if isinstance(item, Reject):
            result.count_rejected(item)
            rejects.write(reject_line(item))
            continue
        row, own = item
        result.rows += 1
        examples += own
        rows += [row] * len(own)
        if len(examples) >= job.chunk:
            counts = _score_and_write(rows, examples, scorer, route, parts, result)
            rows, examples = [], []
            if on_chunk is not None:
                on_chunk(counts)
    if examples:
        counts = _score_and_write(rows, examples, scorer, route, parts, result)
        if on_chunk is not None:
            on_chunk(counts)
    finished = [part.finish(job.out / name / f"part-{unit.index:05d}.{job.format}") for name, part in parts.items()]
    finished.append(rejects.finish(job.out / runfolder.REJECTED / f"part-{unit.index:05d}.jsonl"))
    result.parts = [part for part in finished if part is not None]
    result.providers = list(getattr(scorer, "providers", ()))
    result.tokenizer = getattr(scorer, "tokenizer", "")
    result.versions = _versions()
    if tokens_before is not None:
        result.tokens = asdict(scorer.tokens - tokens_before)  # type: ignore[attr-defined]
    result.write(job.out)
    return result


@functools.cache
def _versions() -> dict[str, str]:
    return versions(*VERSIONED)


def _new_part(job: Job, unit: Unit, subset: str) -> Part:
    if job.format == "jsonl":
        return JsonlPart(_temporary(job, unit, subset))
    from efficient_empathy.scorer.tables import ParquetPart

    return ParquetPart(_temporary(job, unit, subset))


def _temporary(job: Job, unit: Unit, subset: str) -> Path:
    # The process is part of the name: two that were to rate the same unit, on whatever machines, would still not write
    # to one file.
    return runfolder.temporary_folder(job.out) / f"{unit.index:05d}.{subset}.{os.getpid()}-{_PROCESS}"


def _score_and_write(
    rows: Sequence[Row],
    examples: Sequence[Example],
    scorer: RatesExamples,
    route: Route | None,
    parts: Mapping[str, Part],
    result: UnitResult,
) -> dict[str, int]:
    """Rate some examples, write them and count them; the counts of this call come back, by subset."""
    dimensions = scorer.dimensions
    path = result.unit["path"]
    scores, tiers = rated_scores(scorer, examples, lambda index: f"{path}:{rows[index][0]}")
    subsets = folders_of(route)
    if route is None:
        decision, chosen = np.zeros(len(scores), np.int64), None
    else:
        decision = route.decide(scores, dimensions)
        chosen = [subsets[index] for index in decision.tolist()]
        for key, count in route.tally(scores, dimensions).items():
            result.tallies[key] = result.tallies.get(key, 0) + count
    for tier in tiers or ():
        result.tiers[tier] = result.tiers.get(tier, 0) + 1
    chunk = Chunk(rows, examples, scores, dimensions, chosen, tiers)
    counts = {}
    for index, subset in enumerate(subsets):
        places = np.flatnonzero(decision == index)
        parts[subset].add(chunk, places.tolist())
        result.count_scored(subset, scores[places])
        counts[subset] = len(places)
    return counts


def rated_scores(
    scorer: RatesExamples, examples: Sequence[Example], place: Callable[[int], str]
) -> tuple[np.ndarray, list[str] | None]:
    """Scores as they are written, float64 (n, d): what is decided on is what a reader of the output finds. And who gave them.

    Args:
        scorer: gives the scores.
        examples: what is rated.
        place: says where an example, given by its index, came from.

    Raises:
        EmpathyError: the scorer gave something else than a number for each example and dimension.
    """
    rated = scorer.rate(examples) if isinstance(scorer, Scorer) and scorer.cascade else Rated(scorer.score(examples))
    scores = np.asarray(rated.scores, np.float64)
    if scores.shape != (len(examples), len(scorer.dimensions)):
        raise EmpathyError(
            f"the scorer gave scores of shape {scores.shape} for {len(examples)} examples; distil it again."
        )
    if not np.isfinite(scores).all():
        where = place(int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0]))
        raise EmpathyError(f"the scorer gave a score that is not a number at {where}; try --precision fp32.")
    by = rated.by_transformer
    tiers = None if by is None else [TRANSFORMER if sent_on else FAST for sent_on in by.tolist()]
    return np.round(scores, _DECIMALS) + 0.0, tiers  # the addition turns -0.0 into 0.0
