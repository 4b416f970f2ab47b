"""What a judge can be asked: any question about any text that can be put in words and whose answer can be read."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

Following = Callable[[str], Mapping[str, float]]
"""Given the start of an answer, the probability of each next token by its text; tokens that cannot start a verdict may lack."""


class Verdict(NamedTuple):
    """What an answer says, or why it says nothing."""

    scores: Mapping[str, float] | None
    reason: str | None
    """A short stable word; None when there are scores."""


class Weighed(NamedTuple):
    """What the probabilities of a language model's next tokens say."""

    details: Mapping[str, Any]
    """The probabilities themselves, for the record; anything that JSON can hold."""
    verdict: Verdict


class Subject(Protocol):
    """What a question is about, e.g. an example."""

    @property
    def id(self) -> str:
        """For people; not part of the key that an answer is stored under."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the judge is shown of it."""
        ...


SubjectT = TypeVar("SubjectT", bound=Subject)
Asked = TypeVar("Asked", bound=Subject, contravariant=True)


class Criteria(Protocol[Asked]):
    """What is asked about every subject and how the answers are read, e.g. a rubric."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the judge is shown beside the subject."""
        ...

    def prompt(self, subject: Asked) -> list[dict[str, str]]:
        """The question as chat messages."""
        ...

    def json_schema(self) -> dict[str, Any]:
        """The schema of a full answer, for servers that can be held to one."""
        ...

    def shortest_answer(self) -> str:
        """The shortest full answer, to estimate what one costs."""
        ...

    def read(self, text: str, cut_off: bool) -> Verdict:
        """Read an answer; one that was cut off for its length may lack its end."""
        ...

    def weigh(self, following: Following) -> Weighed:
        """Read the scores off a language model's probabilities, without an answer being written."""
        ...
