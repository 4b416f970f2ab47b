"""The loop that asks: several questions at once, each answer on the disk as it arrives, within a spending limit."""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.judges import Answer, Judge, NoAnswerError, Usage
from efficient_empathy.distill.pricing import Price, bound_usage, estimate_usage
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.distill.store import LabelStore, StoredAnswer
from efficient_empathy.errors import EmpathyError

# So many questions in a row without an answer: the server is down, and the rest would only wait.
_GIVE_UP_AFTER = 20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far the asking is."""

    done: int
    """Examples that are settled, those already in the store included."""
    total: int
    unscored: int
    """Of ``done``, those without scores."""
    usd: float | None
    """Cost of all answers so far; None when the price is not known."""


@dataclass
class Outcome:
    """What became of the examples; one that is neither in ``answers`` nor in ``failures`` was not asked about."""

    answers: dict[str, StoredAnswer] = field(default_factory=dict)
    """The answer that counts, by the example's digest."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why there is no answer, by the example's digest."""
    asked: int = 0
    """Questions that this run sent."""
    spent: float = 0.0
    """Dollars that all answers cost, those of earlier runs included; 0 where the price is not known."""
    limited: bool = False
    """Whether the spending limit ended the asking."""


@dataclass(frozen=True)
class Interview:
    """Everything that one run of asking shares."""

    judge: Judge
    rubric: Rubric
    store: LabelStore
    price: Price | None
    """None when it is not known; then there is no limit to keep."""
    max_usd: float | None = None
    """The most that all answers may cost, those of earlier runs included."""

    def cost(self, example: Example, answer: Answer) -> float | None:
        """Dollars of an answer; estimated from the texts where the server counts no tokens."""
        if self.price is None:
            return None
        if answer.usage == Usage():
            return self.price.cost(estimate_usage(example, self.rubric, answer.raw))
        return self.price.cost(answer.usage)

    def ask(self, example: Example) -> StoredAnswer:
        """Ask one question and keep the answer; runs in a thread of its own."""
        answer = self.judge.ask(example, self.rubric)
        return self.store.put(example, self.rubric, self.judge, answer, self.cost(example, answer))

    def bound(self, example: Example) -> float:
        """Dollars to set aside for a question under way; 0 without a limit."""
        if self.price is None or self.max_usd is None:
            return 0.0
        return self.price.cost(bound_usage(example, self.rubric, self.judge.max_completion_tokens))


def ask_all(
    interview: Interview, examples: Iterable[Example], outcome: Outcome, report: Callable[[Outcome], None]
) -> None:
    """Ask about every example, or until the spending limit is reached.

    Args:
        interview: judge, rubric, store and limit.
        examples: those without an answer in the store.
        outcome: filled as answers arrive; what earlier runs spent is already in it.
        report: called after each answer.

    Raises:
        EmpathyError: the judge refuses to work at all, or gave no answer many times in a row. What had arrived is kept.
    """
    waiting = iter(examples)
    following = next(waiting, None)
    reserved: dict[Future[StoredAnswer], tuple[Example, float]] = {}
    in_a_row = 0
    finished = False
    executor = ThreadPoolExecutor(interview.judge.concurrency, thread_name_prefix="judge")
    try:
        while following is not None or reserved:
            while following is not None and len(reserved) < interview.judge.concurrency:
                bound = interview.bound(following)
                under_way = sum(usd for _, usd in reserved.values())
                if interview.max_usd is not None and outcome.spent + under_way + bound > interview.max_usd:
                    # Answers under way mostly cost less than was set aside: with them in, this one may still fit.
                    outcome.limited = not reserved
                    break
                reserved[executor.submit(interview.ask, following)] = (following, bound)
                outcome.asked += 1
                following = next(waiting, None)
            if not reserved:
                break
            for future in wait(reserved, return_when=FIRST_COMPLETED).done:
                example, _ = reserved.pop(future)
                in_a_row = 0 if _settle(future, example, outcome) else in_a_row + 1
                report(outcome)
            if in_a_row >= _GIVE_UP_AFTER:
                reason = next(reversed(outcome.failures.values()))
                raise EmpathyError(
                    f"the last {in_a_row} questions got no answer ({reason}), so the rest were not asked. "
                    "What was answered is kept: run the same command again when the judge is well."
                )
        finished = True
    finally:
        if not finished:
            interview.judge.stop()
        # Answers under way are paid for: they are waited for and kept.
        executor.shutdown(wait=True, cancel_futures=True)


def _settle(future: Future[StoredAnswer], example: Example, outcome: Outcome) -> bool:
    try:
        stored = future.result()
    except NoAnswerError as error:
        _logger.info("no answer for %s: %s", example.id, error)
        outcome.failures[example.digest] = error.reason
        return False
    outcome.answers[example.digest] = stored
    outcome.spent += stored.usd or 0.0
    return True
