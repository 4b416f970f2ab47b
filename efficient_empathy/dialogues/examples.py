"""From dialogues to the examples that are scored."""

from collections.abc import Iterator
from typing import Literal, get_args

from efficient_empathy.dialogues.types import Dialogue, Example
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
    turns = dialogue.turns
    if dialogue.is_pair:
        group = dialogue.group or dialogue.id
        yield Example(dialogue.id, group, len(turns) - 1, turns[:-1], turns[-1].text)
        return
    indices = [i for i, turn in enumerate(turns) if turn.role == "listener" and i > 0 and turn.text.strip()]
    for index in indices if mode == "every-turn" else indices[-1:]:
        yield Example(f"{dialogue.id}_turn:{index}", dialogue.id, index, turns[:index], turns[index].text)
