"""Asking a judge: several questions at once, each answer on the disk as it arrives, within a spending limit."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

from efficient_empathy.distill.judges import Answer, Judge, NoAnswerError, Usage
from efficient_empathy.distill.patience import Patience
from efficient_empathy.distill.pricing import Price, Purse, bound_usage, estimate_usage
from efficient_empathy.distill.questions import Criteria, SubjectT
from efficient_empathy.distill.store import LabelStore, StoredAnswer, answer_key

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far the asking is."""

    done: int
    """Questions that are settled, those already in the store included."""
    total: int
    unscored: int
    """Of ``done``, those without scores."""
    usd: float | None
    """Cost of all answers so far; None when the price is not known."""


@dataclass
class Outcome:
    """What became of the subjects; one that is neither in ``answers`` nor in ``failures`` was not asked about."""

    answers: dict[str, StoredAnswer] = field(default_factory=dict)
    """The answer that counts, by the subject's digest."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why there is no answer, by the subject's digest."""
    asked: int = 0
    """Questions that this run sent."""
    spent: float = 0.0
    """Dollars that all answers cost, those of earlier runs included; 0 where the price is not known."""
    unbilled: float = 0.0
    """Dollars set aside for attempts whose answer never came, those of earlier runs included: a server may finish and bill an
    answer that nobody waits for."""

    def unscored(self) -> dict[str, int]:
        """Subjects that were asked about and have no scores, by reason, in alphabetical order."""
        reasons = Counter(self.failures.values())
        reasons.update(stored.answer.reason for stored in self.answers.values() if stored.answer.reason is not None)
        return dict(sorted(reasons.items()))


@dataclass(frozen=True)
class AskingPlan:
    """What asking would take, without doing it."""

    stored: int
    """Subjects with an answer in the store."""
    calls: int
    """Questions that would be asked."""
    prompt_tokens: int
    """Of all questions together, estimated."""
    completion_tokens: int
    """Of all answers together, estimated."""
    usd: float | None
    """What these tokens cost; None when the model has no price."""


@dataclass(frozen=True)
class Interview(Generic[SubjectT]):
    """Everything that one run of asking shares."""

    judge: Judge
    criteria: Criteria[SubjectT]
    store: LabelStore
    price: Price | None
    """None when it is not known; then there is no limit to keep."""
    max_usd: float | None = None
    """The most that all answers may cost, those of earlier runs included."""

    def cost(self, subject: SubjectT, answer: Answer) -> float | None:
        """Dollars of an answer; estimated from the texts where the server counts no tokens."""
        if self.price is None:
            return None
        if answer.usage == Usage():
            return self.price.cost(estimate_usage(subject, self.criteria, answer.raw))
        return self.price.cost(answer.usage)

    def ask(self, subject: SubjectT, lose: Callable[[float], bool]) -> StoredAnswer:
        """Ask one question and keep the answer; runs in a thread of its own.

        Args:
            subject: what is asked about.
            lose: books the dollars of an attempt whose answer never came, and says whether another may follow.
        """

        def on_lost() -> bool:
            usd = self.bound(subject)
            self.store.put_lost(answer_key(subject, self.criteria, self.judge), usd)
            return lose(usd or 0.0)

        answer = self.judge.ask(subject, self.criteria, on_lost)
        return self.store.put(subject, self.criteria, self.judge, answer, self.cost(subject, answer))

    def bound(self, subject: SubjectT) -> float | None:
        """Dollars that one attempt at a question can cost; None when the price is not known."""
        if self.price is None:
            return None
        return self.price.cost(bound_usage(subject, self.criteria, self.judge.max_completion_tokens))


def plan_asking(
    judge: Judge,
    criteria: Criteria[SubjectT],
    subjects: Sequence[SubjectT],
    store: Path,
    price: Price | None,
    retry_unscored: bool = False,
) -> AskingPlan:
    """Count what ``ask_about`` would ask and estimate what it would cost; asks nothing and writes nothing.

    Args:
        judge: who would be asked; it need not be able to answer.
        criteria: what would be asked.
        subjects: what about.
        store: where answers are kept; the file need not be there.
        price: of the judge; None when it is not known.
        retry_unscored: as ``ask_about``.
    """
    stored, calls = 0, list(subjects)
    if store.is_file():
        with LabelStore(store) as answers:
            found = {s.digest: answers.latest(answer_key(s, criteria, judge)) for s in subjects}
        stored = sum(found[s.digest] is not None for s in subjects)
        calls = [s for s in subjects if _is_open(found[s.digest], retry_unscored)]
    usages = [estimate_usage(subject, criteria) for subject in calls]
    total = Usage(sum(usage.prompt for usage in usages), sum(usage.completion for usage in usages))
    usd = None if price is None else price.cost(total)
    return AskingPlan(stored, len(calls), total.prompt, total.completion, usd)


def ask_about(
    interview: Interview[SubjectT],
    subjects: Sequence[SubjectT],
    retry_unscored: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Ask about every subject whose answer is not in the store yet.

    Args:
        interview: judge, question, store and limit.
        subjects: what to ask about, each digest once.
        retry_unscored: ask again where the stored answer could not be read.
        progress: called at the start and after each answer.

    Raises:
        EmpathyError: as ``ask_all``.
    """
    outcome = Outcome()
    waiting = []
    for subject in subjects:
        key = answer_key(subject, interview.criteria, interview.judge)
        lost = [interview.bound(subject) if usd is None else usd for usd in interview.store.lost(key)]
        outcome.unbilled += sum(usd or 0.0 for usd in lost)
        earlier = list(interview.store.all_of(key))
        for stored in earlier:
            # An answer from before its price was known is priced now.
            cost = interview.cost(subject, stored.answer) if stored.usd is None else stored.usd
            outcome.spent += cost or 0.0
        if _is_open(earlier[-1] if earlier else None, retry_unscored):
            waiting.append(subject)
        else:
            outcome.answers[subject.digest] = earlier[-1]

    def report(state: Outcome) -> None:
        if progress is not None:
            settled = len(state.answers) + len(state.failures)
            usd = None if interview.price is None else state.spent
            progress(Progress(settled, len(subjects), sum(state.unscored().values()), usd))

    report(outcome)
    ask_all(interview, waiting, outcome, report)
    if outcome.unbilled and interview.max_usd is not None:
        _logger.warning(
            "$%.4f of --max-usd are set aside for attempts whose answer never came, since they may be billed",
            outcome.unbilled,
        )
    return outcome


def _is_open(stored: StoredAnswer | None, retry_unscored: bool) -> bool:
    return stored is None or (retry_unscored and stored.answer.scores is None)


def ask_all(
    interview: Interview[SubjectT],
    subjects: Iterable[SubjectT],
    outcome: Outcome,
    report: Callable[[Outcome], None],
) -> None:
    """Ask about every subject, or until the spending limit is reached.

    Args:
        interview: judge, question, store and limit.
        subjects: those without an answer in the store.
        outcome: filled as answers arrive; what earlier runs spent is already in it.
        report: called after each answer.

    Raises:
        EmpathyError: the judge refuses to work at all, gave no answer many times in a row, or only answers that cannot be
            read. What had arrived is kept.
    """
    waiting = iter(subjects)
    following = next(waiting, None)
    purse = Purse(interview.max_usd, outcome.spent + outcome.unbilled)
    reserved: dict[Future[StoredAnswer], tuple[SubjectT, float]] = {}
    patience = Patience(any(stored.answer.scores is not None for stored in outcome.answers.values()))
    # That a model thinks first, and so costs more, shows with its first answer: until then one question is under way.
    at_once = interview.judge.concurrency if interview.max_usd is None else 1
    finished = False
    executor = ThreadPoolExecutor(interview.judge.concurrency, thread_name_prefix="judge")
    try:
        while following is not None or reserved:
            while following is not None and len(reserved) < at_once:
                bound = interview.bound(following) or 0.0
                if not purse.take(bound):
                    # Answers under way mostly cost less than was set aside: with them in, this one may still fit.
                    break
                reserved[executor.submit(interview.ask, following, purse.lose)] = (following, bound)
                outcome.asked += 1
                following = next(waiting, None)
            if not reserved:
                break
            for future in wait(reserved, return_when=FIRST_COMPLETED).done:
                subject, bound = reserved.pop(future)
                before = outcome.spent
                _settle(future, subject, outcome, patience)
                purse.give_back(bound - (outcome.spent - before))
                at_once = interview.judge.concurrency
                report(outcome)
            patience.check(is_more=following is not None)
        finished = True
    finally:
        if not finished:
            interview.judge.stop()
        # Answers under way are paid for: they are waited for and kept.
        executor.shutdown(wait=True, cancel_futures=True)
        outcome.unbilled += purse.lost


def _settle(future: Future[StoredAnswer], subject: SubjectT, outcome: Outcome, patience: Patience) -> None:
    """Note what became of a question."""
    try:
        stored = future.result()
    except NoAnswerError as error:
        _logger.info("no answer for %s: %s", subject.id, error)
        outcome.failures[subject.digest] = error.reason
        # What a judge that has answered others refuses is the question's fault, and would be refused by every later run, too.
        patience.unanswered(error.reason, is_judge_s_fault=not (error.refused and outcome.answers))
        return
    outcome.answers[subject.digest] = stored
    outcome.spent += stored.usd or 0.0
    patience.answered(stored.answer)
