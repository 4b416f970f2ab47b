"""``label``: choose examples, have a judge rate them once, write the labels and what they cost."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.dialogues import ExampleMode, stream_examples
from efficient_empathy.dialogues.files import find_files
from efficient_empathy.dialogues.paths import is_url, shown_path
from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.asking import Interview, Outcome, Progress, ask_about, plan_asking
from efficient_empathy.distill.choosing import choose_examples
from efficient_empathy.distill.judges import Judge, open_judge
from efficient_empathy.distill.label_report import LabelPlan, LabelReport
from efficient_empathy.distill.labels import LABELS, beside, check_label_name, label_lines, label_manifest, write_labels
from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.distill.pricing import Price, check_limit, find_price
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.distill.store import LabelStore, StoredAnswer, answer_key
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import sha256_bytes, versions, write_manifest_file
from efficient_empathy.scorer.runfolder import hashed_inputs


@dataclass(frozen=True)
class _Job:
    options: JudgeOptions
    rubric: Rubric
    examples: list[Example]
    rejected: dict[str, int]
    price: Price | None
    store: Path
    inputs: tuple[str, ...]


def plan_labels(inputs: Sequence[str], out: Path, options: JudgeOptions, mode: ExampleMode = "every-turn") -> LabelPlan:
    """Count what ``label`` would ask and estimate what it would cost; asks nothing, writes nothing, needs no key."""
    job = _prepare(inputs, Path(out), options, mode)
    judge = open_judge(options, ask=False)
    plan = plan_asking(judge, job.rubric, job.examples, job.store, job.price, options.retry_unscored)
    return LabelPlan(examples=len(job.examples), rejected=job.rejected, **asdict(plan))


def label(
    inputs: Sequence[str],
    out: Path,
    options: JudgeOptions,
    mode: ExampleMode = "every-turn",
    progress: Callable[[Progress], None] | None = None,
) -> LabelReport:
    """Have a judge rate examples of some dialogues; what the store already holds is not asked again.

    Args:
        inputs: files, folders, globs or URLs of dialogues.
        out: the label file (JSONL); its manifest stands beside it as ``<name>.manifest.json``.
        options: who judges, how many examples, for how much money.
        mode: which listener turns are examples, see ``dialogues.examples_of``.
        progress: called after each answer.

    Raises:
        EmpathyError: there is nothing to judge, or the judge cannot work; what had been answered stays in the store.
    """
    out = Path(out)
    job = _prepare(inputs, out, options, mode)
    check_limit(options, job.price)
    judge = open_judge(options)
    try:
        with LabelStore(job.store) as store:
            interview = Interview(judge, job.rubric, store, job.price, options.max_usd)
            outcome = ask_about(interview, job.examples, options.retry_unscored, progress)
            attempts = [a for e in job.examples for a in store.all_of(answer_key(e, job.rubric, judge))]
    finally:
        judge.close()
    report = _report(out, job, outcome, attempts)
    body = _manifest_body(report, job, judge, mode, attempts)
    rows = list(_rows(job, judge, outcome))
    # The manifest first: by it a label file in a folder of dialogues is told from them, wherever a run is killed.
    write_manifest_file(label_manifest(out), LABELS, body, {out.name: sha256_bytes(label_lines(rows))})
    write_labels(out, rows)
    return report


def default_store(out: Path) -> Path:
    """Where answers are kept when nobody says: ``labels.jsonl`` keeps them in ``labels.sqlite``."""
    return beside(out, ".sqlite")


def _prepare(inputs: Sequence[str], out: Path, options: JudgeOptions, mode: ExampleMode) -> _Job:
    check_label_name(out)
    rubric = Rubric.load(options.rubric)
    if os.path.realpath(out) in {os.path.realpath(path) for path in find_files(inputs) if not is_url(path)}:
        raise EmpathyError(
            f"'{out}' is one of the files of dialogues, and would be overwritten; choose another with -o."
        )
    store = options.store or default_store(out)
    if os.path.realpath(store) in map(os.path.realpath, (out, label_manifest(out))):
        raise EmpathyError(f"--store '{store}' is where the labels or their manifest are written; name another file.")
    rejected: Counter[str] = Counter()
    examples = choose_examples(stream_examples(inputs, mode, rejected), options.budget, options.seed)
    if not examples:
        bad = f"; {rejected.total()} rows could not be read ({_counts(rejected)})" if rejected else ""
        raise EmpathyError(f"no listener turn to judge in {', '.join(map(shown_path, inputs))}{bad}.")
    price = find_price(options)
    return _Job(
        options,
        rubric,
        examples,
        dict(sorted(rejected.items())),
        price,
        store,
        tuple(inputs),
    )


def _rows(job: _Job, judge: Judge, outcome: Outcome) -> Iterator[dict[str, Any]]:
    for example in job.examples:
        stored = outcome.answers.get(example.digest)
        if stored is not None and stored.answer.scores is not None:
            scores = {name: stored.answer.scores[name] for name in job.rubric.names}
            whose = {"judge": judge.name, "rubric": job.rubric.digest, "time": stored.time}
            yield {"id": example.id, "digest": example.digest, **scores, **whose}


def _report(out: Path, job: _Job, outcome: Outcome, attempts: list[StoredAnswer]) -> LabelReport:
    unscored = outcome.unscored()
    missed = sum(unscored.values())
    scored = len(outcome.answers) + len(outcome.failures) - missed
    return LabelReport(
        labels=out,
        examples=len(job.examples),
        scored=scored,
        unscored=unscored,
        not_asked=len(job.examples) - scored - missed,
        asked=outcome.asked,
        prompt_tokens=sum(stored.answer.usage.prompt for stored in attempts),
        completion_tokens=sum(stored.answer.usage.completion for stored in attempts),
        usd=None if job.price is None else round(outcome.spent, 6),
        rejected=job.rejected,
    )


def _manifest_body(
    report: LabelReport, job: _Job, judge: Judge, mode: ExampleMode, attempts: list[StoredAnswer]
) -> dict[str, Any]:
    """The record of the labels' making; the same whether the work was done in one run or in several."""
    return {
        "inputs": hashed_inputs(job.inputs),
        "judge": judge.describe(),
        "forms": dict(sorted(Counter(stored.answer.form for stored in attempts).items())),
        "rubric": {"name": job.rubric.name, "digest": job.rubric.digest, "dimensions": list(job.rubric.names)},
        "budget": job.options.budget,
        "seed": job.options.seed,
        "example_mode": mode,
        "examples": report.examples,
        "scored": report.scored,
        "unscored": report.unscored,
        "not_asked": report.not_asked,
        "answers": len(attempts),
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": report.completion_tokens,
        "usd": report.usd,
        "rejected": report.rejected,
        "versions": versions("openai", "xllamacpp", "transformers"),
    }


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
