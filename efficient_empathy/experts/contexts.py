"""Which contexts are answered: from dialogues of any format, whether anybody answered them or not."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from efficient_empathy.dialogues import Record, Reject, RowError, read_records, record_examples
from efficient_empathy.dialogues.paths import shown_path
from efficient_empathy.dialogues.records import FIELD_PREFIX
from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.choosing import choose_examples
from efficient_empathy.errors import EmpathyError

ContextMode = Literal["auto", "last-turn", "every-turn"]
CONTEXT_MODES: tuple[str, ...] = get_args(ContextMode)


@dataclass(frozen=True)
class ContextOptions:
    """Which contexts of some dialogues are taken."""

    examples: ContextMode = "auto"
    """``auto``: what comes before a last turn of the listener, or everything where the speaker has the last word; ``last-turn`` and
    ``every-turn``: what comes before listener turns that say something, see ``examples_of``."""
    limit: int | None = None
    """Take so many at most, 1 or more, drawn by ``seed``, one of each conversation before a second of any; None takes all."""
    seed: int = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        if self.examples not in CONTEXT_MODES:
            raise EmpathyError(f"examples must be one of {', '.join(CONTEXT_MODES)}, not '{self.examples}'.")
        if self.limit is not None and self.limit < 1:
            raise EmpathyError(f"limit must be 1 or more, not {self.limit}.")


@dataclass(frozen=True)
class Context(Example):
    """Turns to be answered. The example's response is what a person answered; blank where nobody did."""

    place: int = 0
    """Among all contexts of the inputs, from 0."""

    @property
    def reference(self) -> str | None:
        """What a person answered, if anybody did."""
        return self.response if self.response.strip() else None


def read_contexts(
    inputs: Sequence[str], options: ContextOptions, on_reject: Callable[[Reject], None] | None = None
) -> list[Context]:
    """The contexts of some dialogues, in the order of the input.

    Args:
        inputs: files, folders, globs or URLs.
        options: which ones.
        on_reject: called with each row that holds no context; without it, such a row raises.

    Raises:
        EmpathyError: an input cannot be read, there is no context, or two have the same id.
    """
    rejected = 0

    def told(reject: Reject) -> None:
        nonlocal rejected
        rejected += 1
        if on_reject is None:
            raise EmpathyError(f"'{shown_path(reject.path)}', line {reject.line}: {reject.reason}: {reject.detail}.")
        on_reject(reject)

    contexts: list[Context] = []
    found = _contexts(inputs, options.examples, told)
    if options.limit is None:
        contexts = list(found)
    else:
        drawn = choose_examples(found, options.limit, options.seed)
        contexts = sorted((one for one in drawn if isinstance(one, Context)), key=lambda context: context.place)
    if not contexts:
        bad = f"; {rejected} rows could not be read" if rejected else ""
        raise EmpathyError(f"there is nothing to answer in {', '.join(map(shown_path, inputs))}{bad}.")
    _check_ids(contexts)
    return contexts


def _contexts(inputs: Sequence[str], mode: ContextMode, on_reject: Callable[[Reject], None]) -> Iterator[Context]:
    place = 0
    for record in read_records(inputs, on_reject=on_reject, answered=mode != "auto"):
        try:
            examples = _examples(record, mode)
        except RowError as error:
            raw = "" if record.raw is None else record.raw.decode("utf-8", "backslashreplace")
            on_reject(Reject(record.path, record.line, error.reason, error.detail, raw))
            continue
        for example in examples:
            yield Context(example.id, example.dialogue_id, example.turn, example.context, example.response, place=place)
            place += 1


def _examples(record: Record, mode: ContextMode) -> list[Example]:
    is_scored = record.row.get(FIELD_PREFIX + "turn") not in (None, "")
    if mode == "auto" and not is_scored:
        found = [_last(record)]
    else:
        found = record_examples(record, "every-turn" if mode == "auto" else mode)
    if not all(any(turn.text.strip() for turn in example.context) for example in found):
        raise RowError("no-context", "nothing is said before the turn that is to be answered")
    return found


def _last(record: Record) -> Example:
    """The last turn of the listener with what comes before it; after a last turn of the speaker, a blank one."""
    dialogue = record.dialogue
    turns = dialogue.turns
    answered = turns[-1].role == "listener"
    context, response = (turns[:-1], turns[-1].text) if answered else (turns, "")
    if dialogue.is_pair:
        return Example(dialogue.id, dialogue.group or dialogue.id, len(context), context, response)
    return Example(f"{dialogue.id}_turn:{len(context)}", dialogue.id, len(context), context, response)


def _check_ids(contexts: Sequence[Context]) -> None:
    seen: set[str] = set()
    for context in contexts:
        if context.id in seen:
            raise EmpathyError(
                f"the id '{context.id}' stands twice in the inputs; answers are compared by id: give each row its own."
            )
        seen.add(context.id)
