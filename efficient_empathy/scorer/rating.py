"""Rates one unit: reads it, scores it in chunks, routes each example, and commits its files."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from efficient_empathy.dialogues import Record, Reject, Unit, read_unit, record_examples
from efficient_empathy.dialogues.types import Example
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer import runfolder
from efficient_empathy.scorer.job import Job, RatesExamples, Route, folders_of
from efficient_empathy.scorer.outputs import JsonlPart, Part
from efficient_empathy.scorer.results import UnitResult

_DECIMALS = 4


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
    waiting: list[tuple[Record, Example]] = []
    for item in read_unit(unit):
        if isinstance(item, Reject):
            result.count_rejected(item)
            rejects.write(_reject_line(item))
            continue
        result.rows += 1
        waiting.extend((item, example) for example in record_examples(item, job.examples))
        if len(waiting) >= job.chunk:
            _score_and_write(waiting, scorer, route, parts, result, on_chunk)
            waiting = []
    _score_and_write(waiting, scorer, route, parts, result, on_chunk)
    finished = [part.finish(job.out / name / f"part-{unit.index:05d}.{job.format}") for name, part in parts.items()]
    finished.append(rejects.finish(job.out / runfolder.REJECTED / f"part-{unit.index:05d}.jsonl"))
    result.parts = [part for part in finished if part is not None]
    result.providers = list(getattr(scorer, "providers", ()))
    result.tokenizer = getattr(scorer, "tokenizer", "")
    if tokens_before is not None:
        result.tokens = asdict(scorer.tokens - tokens_before)  # type: ignore[attr-defined]
    result.write(job.out)
    return result


def _new_part(job: Job, unit: Unit, subset: str) -> Part:
    if job.format == "jsonl":
        return JsonlPart(_temporary(job, unit, subset))
    from efficient_empathy.scorer.tables import ParquetPart

    return ParquetPart(_temporary(job, unit, subset))


def _temporary(job: Job, unit: Unit, subset: str) -> Path:
    # The process is part of the name: two that were to rate the same unit would still not write to one file.
    return runfolder.temporary_folder(job.out) / f"{unit.index:05d}.{subset}.{os.getpid()}"


def _reject_line(reject: Reject) -> bytes:
    return orjson.dumps(
        {"file": reject.path, "line": reject.line, "reason": reject.reason, "detail": reject.detail, "raw": reject.raw}
    )


def _score_and_write(
    waiting: Sequence[tuple[Record, Example]],
    scorer: RatesExamples,
    route: Route | None,
    parts: dict[str, Part],
    result: UnitResult,
    on_chunk: Callable[[Mapping[str, int]], None] | None,
) -> None:
    if not waiting:
        return
    dimensions = scorer.dimensions
    scores = _written_scores(scorer, waiting)
    decision = route.decide(scores, dimensions) if route is not None else np.zeros(len(scores), np.int64)
    subsets = folders_of(route)
    names = [f"ee_{dimension}" for dimension in dimensions]
    for (record, example), row, index in zip(waiting, scores.tolist(), decision.tolist(), strict=True):
        fields: dict[str, Any] = {"ee_id": example.id, "ee_turn": example.turn, **dict(zip(names, row, strict=True))}
        if route is not None:
            fields["ee_subset"] = subsets[index]
        parts[subsets[index]].add(record, fields)
    counts = {}
    for index, subset in enumerate(subsets):
        mine = scores[decision == index]
        result.count_scored(subset, mine)
        counts[subset] = len(mine)
    if route is not None:
        for key, count in route.tally(scores, dimensions).items():
            result.tallies[key] = result.tallies.get(key, 0) + count
    if on_chunk is not None:
        on_chunk(counts)


def _written_scores(scorer: RatesExamples, waiting: Sequence[tuple[Record, Example]]) -> np.ndarray:
    """Scores as they are written, float64 (n, d): what is decided on is what a reader of the output finds."""
    scores = np.asarray(scorer.score([example for _, example in waiting]), np.float64)
    if scores.shape != (len(waiting), len(scorer.dimensions)):
        raise EmpathyError(
            f"the scorer gave scores of shape {scores.shape} for {len(waiting)} examples; distil it again."
        )
    if not np.isfinite(scores).all():
        record = waiting[int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])][0]
        raise EmpathyError(
            f"the scorer gave a score that is not a number at {record.path}:{record.line}; try --precision fp32."
        )
    return np.round(scores, _DECIMALS) + 0.0  # the addition turns -0.0 into 0.0
