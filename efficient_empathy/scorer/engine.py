"""Rates every dialogue of some inputs: unit by unit, in bounded memory, continued where a killed run stopped."""

import contextlib
import datetime
import platform
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from efficient_empathy.dialogues import Unit, plan_units
from efficient_empathy.dialogues.files import find_files
from efficient_empathy.dialogues.paths import shown_path
from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import MANIFEST, pretty_json, read_manifest, write_atomic, write_manifest
from efficient_empathy.scorer import ray_engine, runfolder
from efficient_empathy.scorer.batching import TokenCount
from efficient_empathy.scorer.job import Job, RatesExamples, Route, check_scorer, describe_scorer, folders_of
from efficient_empathy.scorer.outputs import writing
from efficient_empathy.scorer.progress import Progress, Quiet
from efficient_empathy.scorer.rating import rate_unit
from efficient_empathy.scorer.results import (
    UnitResult,
    add_up,
    most_common_reject,
    progress_counts,
    read_result,
    versions_of,
)
from efficient_empathy.scorer.workers import WorkerPlan, plan_workers, rate_in_processes

_ENGINE = 4
"""Raised when the same job would give other bytes, so that old and new units are never mixed."""
_ROWS_BEFORE_JUDGING = 100
_WHEREABOUTS = ("folder", "origin")
"""What is said of a scorer that its scores do not depend on: a run may go on where it differs."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    manifest: dict[str, Any]
    already_done: bool
    """Nothing was left to do: the folder was finished before."""


def run(job: Job, scorer: RatesExamples, route: Route | None = None, progress: Progress | None = None) -> Outcome:
    """Rate the dialogues of a job and write them, with their scores, to its output folder.

    The same job on the same inputs gives the same bytes, whether or not it was killed on the way and run again.

    Args:
        job: what to rate, where it goes, and how.
        scorer: gives the scores; they are rounded to 4 decimals first, so that what is written is what was decided on.
        route: the policy that chooses a subset for each example; None writes all to one folder, ``examples``.
        progress: told what has been done.

    Raises:
        EmpathyError: the policy does not fit the scorer, an input is missing or has changed, the folder belongs to
            another run, too many rows cannot be read, or the folder cannot be written to.
    """
    check_scorer(scorer, route)
    ray_engine.check(job.ray)
    paths = find_files(job.inputs)
    runfolder.check_places(job.out, job.inputs, paths, _files_like(route))
    # In a new folder the inputs are cut first: what is wrong with them is said before the folder is made.
    noted = runfolder.noted_inputs(paths)
    cut = plan_units(job.inputs, job.unit_bytes) if runfolder.read_plan(job.out) is None else None
    with runfolder.opened(job.out):
        inputs = runfolder.describe_inputs(paths, runfolder.read_plan(job.out))
        _refuse_changed(noted)  # a row that came after the cut would be in no unit
        plan = _prepare(job, scorer, route, inputs, cut)
        units = [Unit(**unit) for unit in plan["units"]]
        results = {unit.index: result for unit in units if (result := read_result(job.out, unit)) is not None}
        pending = [unit for unit in units if unit.index not in results]
        if not pending and (job.out / MANIFEST).is_file():
            _check_rejected(job, results, _row_counts(results.values()), finished=True)
            with progress or Quiet() as told:
                told.start(_weights(units, plan["inputs"]), results, progress_counts(results.values()))
            return Outcome(read_manifest(job.out), already_done=True)
        with writing(job.out):
            runfolder.temporary_folder(job.out).mkdir()
        started = time.time()
        weights = _weights(units, plan["inputs"])
        rows = _row_counts(results.values())
        with ray_engine.connected(job.ray), progress or Quiet() as told:
            workers = (plan_workers if job.ray is None else ray_engine.plan_actors)(job, scorer, len(pending))
            if workers.workers > 1:  # the heaviest first, so that no worker is left alone with one at the end
                pending.sort(key=lambda unit: -weights[unit.index])
            told.start(weights, results, progress_counts(results.values()))
            with contextlib.closing(_rate(job, pending, scorer, route, workers, told.chunk)) as fresh_results:
                for result in fresh_results:
                    results[result.unit["index"]] = result
                    told.unit_done(result.unit["index"])
                    rows += _row_counts([result])
                    _check_rejected(job, results, rows, finished=False)
            _check_rejected(job, results, rows, finished=True)
            _refuse_changed(plan["inputs"])
            ordered = [results[unit.index] for unit in units]
            manifest = _finish(job, scorer, route, plan, ordered)
        fresh = sum(sum(results[unit.index].examples.values()) for unit in pending)
        _write_run_facts(job, scorer, started, fresh, ordered, workers)
        return Outcome(manifest, already_done=False)


def describe_run(job: Job, scorer: RatesExamples, route: Route | None = None) -> dict[str, Any]:
    """What ``run`` would do, without writing anything: inputs with their bytes, units, policy, and how much is done.

    Raises:
        EmpathyError: as ``run`` does before it begins.
    """
    check_scorer(scorer, route)
    ray_engine.check(job.ray)
    paths = find_files(job.inputs)
    runfolder.check_places(job.out, job.inputs, paths, _files_like(route))
    runfolder.check_ours(job.out)
    old = None if job.overwrite else runfolder.read_plan(job.out)
    if old is None:
        units, done = plan_units(job.inputs, job.unit_bytes), 0
        inputs = runfolder.input_sizes(paths)
    else:
        inputs = runfolder.describe_inputs(paths, old)
        _check_same(job, old, _plan(job, scorer, route, inputs))
        units = [Unit(**unit) for unit in runfolder.units_of(old, paths)]
        done = sum(read_result(job.out, unit) is not None for unit in units)
    return {
        "inputs": [{"path": shown_path(record["path"]), "bytes": record["bytes"]} for record in inputs],
        "bytes": sum(record["bytes"] or 0 for record in inputs),
        "units": len(units),
        "units_done": done,
        "out": str(job.out),
        "folders": list(folders_of(route)),
        "scorer": describe_scorer(scorer),
        "policy": route.describe() if route is not None else None,
        "options": _options(job),
    }


def _files_like(route: Route | None) -> list[str]:
    """Names as files in the output folder will have them."""
    folders = (*folders_of(route), runfolder.REJECTED)
    return [f"{folder}/part-00000.{end}" for folder in folders for end in ("jsonl", "parquet")]


def _refuse_changed(inputs: Sequence[Mapping[str, Any]]) -> None:
    if (changed := runfolder.changed_input(inputs)) is not None:
        raise EmpathyError(
            f"the input '{changed}' changed while it was read; run again with --overwrite once it stays as it is."
        )


def _prepare(
    job: Job,
    scorer: RatesExamples,
    route: Route | None,
    inputs: Sequence[Mapping[str, Any]],
    cut: Sequence[Unit] | None,
) -> dict[str, Any]:
    """See that the folder is new, or holds the beginning of this very run; note the plan in it."""
    old = runfolder.read_plan(job.out)
    plan = _plan(job, scorer, route, inputs)
    # Cutting the inputs takes a pass over them: a run that goes on takes the units of the run it continues.
    if old is not None and _check_same(job, old, plan):
        plan["units"] = runfolder.units_of(old, [record["path"] for record in inputs])
    else:
        plan["units"] = [asdict(unit) for unit in cut or plan_units(job.inputs, job.unit_bytes)]
    if old is not None and job.overwrite:
        runfolder.wipe(job.out, old)
    runfolder.remove_leftovers(job.out)
    if runfolder.kept(plan) != old or job.overwrite:
        runfolder.write_plan(job.out, plan)
    with writing(job.out):
        for name in folders_of(route):
            (job.out / name).mkdir(exist_ok=True)
    return plan


def _plan(job: Job, scorer: RatesExamples, route: Route | None, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What decides whether a run may be continued, without its units."""
    return {
        "engine": _ENGINE,
        "inputs": list(inputs),
        "scorer": {key: value for key, value in describe_scorer(scorer).items() if key not in _WHEREABOUTS},
        "policy": route.describe() if route is not None else None,
        "options": _options(job),
        "folders": list(folders_of(route)),
    }


def _check_same(job: Job, old: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Whether a run goes on with that of an old plan; one that does not must be told to overwrite it."""
    found = runfolder.differences(old, runfolder.kept(plan))
    if found and not job.overwrite:
        raise EmpathyError(
            f"'{job.out}' was written by a run that differs in {' and '.join(found)}. "
            "Choose another folder with -o, or start over in this one with --overwrite."
        )
    return not found


def _options(job: Job) -> dict[str, Any]:
    """The options that the bytes depend on: int8 scores depend, by up to 0.01, on what is rated together."""
    return {"examples": job.examples, "format": job.format, "unit_bytes": job.unit_bytes, "chunk": job.chunk}


def _rate(
    job: Job,
    units: Sequence[Unit],
    scorer: RatesExamples,
    route: Route | None,
    plan: WorkerPlan,
    on_chunk: Callable[[Mapping[str, int]], None],
) -> Generator[UnitResult, None, None]:
    if job.ray is not None:
        yield from ray_engine.rate_on_ray(job, units, scorer, route, plan, on_chunk)
        return
    if plan.workers > 1:
        yield from rate_in_processes(job, units, scorer, route, plan, on_chunk)
        return
    for unit in units:
        yield rate_unit(job, unit, scorer, route, on_chunk)


def _row_counts(results: Iterable[UnitResult]) -> Counter[str]:
    """Rows, and rejected rows: added up as units are completed, for a sum over all of them each time would not scale."""
    counts = Counter(rows=0, rejected=0)
    for result in results:
        counts["rows"] += result.rows
        counts["rejected"] += sum(result.rejected.values())
    return counts


def _check_rejected(job: Job, results: dict[int, UnitResult], counts: Mapping[str, int], finished: bool) -> None:
    rows, rejected = counts["rows"], counts["rejected"]
    if not rejected or rejected <= job.max_rejected * rows or (rows < _ROWS_BEFORE_JUDGING and not finished):
        return
    reason, count, place = most_common_reject(results[index] for index in sorted(results))
    raise EmpathyError(
        f"{rejected} of {rows} rows could not be read, more than --max-rejected {job.max_rejected:g} allows; most "
        f"often '{reason}' ({count} times, first at {place}). They are kept in '{job.out / runfolder.REJECTED}'. "
        "Mend the input and use a new folder, or allow more and run again to go on."
    )


def _weights(units: Sequence[Unit], inputs: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Each unit's share of the work, for the time left: its file's bytes, divided among the file's units."""
    sizes = {record["path"]: record["bytes"] or 1 for record in inputs}
    pieces = Counter(unit.path for unit in units)
    return {unit.index: sizes[unit.path] / pieces[unit.path] for unit in units}


def _finish(
    job: Job, scorer: RatesExamples, route: Route | None, plan: dict[str, Any], results: Sequence[UnitResult]
) -> dict[str, Any]:
    totals = add_up(results, scorer.dimensions)
    files = {part["file"]: part["sha256"] for result in results for part in result.parts}
    body = {
        "inputs": runfolder.said_of_inputs(plan["inputs"]),
        "scorer": describe_scorer(scorer),
        "ran_on": sorted({", ".join(result.providers) for result in results if result.providers}),
        "tokenizer": sorted({result.tokenizer for result in results if result.tokenizer}),
        "policy": plan["policy"],
        "options": {**plan["options"], "max_rejected": job.max_rejected},
        **totals,
        "versions": versions_of(results),
    }
    runfolder.remove_leftovers(job.out)
    write_manifest(job.out, "scored" if route is None else "subsets", body, files)
    return read_manifest(job.out)


def _write_run_facts(
    job: Job,
    scorer: RatesExamples,
    started: float,
    examples: int,
    results: Sequence[UnitResult],
    workers: WorkerPlan,
) -> None:
    """Times and the host: what differs from run to run, and so is no part of the manifest."""
    seconds = time.time() - started
    tokens = sum((TokenCount(**result.tokens) for result in results), TokenCount())
    facts = {
        "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "scorer_folder": str(folder) if (folder := getattr(scorer, "folder", None)) is not None else None,
        "examples": examples,
        "examples_per_second": round(examples / seconds, 1) if seconds > 0 else None,
        "providers": results[-1].providers if results else [],
        "cores": usable_cores(),
        **asdict(workers),
        "tokens": tokens.real,
        "padding_share": round(tokens.padding_share, 4),
        "platform": platform.platform(),
    }
    write_atomic(job.out / runfolder.RUN_FACTS, pretty_json(facts))
