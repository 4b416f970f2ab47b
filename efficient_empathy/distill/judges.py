"""What a judge is: something that answers one question about one subject, and how it is named on the command line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from efficient_empathy.distill.questions import Criteria, SubjectT
from efficient_empathy.errors import EmpathyError

if TYPE_CHECKING:
    from efficient_empathy.distill.options import JudgeOptions

EXPECTED_VALUE = "expected-value"
"""The way of a local judge with a rubric: the mean of the numbers on the scale, weighted by their probabilities."""


@dataclass(frozen=True)
class Usage:
    """Tokens that one answer took, as the server counted them."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    """The part of ``prompt`` that the server took from its cache, which some services bill at a lower price."""


@dataclass(frozen=True)
class Answer:
    """What came back for one question: it may have cost money, so it is kept whether or not it can be read."""

    raw: str
    """The judge's own words (for a local judge, the probabilities of the scores as JSON)."""
    scores: Mapping[str, float] | None
    """The score of each dimension of the rubric (or of each verdict on offer); None when the answer could not be read."""
    reason: str | None = None
    """Why there are no scores, as a short stable word; None when there are."""
    usage: Usage = Usage()
    form: str = ""
    """How the question was put, where a judge has several ways: counted in the manifest."""

    def __post_init__(self) -> None:
        if (self.scores is None) == (self.reason is None):
            raise ValueError("an answer has either scores or a reason why it has none")


OnLost = Callable[[], bool]
"""Told of an attempt that was sent and whose answer never came, though it may be billed; says whether to send again."""


def send_again() -> bool:
    """An ``OnLost`` that counts nothing and always sends again."""
    return True


BUSY = frozenset({408, 409, 425, 429})
"""HTTP statuses that ask to come again later: they say nothing of the question."""


class NoAnswerError(Exception):
    """A question that got no answer in the end: counted as unscored, not stored, asked again by the next run."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    @property
    def refused(self) -> bool:
        """Whether this very question was refused, so that others may do better."""
        return self.reason == "too-long" or (
            self.reason.startswith("http-4") and self.reason not in {f"http-{status}" for status in BUSY}
        )


class Judge(Protocol):
    """Anything that answers questions, e.g. rates examples; called from several threads at once, up to ``concurrency``."""

    @property
    def name(self) -> str:
        """The judge as the user named it, e.g. ``openai:gpt-4o-mini``."""
        ...

    @property
    def model(self) -> str:
        """The model's name in a price table; empty when answers cost nothing."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Everything beside the question and the model that an answer depends on: part of the key that it is stored under."""
        ...

    @property
    def concurrency(self) -> int:
        """How many questions may be under way at once."""
        ...

    @property
    def max_completion_tokens(self) -> int:
        """The most tokens that one answer can take: what is set aside for it under a spending limit."""
        ...

    def ask(self, subject: SubjectT, criteria: Criteria[SubjectT], on_lost: OnLost = send_again) -> Answer:
        """Ask one question, e.g. for the ratings of an example.

        Args:
            subject: what it is about.
            criteria: what is asked.
            on_lost: told of each attempt that may be billed without an answer; where it says no, none follows.

        Raises:
            NoAnswerError: this question got no answer; others may.
            EmpathyError: no question will get one, e.g. because the key is refused.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the judge; the same before and after the run, and without secrets."""
        ...

    def stop(self) -> None:
        """Give up waiting between attempts; what is under way may still arrive."""
        ...

    def close(self) -> None:
        """Let go of connections and models."""
        ...


def open_judge(options: "JudgeOptions", ask: bool = True, method: str = EXPECTED_VALUE) -> Judge:
    """Build the judge that ``--judge`` names.

    Args:
        options: ``judge`` is ``openai:MODEL`` or ``local:PATH-OR-ID``.
        ask: False for a dry run: the judge can be named, priced and described, and needs neither key nor model.
        method: how the probabilities of a local judge become scores; part of the key of its answers.

    Raises:
        EmpathyError: the kind is unknown, the model is not named, or the judge cannot be set up.
    """
    kind, _, model = options.judge.partition(":")
    if kind == "openai" and model:
        from efficient_empathy.distill.openai_judge import OpenAIJudge

        return OpenAIJudge.connect(model, options, ask)
    if kind == "local" and model:
        from efficient_empathy.distill.local_judge import LocalJudge

        return LocalJudge.load(model, ask, method)
    raise EmpathyError(
        f"--judge must be openai:MODEL or local:PATH-OR-ID, e.g. openai:gpt-4o-mini, not '{options.judge}'."
    )
