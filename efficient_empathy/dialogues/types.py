"""The two units of the whole package: a dialogue that came in, and an example that is scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from efficient_empathy.manifest import canonical_json, sha256_bytes

Role = Literal["speaker", "listener", "system"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said at once."""

    role: Role
    """``speaker`` shares or asks, ``listener`` answers, ``system`` holds instructions."""
    text: str

    # The generated one takes half as long again, and millions of dialogues have many turns.
    def __init__(self, role: Role, text: str) -> None:
        _set_role(self, role)
        _set_text(self, text)


_set_role, _set_text = vars(Turn)["role"].__set__, vars(Turn)["text"].__set__


@dataclass(frozen=True)
class Dialogue:
    """A conversation between a speaker and a listener, as it was read from one row."""

    id: str
    turns: tuple[Turn, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the row held."""
    is_pair: bool = False
    """True when the row is itself one example (a context and a response): only its last turn is scored, under the row's own id."""
    group: str | None = None
    """The conversation that a pair was cut from, where the row names it; splits keep a group together."""


@dataclass(frozen=True)
class Example:
    """The unit that is scored: a listener's response with all turns before it."""

    id: str
    dialogue_id: str
    """The conversation that it belongs to; splits and bootstraps keep its examples together."""
    turn: int
    """Index of the response in the dialogue's turns, from 0."""
    context: tuple[Turn, ...]
    """All turns before the response, oldest first; may be empty."""
    response: str

    # The generated one takes twice as long.
    def __init__(self, id: str, dialogue_id: str, turn: int, context: tuple[Turn, ...], response: str) -> None:
        self.__dict__.update(id=id, dialogue_id=dialogue_id, turn=turn, context=context, response=response)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text and roles alone, whatever the id: equal text is never judged or paid for twice."""
        turns = [[turn.role, turn.text] for turn in self.context]
        return sha256_bytes(canonical_json([turns, self.response]))

    def transcript(self) -> str:
        """The example as people read it, one turn a line: ``Speaker: …``, ``Listener: …``."""
        turns = [*self.context, Turn("listener", self.response)]
        return "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in turns)
