"""The formats of a row, told apart by its keys: one small function a format."""

from collections.abc import Callable, Mapping
from typing import Any

from efficient_empathy.dialogues.turns import RowError, context_turns, is_turn_list, json_list, response_turn, turn_list
from efficient_empathy.dialogues.types import Dialogue, Turn

PROMPT_KEYS = ("seeker", "prompt", "question", "query", "input")
RESPONSE_KEYS = ("response", "completion", "output", "answer", "reply")
GROUP_KEYS = ("conv_id", "conversation_id", "dialogue_id")

_READ = ("turns", "messages", "conversations", "context", "instruction", *PROMPT_KEYS, *RESPONSE_KEYS)
_JOINT = "</s>"
_MISSING = "\0"
"""Stands for a response that a row does not have."""
_LISTS, _TEXT_OR_LIST = (list, tuple), (str, list, tuple)  # checked for each row: tuples are faster than `|`

_Parsed = tuple[list[Turn], tuple[str, ...], bool]  # turns, the keys they were made from, whether the row is a pair
Parts = tuple[str, list[Turn], tuple[str, ...], bool, str | None]
"""A dialogue's id and turns, the keys these were made from, ``is_pair`` and ``group``."""


def parse_row(row: Mapping[str, Any], row_id: str, answered: bool = True) -> Dialogue:
    """Read one row, whatever its format.

    Args:
        row: the row's columns by name.
        row_id: the dialogue's id if the row brings none.
        answered: whether a pair must hold a response; without, a missing one is read as a blank last turn.

    Raises:
        RowError: the format is unknown, or the row does not keep to it.
    """
    own, turns, used, is_pair, group = read_parts(row, row_id, answered)
    meta = {key: value for key, value in row.items() if key not in used}
    return Dialogue(own, tuple(turns), meta, is_pair, group)


def read_parts(row: Mapping[str, Any], row_id: str, answered: bool = True) -> Parts:
    """Read one row as ``parse_row`` does, into what a dialogue is made of."""
    whole = row if answered else _with_response(row)
    filled = _filled(whole)
    reader = _reader_of(filled)
    if reader is not None:
        whole = filled
    elif (reader := _reader_of(whole)) is None:
        raise _unknown_format(row)
    turns, used, is_pair = reader(whole)
    if is_pair and turns[-1].text == _MISSING:
        turns[-1] = Turn("listener", "")
    group = _group(row)
    own = _name(row.get("id")) or (row_id if is_pair else group or row_id)
    return own, turns, used, is_pair, group if is_pair else None


def _with_response(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row, with a mark where a response would stand if it has none; conversations do not mind it."""
    kept = {key: value for key, value in row.items() if key not in RESPONSE_KEYS or not _is_blank(value)}
    return kept if _response_key(kept) else {**kept, "response": _MISSING}


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def _filled(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row without blank cells: a table has the columns of all its formats in each row, and a blank one says nothing."""
    blank = [key for key in _READ if key in row and _is_blank(row[key])]
    if "instruction" in blank and not _is_blank(row.get("input")):
        blank.remove("instruction")  # Alpaca's, all of it in the input
    return {key: value for key, value in row.items() if key not in blank} if blank else row


def _reader_of(row: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], _Parsed] | None:
    for key, reader in _CONVERSATIONS:
        if key in row and is_turn_list(row[key]):
            return reader
    context = row.get("context")
    if (
        isinstance(row.get("instruction"), str)
        and not isinstance(context, _LISTS)
        and ("output" in row or "response" in row)
    ):
        return read_alpaca
    if "response" in row and isinstance(context, _TEXT_OR_LIST):
        return read_context_response
    if _prompt_key(row) and _response_key(row):
        return read_prompt_response
    return None


def _unknown_format(row: Mapping[str, Any]) -> RowError:
    hint = ""
    if "utterance" in row and "conv_id" in row:
        hint = "; one utterance a row, as in EmpatheticDialogues, is read from CSV files only"
    keys = ", ".join(map(str, row)) or "(none)"
    return RowError("unknown-format", f"no known format has the keys {keys[:500]}{hint}")


def read_turns(row: Mapping[str, Any]) -> _Parsed:
    """Our own format: ``turns``, a list of ``{"role", "text"}``."""
    return turn_list(row["turns"], "turns", "role", "text"), ("id", "turns"), False


def read_messages(row: Mapping[str, Any]) -> _Parsed:
    """The OpenAI format: ``messages``, a list of ``{"role", "content"}``; content is a text or a list of text parts."""
    return turn_list(row["messages"], "messages", "role", "content"), ("id", "messages"), False


def read_sharegpt(row: Mapping[str, Any]) -> _Parsed:
    """The ShareGPT format: ``conversations``, a list of ``{"from", "value"}``."""
    return turn_list(row["conversations"], "conversations", "from", "value"), ("id", "conversations"), False


def read_context_response(row: Mapping[str, Any]) -> _Parsed:
    """A pair: ``context`` (a list of texts or of turns, or one text joined with ``</s>``) and ``response``."""
    context = row["context"]
    items = json_list(context) if isinstance(context, str) else context
    if items is None:
        pieces = [piece.strip() for piece in context.split(_JOINT)]
        # A closing mark, as some models' chat texts have, is no empty turn.
        items = pieces[:-1] if len(pieces) > 1 and not pieces[-1] else pieces
    turns = [*context_turns(items, "context"), response_turn(row["response"], "response")]
    return turns, ("id", "context", "response"), True


def read_prompt_response(row: Mapping[str, Any]) -> _Parsed:
    """A pair: one of ``PROMPT_KEYS`` and one of ``RESPONSE_KEYS``; each a text, or a list of messages."""
    prompt, response = _prompt_key(row), _response_key(row)
    value = row[prompt]
    context = [Turn("speaker", value)] if isinstance(value, str) else context_turns(value, prompt)
    turns = [*_system(row), *context, response_turn(row[response], response)]
    return turns, ("id", prompt, response, "system"), True


def read_alpaca(row: Mapping[str, Any]) -> _Parsed:
    """A pair: ``instruction``, ``input``, ``output``, maybe ``system`` and ``history``; Dolly's names as well."""
    answer = "output" if "output" in row else "response"
    extra = "input" if isinstance(row.get("input"), str) else "context"
    texts = [row["instruction"], row.get(extra)]
    asked = "\n\n".join(text for text in texts if isinstance(text, str) and text.strip())
    earlier: list[Turn] = []
    history = row.get("history")
    for index, pair in enumerate(history if isinstance(history, list) else []):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowError("bad-turn", f"'history' item {index} must be a list of two texts")
        earlier += [Turn("speaker", pair[0]), Turn("listener", pair[1])]
    turns = [*_system(row), *earlier, Turn("speaker", asked), response_turn(row[answer], answer)]
    return turns, ("id", "instruction", extra, answer, "history", "system"), True


_CONVERSATIONS = (("turns", read_turns), ("messages", read_messages), ("conversations", read_sharegpt))


def _name(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    return str(value) if type(value) is int else None


def _group(row: Mapping[str, Any]) -> str | None:
    for key in GROUP_KEYS:
        if key in row and (name := _name(row[key])):
            return name
    return None


def _prompt_key(row: Mapping[str, Any]) -> str:
    for key in PROMPT_KEYS:
        if key in row and isinstance(row[key], _TEXT_OR_LIST):
            return key
    return ""


def _response_key(row: Mapping[str, Any]) -> str:
    for key in RESPONSE_KEYS:
        if key in row:
            return key
    return ""


def _system(row: Mapping[str, Any]) -> list[Turn]:
    system = row.get("system")
    return [Turn("system", system)] if isinstance(system, str) and system.strip() else []
