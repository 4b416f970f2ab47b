"""``generate``: from dialogues to an answers folder, in pieces that a killed run need not do again."""

import logging
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch

from efficient_empathy.dialogues import Reject
from efficient_empathy.dialogues.files import find_files
from efficient_empathy.dialogues.paths import base_name, shown_path
from efficient_empathy.dialogues.records import reject_line
from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.answer_folders import ANSWERS_FILE, KIND
from efficient_empathy.experts.answering import AnsweredRow, Counts, Progress, answer_contexts, check_room
from efficient_empathy.experts.contexts import ContextOptions, read_contexts
from efficient_empathy.experts.decoding_options import DecodingOptions
from efficient_empathy.experts.models import LanguageModel
from efficient_empathy.manifest import (
    MANIFEST,
    atomic_open,
    canonical_json,
    changed_files,
    pretty_json,
    read_manifest,
    sha256_bytes,
    versions,
    write_atomic,
    write_manifest,
)
from efficient_empathy.scorer import runfolder
from efficient_empathy.scorer.outputs import writing

_REJECTED_FILE = f"{runfolder.REJECTED}/part-00000.jsonl"
_ENGINE = 2
_log = logging.getLogger(__name__)
"""Raised when the same options would give other bytes."""
_UNIT = 256
"""Contexts that are answered, written and resumed as a whole."""


@dataclass(frozen=True)
class AnswerJob:
    """What to answer, and where the answers go."""

    inputs: tuple[str, ...]
    """Files, folders, globs or URLs of dialogues."""
    out: Path
    """The answers folder."""
    contexts: ContextOptions = field(default_factory=ContextOptions)
    """Which contexts of the dialogues."""
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    """How they are answered."""
    nll: bool = True
    """Measure how likely the model finds what people answered."""
    overwrite: bool = False
    """Start over in a folder that another run has written."""

    def describe(self) -> dict[str, Any]:
        """The options that the bytes depend on."""
        return {**asdict(self.contexts), **self.decoding.describe(), "nll": self.nll}


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    manifest: dict[str, Any]
    already_done: bool
    """The folder was complete: nothing was answered now."""
    answers: int
    """Contexts that this run answered."""
    seconds: float
    """What this run took for them."""


def write_answers(job: AnswerJob, model: LanguageModel) -> Outcome:
    """Answer the contexts of some dialogues; run again after a kill, it does what is missing.

    Raises:
        EmpathyError: there is nothing to answer, two contexts have one id, the folder holds something else or the beginning of
            another run, or prompts and answers do not fit the model.
    """
    check_room(model, job.decoding)
    paths = find_files(job.inputs)
    runfolder.check_places(job.out, job.inputs, paths, [ANSWERS_FILE, _REJECTED_FILE])
    rejects: list[Reject] = []
    contexts = read_contexts(job.inputs, job.contexts, rejects.append)
    with runfolder.opened(job.out):
        plan = _prepare(job, model, paths)
        if (job.out / MANIFEST).is_file():
            changed = changed_files(job.out)
            if not changed:
                return Outcome(read_manifest(job.out), True, 0, 0.0)
            _log.warning("'%s' is not as it was written: %s. Answering again", job.out, "; ".join(changed))
            (job.out / MANIFEST).unlink()
        units = [contexts[begin : begin + _UNIT] for begin in range(0, len(contexts), _UNIT)]
        done = {index for index in range(len(units)) if runfolder.record_path(job.out, index).is_file()}
        progress = Progress(len(contexts), sum(len(units[index]) for index in done))
        for index, unit in enumerate(units):
            if index not in done:
                rows = answer_contexts(model, unit, job.decoding, job.nll, progress)
                write_atomic(runfolder.record_path(job.out, index), orjson.dumps([asdict(row) for row in rows]))
        manifest = _finish(job, model, plan, rejects, len(units))
        write_atomic(job.out / runfolder.RUN_FACTS, pretty_json(_facts(progress, model)))
        return Outcome(manifest, False, progress.rows, progress.seconds)


def count_contexts(job: AnswerJob) -> dict[str, Any]:
    """What there is to answer, without a model and without writing anything.

    Raises:
        EmpathyError: as ``read_contexts`` does.
    """
    rejects: list[Reject] = []
    contexts = read_contexts(job.inputs, job.contexts, rejects.append)
    return {
        "contexts": len(contexts),
        "conversations": len({context.dialogue_id for context in contexts}),
        "references": sum(context.reference is not None for context in contexts),
        "rejected": _by_reason(rejects),
    }


def _prepare(job: AnswerJob, model: LanguageModel, paths: Sequence[str]) -> dict[str, Any]:
    """See that the folder is new, or holds the beginning of this very run; note the plan in it."""
    old = runfolder.read_plan(job.out)
    if old is not None and old.get("kind") != KIND:
        raise EmpathyError(f"the folder '{job.out}' was written by another command of ee-cli; choose another with -o.")
    named = sha256_bytes(canonical_json(_described(model)))[:12]
    options = {"model": f"{model.name} ({named})", "renderer": model.renderer.describe(), **job.describe()}
    plan = {
        "kind": KIND,
        "engine": _ENGINE,
        "inputs": runfolder.describe_inputs(paths, old),
        "options": options,
        # Plans of all commands have these parts, so that each can say what another one wrote.
        "scorer": None,
        "policy": None,
        "folders": [],
    }
    found = runfolder.differences(old, plan) if old is not None else []
    if found and not job.overwrite:
        raise EmpathyError(
            f"'{job.out}' was written by a run that differs in {' and '.join(found)}. "
            "Choose another folder with -o, or start over in this one with --overwrite."
        )
    if old is not None and job.overwrite:
        with writing(job.out):
            (job.out / ANSWERS_FILE).unlink(missing_ok=True)
        runfolder.wipe(job.out, old)
    runfolder.remove_leftovers(job.out)
    if plan != old or job.overwrite:
        runfolder.write_plan(job.out, plan)
    return plan


def _finish(
    job: AnswerJob, model: LanguageModel, plan: dict[str, Any], rejects: Sequence[Reject], units: int
) -> dict[str, Any]:
    """Join the pieces, write the manifest, and only then remove the pieces."""
    paths = [runfolder.record_path(job.out, index) for index in range(units)]
    counts = Counts()
    with atomic_open(job.out / ANSWERS_FILE) as file:
        for path in paths:
            for found in orjson.loads(path.read_bytes()):
                row = AnsweredRow(**found)
                file.write(orjson.dumps(row.row, option=orjson.OPT_APPEND_NEWLINE))
                counts.add(row)
    files = [ANSWERS_FILE]
    if rejects:
        lines = [reject_line(reject) + b"\n" for reject in rejects]
        write_atomic(job.out / _REJECTED_FILE, b"".join(lines))
        files.append(_REJECTED_FILE)
    body = {
        "model": _described(model),
        "renderer": model.renderer.describe(),
        "options": job.describe(),
        "inputs": {record["path"]: record["sha256"] for record in _named(plan["inputs"])},
        "counts": {**counts.describe(), "rejected": _by_reason(rejects)},
        "versions": versions("torch", "transformers", "peft"),
    }
    write_manifest(job.out, KIND, body, files)
    for path in paths:
        path.unlink()
    return read_manifest(job.out)


def _described(model: LanguageModel) -> dict[str, Any]:
    """The model without the path that it was found by: what it is does not depend on where it lies."""
    base = {name: value for name, value in model.description.get("base", {}).items() if name != "given"}
    return {**model.description, "base": base}


def _by_reason(rejects: Iterable[Reject]) -> dict[str, int]:
    return dict(sorted(Counter(reject.reason for reject in rejects).items()))


def _named(inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The inputs by their file names alone, unless two share one."""
    names = Counter(base_name(record["path"]) for record in inputs)
    return [
        {**record, "path": name if names[name := base_name(record["path"])] == 1 else shown_path(record["path"])}
        for record in inputs
    ]


def _facts(progress: Progress, model: LanguageModel) -> dict[str, Any]:
    """Times and the host: what differs from run to run, and so is no part of the manifest."""
    seconds = progress.seconds
    return {
        "seconds": round(seconds, 3),
        "answers": progress.rows,
        "answers_per_second": round(progress.rows / seconds, 3) if seconds > 0 else None,
        "tokens_per_second": round(progress.tokens / seconds, 1) if seconds > 0 else None,
        "device": model.device.type,
        "dtype": str(next(model.model.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        "platform": platform.platform(),
    }
