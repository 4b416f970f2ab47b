"""``label``: choose examples, have a judge rate them once, write the labels and what they cost."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.dialogues import ExampleMode, Reject, RowError, read_records, record_examples
from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.asking import Interview, Outcome, Progress, ask_all
from efficient_empathy.distill.choosing import choose_examples
from efficient_empathy.distill.endpoint import is_own_service
from efficient_empathy.distill.judges import Judge, Usage, open_judge
from efficient_empathy.distill.label_report import LabelPlan, LabelReport
from efficient_empathy.distill.labels import write_labels
from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.distill.pricing import FREE, Price, estimate_usage, load_prices
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.distill.store import LabelStore, StoredAnswer, answer_key
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import pretty_json, sha256_file, versions, write_atomic


@dataclass(frozen=True)
class _Job:
    options: JudgeOptions
    rubric: Rubric
    examples: list[Example]
    rejected: dict[str, int]
    price: Price | None
    store: Path


def plan_labels(inputs: Sequence[str], out: Path, options: JudgeOptions, mode: ExampleMode = "every-turn") -> LabelPlan:
    """Count what ``label`` would ask and estimate what it would cost; asks nothing, writes nothing, needs no key."""
    job = _prepare(inputs, Path(out), options, mode)
    judge = open_judge(options, ask=False)
    stored, calls = 0, job.examples
    if job.store.is_file():
        with LabelStore(job.store) as store:
            found = {
                e.digest: answer for e in job.examples if (answer := store.latest(answer_key(e, job.rubric, judge)))
            }
        stored, calls = len(found), [e for e in job.examples if _is_open(found.get(e.digest), options)]
    usages = [estimate_usage(example, job.rubric) for example in calls]
    total = Usage(sum(usage.prompt for usage in usages), sum(usage.completion for usage in usages))
    usd = None if job.price is None else job.price.cost(total)
    return LabelPlan(len(job.examples), stored, len(calls), total.prompt, total.completion, usd, job.rejected)


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
    if options.max_usd is not None and job.price is None:
        raise EmpathyError(
            f"--max-usd needs a price for '{options.judge}', and there is none for it at this address. "
            "Give one with --prices FILE: 'models: {NAME: {input: …, output: …}}', dollars per million tokens."
        )
    judge = open_judge(options)
    try:
        with LabelStore(job.store) as store:
            outcome = _judge_all(Interview(judge, job.rubric, store, job.price, options.max_usd), job, progress)
            attempts = [a for e in job.examples for a in store.all_of(answer_key(e, job.rubric, judge))]
    finally:
        judge.close()
    write_labels(out, _rows(job, judge, outcome))
    report = _report(out, job, outcome, attempts)
    _write_manifest(report, job, judge, mode, attempts)
    return report


def read_examples(inputs: Sequence[str], mode: ExampleMode, rejected: Counter[str]) -> Iterator[Example]:
    """The examples of some dialogues, streamed; rows that cannot be read are counted by reason and passed over."""

    def on_reject(reject: Reject) -> None:
        rejected[reject.reason] += 1

    for record in read_records(inputs, on_reject=on_reject):
        try:
            yield from record_examples(record, mode)
        except RowError as error:
            rejected[error.reason] += 1


def default_store(out: Path) -> Path:
    """Where answers are kept when nobody says: ``labels.jsonl`` keeps them in ``labels.sqlite``."""
    return _beside(out, ".sqlite")


def _beside(out: Path, ending: str) -> Path:
    return out.with_name((out.name.removesuffix(".jsonl") or out.name) + ending)


def _prepare(inputs: Sequence[str], out: Path, options: JudgeOptions, mode: ExampleMode) -> _Job:
    rubric = Rubric.load(options.rubric)
    rejected: Counter[str] = Counter()
    examples = choose_examples(read_examples(inputs, mode, rejected), options.budget, options.seed)
    if not examples:
        bad = f"; {rejected.total()} rows could not be read ({_counts(rejected)})" if rejected else ""
        raise EmpathyError(f"no listener turn to judge in {', '.join(inputs)}{bad}.")
    kind, _, model = options.judge.partition(":")
    table = load_prices(options.prices, own_service=kind == "openai" and is_own_service(options))
    price = FREE if kind == "local" else table.get(model)
    return _Job(options, rubric, examples, dict(sorted(rejected.items())), price, options.store or default_store(out))


def _is_open(stored: StoredAnswer | None, options: JudgeOptions) -> bool:
    return stored is None or (options.retry_unscored and stored.answer.scores is None)


def _judge_all(interview: Interview, job: _Job, progress: Callable[[Progress], None] | None) -> Outcome:
    outcome = Outcome()
    waiting = []
    for example in job.examples:
        earlier = list(interview.store.all_of(answer_key(example, job.rubric, interview.judge)))
        for stored in earlier:
            # An answer from before its price was known is priced now.
            cost = interview.cost(example, stored.answer) if stored.usd is None else stored.usd
            outcome.spent += cost or 0.0
        if _is_open(earlier[-1] if earlier else None, job.options):
            waiting.append(example)
        else:
            outcome.answers[example.digest] = earlier[-1]

    def report(state: Outcome) -> None:
        if progress is not None:
            unscored = sum(stored.answer.scores is None for stored in state.answers.values()) + len(state.failures)
            usd = None if interview.price is None else state.spent
            progress(Progress(len(state.answers) + len(state.failures), len(job.examples), unscored, usd))

    report(outcome)
    ask_all(interview, waiting, outcome, report)
    return outcome


def _rows(job: _Job, judge: Judge, outcome: Outcome) -> Iterator[dict[str, Any]]:
    for example in job.examples:
        stored = outcome.answers.get(example.digest)
        if stored is not None and stored.answer.scores is not None:
            scores = {name: stored.answer.scores[name] for name in job.rubric.names}
            whose = {"judge": judge.name, "rubric": job.rubric.digest, "time": stored.time}
            yield {"id": example.id, "digest": example.digest, **scores, **whose}


def _report(out: Path, job: _Job, outcome: Outcome, attempts: list[StoredAnswer]) -> LabelReport:
    unscored = Counter(outcome.failures.values())
    unscored.update(stored.answer.reason for stored in outcome.answers.values() if stored.answer.reason is not None)
    scored = len(outcome.answers) + len(outcome.failures) - unscored.total()
    return LabelReport(
        labels=out,
        examples=len(job.examples),
        scored=scored,
        unscored=dict(sorted(unscored.items())),
        not_asked=len(job.examples) - scored - unscored.total(),
        asked=outcome.asked,
        prompt_tokens=sum(stored.answer.usage.prompt for stored in attempts),
        completion_tokens=sum(stored.answer.usage.completion for stored in attempts),
        usd=None if job.price is None else round(outcome.spent, 6),
        rejected=job.rejected,
    )


def _write_manifest(
    report: LabelReport, job: _Job, judge: Judge, mode: ExampleMode, attempts: list[StoredAnswer]
) -> None:
    """The record of the labels' making; the same whether the work was done in one run or in several."""
    body = {
        "kind": "labels",
        "format": 1,
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
        "files": {report.labels.name: sha256_file(report.labels)},
    }
    write_atomic(_beside(report.labels, ".manifest.json"), pretty_json(body))


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
