"""The turns of a row: roles by any of their names, texts, and what is wrong with those that cannot be read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from efficient_empathy.dialogues.types import Role, Turn
from efficient_empathy.errors import EmpathyError

_ROLES: dict[Any, Role] = {
    **dict.fromkeys(("speaker", "user", "human", "seeker"), "speaker"),
    **dict.fromkeys(("listener", "assistant", "gpt", "chatgpt", "bot", "model", "supporter"), "listener"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_TOOL_ROLES = {"tool", "function", "function_call", "function_response", "observation", "ipython"}
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("text", "content", "value")


class RowError(EmpathyError):
    """A row that holds no dialogue that can be read."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep the reason, a short stable name such as ``unknown-format``, and the detail, a sentence for people."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["RowError"], tuple[str, str]]:
        return RowError, (self.reason, self.detail)


def is_turn_list(value: Any) -> bool:
    """Whether a column may hold a list of turns: a list, its columns, or its JSON text."""
    return isinstance(value, (list, tuple, dict)) or (isinstance(value, str) and value.lstrip().startswith("["))


def json_list(text: str) -> list[Any] | None:
    """The list that a CSV cell holds as JSON, or None if the text is just text, as in "[sigh] I lost it"."""
    if not text.lstrip().startswith("["):
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _items(value: Any, key: str) -> Sequence[Any]:
    if type(value) is list and value:
        return value
    items = json_list(value) if isinstance(value, str) else value
    if isinstance(items, Mapping):
        # A list of structs that was saved column by column, as `datasets` does.
        columns = list(items.values())
        if not columns or not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            raise RowError("bad-turns", f"'{key}' must be a list of turns, not an object")
        items = [dict(zip(items, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if items is None:
        raise RowError("bad-turns", f"'{key}' must be a list of turns; its text is not a JSON list")
    if not items:
        raise RowError("no-turns", f"'{key}' is an empty list")
    return items


def turn_list(value: Any, key: str, role_key: str, text_key: str) -> list[Turn]:
    """The turns in a list of objects.

    Args:
        value: the list, its JSON text, or an object that holds it column by column.
        key: the column's name, for messages.
        role_key: what roles are usually called here; ``role`` and ``from`` are understood everywhere.
        text_key: what texts are usually called here; ``text``, ``content`` and ``value`` are understood everywhere.

    Raises:
        RowError: it is no such list, or one of its items is no turn.
    """
    turns = []
    for index, item in enumerate(_items(value, key)):
        try:
            role, text = _ROLES[item[role_key]], item[text_key]
        except (KeyError, TypeError):  # another spelling, or a fault to be named
            role, text = _odd_turn(item, f"'{key}' item {index}")
        if type(text) is not str or not text:
            text = _text(text, item, f"'{key}' item {index}")
        turns.append(Turn(role, text))
    return turns


def _odd_turn(item: Any, where: str) -> tuple[Role, Any]:
    if not isinstance(item, Mapping):
        raise RowError("bad-turn", f"{where} must be an object with a role and a text")
    name = _first(item, _ROLE_KEYS)
    plain = name.strip().lower() if isinstance(name, str) else name
    if isinstance(plain, str) and plain in _TOOL_ROLES:
        raise RowError(
            "tool-message",
            f"{where} is a message of a tool ('{name}'); only speaker, listener and system turns are read",
        )
    if not isinstance(plain, str) or plain not in _ROLES:
        found = "it has no role" if name is None else f"its role is {name!r}"
        raise RowError("unknown-role", f"{where}: {found}; roles are {', '.join(_ROLES)}")
    return _ROLES[plain], _first(item, _TEXT_KEYS)


def _first(item: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _text(value: Any, item: Mapping[str, Any], where: str) -> str:
    if not value and (item.get("tool_calls") or item.get("function_call")):
        raise RowError("tool-message", f"{where} calls a tool; only turns with a text are read")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return "\n".join(_part(part, where) for part in value)
    raise RowError("empty-turn", f"{where} has no text: found {type(value).__name__}")


def _part(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise RowError("not-text", f"{where} has a part that is not text: {kind!r}")
    return text


def context_turns(items: Sequence[Any], key: str) -> list[Turn]:
    """The turns before a response: a list of turns, or of texts whose roles alternate, the last the speaker's."""
    if items and type(items[0]) is dict:  # the usual case, told without looking at every item
        return turn_list(items, key, "role", "text")
    if all(isinstance(item, str) for item in items):
        return [Turn("speaker" if (len(items) - index) % 2 else "listener", text) for index, text in enumerate(items)]
    return turn_list(items, key, "role", "text")


def response_turn(value: Any, key: str) -> Turn:
    """The response of a pair: a text, or a list of one message; RowError if it is empty."""
    if type(value) is str and value and not value.isspace():
        return Turn("listener", value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = turn_list(value, key, "role", "content")[0].text
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError("empty-response", f"'{key}' is empty")
    if not isinstance(value, str):
        raise RowError("not-text", f"'{key}' must be a text, not {type(value).__name__}")
    return Turn("listener", value)
