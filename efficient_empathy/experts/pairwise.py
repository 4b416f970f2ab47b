"""Pairwise judging: which of two systems answers better, asked in both orders, every verdict kept."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from efficient_empathy.distill.asking import AskingPlan, Interview, Outcome, Progress, ask_about, plan_asking
from efficient_empathy.distill.judges import Judge, open_judge
from efficient_empathy.distill.pricing import Price, check_limit, find_price
from efficient_empathy.distill.store import LabelStore, StoredAnswer, answer_key
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.answer_folders import AnswerFolder
from efficient_empathy.experts.pairwise_criteria import METHOD, PairCriteria, ShownPair
from efficient_empathy.experts.pairwise_figures import PairwiseResult, summarise
from efficient_empathy.experts.pairwise_options import PairwiseOptions
from efficient_empathy.experts.pairwise_pairs import (
    Comparison,
    Pair,
    Systems,
    draw_pairs,
    judged,
    read_pairs,
    write_pairs,
)
from efficient_empathy.experts.statistics import holm
from efficient_empathy.manifest import (
    MANIFEST,
    check_unchanged,
    manifest_digest,
    pretty_json,
    versions,
    write_atomic,
    write_manifest,
)

KIND = "pairwise"
PAIRS_FILE = "pairs.jsonl"
RESULTS_FILE = "results.json"
STORE_FILE = "answers.sqlite"


@dataclass(frozen=True)
class PairwisePlan:
    """What judging would take, without doing it."""

    comparisons: int
    """Systems that are compared with the baseline."""
    pairs: int
    """Of all comparisons together; each takes two questions."""
    identical: int
    """Of these, pairs of equal replies, which are not asked about."""
    asking: AskingPlan


@dataclass(frozen=True)
class PairwiseReport:
    """What judging found and what it took."""

    judge: Mapping[str, Any]
    criteria: Mapping[str, str]
    results: tuple[PairwiseResult, ...]
    """One a system that was compared with the baseline."""
    asked: int
    """Questions that this run sent; the other answers were in the store."""
    prompt_tokens: int
    """Of all answers that these results rest on, as the servers counted them."""
    completion_tokens: int
    usd: float | None
    """What all of these answers cost, this run and earlier ones together; None when the price is not known."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {**asdict(self), "results": [result.to_dict() for result in self.results]}


@dataclass(frozen=True)
class _Job:
    options: PairwiseOptions
    criteria: PairCriteria
    comparisons: dict[Comparison, list[Pair]]
    questions: list[ShownPair]
    """Each text once, even where two systems gave the same answer."""
    price: Price | None
    store: Path


def compare(
    first: Path | AnswerFolder,
    second: Path | AnswerFolder,
    options: PairwiseOptions,
    out: Path,
    progress: Callable[[Progress], None] | None = None,
) -> PairwiseResult:
    """Have a judge compare two systems' answers; they are called by the names of their folders.

    Args:
        first: an answers folder; wins are counted for it.
        second: the one to compare it with.
        options: who judges, by what, and on how many contexts.
        out: the folder of the verdicts, see ``compare_all``.
        progress: called after each answer of the judge.

    Raises:
        EmpathyError: as ``compare_all``.
    """
    folders = [Path(item.folder if isinstance(item, AnswerFolder) else item).resolve() for item in (first, second)]
    names = [folder.name for folder in folders]
    if names[0] == names[1]:
        names = ["/".join(folder.parts[-2:]) for folder in folders]
    if names[0] == names[1]:
        raise EmpathyError(f"'{folders[0]}' and '{folders[1]}' are called the same; rename one, or use compare_all.")
    systems = {names[0]: [first], names[1]: [second]}
    return compare_all(systems, options, out, names[1], progress).results[0]


def compare_all(
    systems: Systems,
    options: PairwiseOptions,
    out: Path,
    baseline: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> PairwiseReport:
    """Have a judge compare each system's answers with the baseline's; what the store already holds is not asked again.

    Each pair is asked about in both orders. A system wins a pair only if it wins in both; the rest are ties. Equal replies
    are ties without a question; an empty reply is asked about like any other. A verdict that cannot be read leaves its
    pair unscored.

    Args:
        systems: the answers folders by the systems' names; one a training seed.
        options: who judges, by what, and on how many contexts.
        out: a folder that gets ``pairs.jsonl`` (one line a pair: all figures follow from it), ``results.json`` and a
            manifest; and ``answers.sqlite``, every answer of the judge, unless the options name another store.
        baseline: the system that the others are compared with; None takes the first.
        progress: called after each answer of the judge.

    Raises:
        EmpathyError: the systems do not answer the same contexts, or the judge cannot work; what had been answered stays
            in the store.
    """
    out = Path(out)
    job = _prepare(systems, options, out, baseline)
    check_limit(options.judging, job.price)
    judge = open_judge(options.judging, method=METHOD)
    try:
        with LabelStore(job.store) as store:
            interview = Interview(judge, job.criteria, store, job.price, options.judging.max_usd)
            outcome = ask_about(interview, job.questions, options.judging.retry_unscored, progress)
            attempts = [a for q in job.questions for a in store.all_of(answer_key(q, job.criteria, judge))]
    finally:
        judge.close()
    (out / MANIFEST).unlink(missing_ok=True)  # it speaks of the verdicts that were here before
    write_pairs(
        out / PAIRS_FILE, {names: [judged(p, outcome) for p in pairs] for names, pairs in job.comparisons.items()}
    )
    report = _report(out, job, judge, outcome, attempts)
    write_atomic(out / RESULTS_FILE, pretty_json([result.to_dict() for result in report.results]))
    _write_manifest(out, systems, job, report, attempts)
    return report


def plan_pairs(systems: Systems, options: PairwiseOptions, out: Path, baseline: str | None = None) -> PairwisePlan:
    """Count what ``compare_all`` would ask and estimate what it would cost; asks nothing, writes nothing, needs no key."""
    job = _prepare(systems, options, Path(out), baseline)
    judge = open_judge(options.judging, ask=False, method=METHOD)
    retry = options.judging.retry_unscored
    asking = plan_asking(judge, job.criteria, job.questions, job.store, job.price, retry)
    pairs = [pair for found in job.comparisons.values() for pair in found]
    return PairwisePlan(len(job.comparisons), len(pairs), sum(not pair.questions for pair in pairs), asking)


def recompute(path: Path, resamples: int = 1000, seed: int = 0) -> tuple[PairwiseResult, ...]:
    """The results again, from the file of verdicts alone.

    Args:
        path: ``pairs.jsonl``.
        resamples: of the conversations.
        seed: of the resampling.

    Raises:
        EmpathyError: the file is not as the manifest beside it has it.
    """
    if (path.parent / MANIFEST).is_file():
        check_unchanged(path.parent, "Compare again, or copy it again.", path.name)
    results = [summarise(names, pairs, resamples, seed) for names, pairs in read_pairs(path).items()]
    corrected = iter(holm([result.sign_test for result in results if result.sign_test is not None]))
    return tuple(
        result if result.sign_test is None else replace(result, sign_test_holm=next(corrected)) for result in results
    )


def _prepare(systems: Systems, options: PairwiseOptions, out: Path, baseline: str | None) -> _Job:
    comparisons = draw_pairs(systems, baseline, options.pairs, options.judging.seed)
    questions = {q.digest: q for pairs in comparisons.values() for pair in pairs for q in pair.questions}
    return _Job(
        options,
        PairCriteria.load(options.criteria),
        comparisons,
        list(questions.values()),
        find_price(options.judging),
        options.judging.store or out / STORE_FILE,
    )


def _report(out: Path, job: _Job, judge: Judge, outcome: Outcome, attempts: list[StoredAnswer]) -> PairwiseReport:
    return PairwiseReport(
        judge=judge.describe(),
        criteria=job.criteria.describe(),
        # Read back, so that what is reported is what the file gives.
        results=recompute(out / PAIRS_FILE, job.options.resamples, job.options.judging.seed),
        asked=outcome.asked,
        prompt_tokens=sum(stored.answer.usage.prompt for stored in attempts),
        completion_tokens=sum(stored.answer.usage.completion for stored in attempts),
        usd=None if job.price is None else round(outcome.spent, 6),
    )


def _write_manifest(
    out: Path, systems: Systems, job: _Job, report: PairwiseReport, attempts: list[StoredAnswer]
) -> None:
    """The record of the verdicts' making; the same whether they came in one run or in several."""
    folders = {
        name: [f.digest if isinstance(f, AnswerFolder) else manifest_digest(f) for f in found]
        for name, found in systems.items()
    }
    body = {
        "judge": report.judge,
        "forms": dict(sorted(Counter(stored.answer.form for stored in attempts).items())),
        "criteria": report.criteria,
        "systems": folders,
        "pairs": job.options.pairs,
        "resamples": job.options.resamples,
        "seed": job.options.judging.seed,
        "answers": len(attempts),
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": report.completion_tokens,
        "usd": report.usd,
        "versions": versions("openai", "xllamacpp", "transformers"),
    }
    write_manifest(out, KIND, body, [PAIRS_FILE, RESULTS_FILE])
