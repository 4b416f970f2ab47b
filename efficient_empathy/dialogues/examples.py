"""From dialogues to the examples that are scored."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from efficient_empathy.dialogues.types import Dialogue, Example, Turn
from efficient_empathy.errors import EmpathyError

ExampleMode = Literal["every-turn", "last-turn"]
EXAMPLE_MODES: tuple[str, ...] = get_args(ExampleMode)


def examples_of(dialogue: Dialogue, mode: ExampleMode = "every-turn") -> Iterator[Example]:
    """Yield the examples a dialogue holds.

    Args:
        dialogue: the conversation; a pair (``is_pair``) is one example under its own id, whatever the mode.
        mode: ``every-turn`` yields each listener turn that says something and has a turn before it, with its context (the
            paper's way);
            ``last-turn`` yields the last such turn only.

    Raises:
        EmpathyError: the mode is not one of ``EXAMPLE_MODES``.
    """
    if mode not in EXAMPLE_MODES:
        raise EmpathyError(f"examples must be one of {', '.join(EXAMPLE_MODES)}, not '{mode}'.")
    yield from cut_examples(dialogue.id, dialogue.turns, dialogue.is_pair, dialogue.group, mode)


def cut_examples(own: str, turns: Sequence[Turn], is_pair: bool, group: str | None, mode: str) -> list[Example]:
    """The examples of a dialogue that is given by its parts; see ``Dialogue`` and ``examples_of``."""
    turns = tuple(turns)
    if is_pair:
        return [Example(own, group or own, len(turns) - 1, turns[:-1], turns[-1].text)]
    found = []
    for index, turn in enumerate(turns):
        if turn.role == "listener" and index and (text := turn.text) and not text.isspace():
            found.append(index)
    if mode != "every-turn":
        found = found[-1:]
    return [Example(f"{own}_turn:{index}", own, index, turns[:index], turns[index].text) for index in found]
