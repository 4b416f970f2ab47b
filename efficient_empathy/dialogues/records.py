"""Rows as they came in: what is kept of each, its examples, and how new fields are added to it."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from efficient_empathy.dialogues.examples import ExampleMode, examples_of
from efficient_empathy.dialogues.formats import RowError
from efficient_empathy.dialogues.types import Dialogue, Example

FIELD_PREFIX = "ee_"
"""What the names of added fields begin with."""
_OLD_FIELD, _ESCAPE = b'"' + FIELD_PREFIX.encode(), b"\\u"


@dataclass(frozen=True, slots=True)
class Record:
    """One row that was read: the row itself and the dialogue it holds."""

    row: dict[str, Any]
    dialogue: Dialogue
    path: str
    line: int
    """Line of the file, from 1; for a table the row's number, from 1."""
    raw: bytes | None
    """The line as it stands in the file, without its line end; None for what is not JSONL."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One row that could not be read."""

    path: str
    line: int
    reason: str
    """Short stable name, such as ``invalid-json``: what rejects are counted by."""
    detail: str
    raw: str
    """The row as text; bytes that are not UTF-8 are written as ``\\xNN``."""


def with_fields(record: Record, fields: Mapping[str, Any]) -> bytes:
    """The row that came in plus new fields, as one JSON line without line end.

    The bytes of a JSONL row stay as they are. A row that already has fields with our prefix loses those first, and a
    row of a table becomes JSON: dates as ISO 8601, bytes as base64, NaN as null,
    and whatever else JSON lacks as text.

    Args:
        record: the row.
        fields: new fields by name, each beginning with ``ee_``.
    """
    row = record.row
    has_old = _has_old_fields(record)
    added = orjson.dumps(fields if type(fields) is dict else dict(fields), option=orjson.OPT_SERIALIZE_NUMPY)
    if record.raw is not None and not has_old:
        kept = record.raw.strip()
    else:
        kept = row_json(
            {key: value for key, value in row.items() if not key.startswith(FIELD_PREFIX)} if has_old else row
        )
    if added == b"{}":
        return kept
    head = kept[:-1].rstrip()
    return head + (b"" if head == b"{" else b",") + added[1:]


def _has_old_fields(record: Record) -> bool:
    raw = record.raw
    if raw is not None and _OLD_FIELD not in raw and _ESCAPE not in raw:
        return False  # such a key would be seen in the bytes, which is looked up faster
    return any(key.startswith(FIELD_PREFIX) for key in record.row)


def row_json(row: Mapping[str, Any]) -> bytes:
    """A row of any container as JSON."""
    return orjson.dumps(row, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def record_examples(record: Record, mode: ExampleMode = "every-turn") -> list[Example]:
    """The examples of a record; a row that was written with scores (``ee_turn``) is the one example that it names.

    Args:
        record: the row.
        mode: which listener turns to take, see ``examples_of``; a row with ``ee_turn`` is one example in every mode.

    Raises:
        RowError: ``ee_turn`` is not the index of a listener turn.
    """
    dialogue, row = record.dialogue, record.row
    if row.get(FIELD_PREFIX + "turn") in (None, ""):
        return list(examples_of(dialogue, mode))
    turn, turns = scored_turn(row, dialogue), dialogue.turns
    suffix = f"_turn:{turn}"
    given = row.get(FIELD_PREFIX + "id")
    if dialogue.is_pair:
        own, group = dialogue.id, dialogue.group or dialogue.id
    elif isinstance(given, str) and given.endswith(suffix) and not isinstance(row.get("id"), str | int):
        # The row brought no id of its own: the id it was given still says which conversation it belongs to.
        own, group = given, given.removesuffix(suffix)
    else:
        own, group = dialogue.id + suffix, dialogue.id
    example_id = given if isinstance(given, str) and given else own
    return [Example(example_id, group, turn, turns[:turn], turns[turn].text)]


def scored_turn(row: Mapping[str, Any], dialogue: Dialogue) -> int:
    """The index that ``ee_turn`` holds.

    Raises:
        RowError: it is not the index of a listener turn of this dialogue.
    """
    value, turns = row[FIELD_PREFIX + "turn"], dialogue.turns
    if isinstance(value, str) and value.isascii() and value.isdigit():  # a CSV cell
        value = int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 0 <= value < len(turns)
        or turns[value].role != "listener"
    ):
        raise RowError("bad-ee-turn", f"ee_turn is {value!r}, which is no listener turn of the {len(turns)} turns here")
    return value


def check_dialogue(row: Mapping[str, Any], dialogue: Dialogue) -> None:
    """Refuse a dialogue that holds no example.

    Raises:
        RowError: no listener turn has something before it, all of those are blank, or ``ee_turn`` is out of place.
    """
    if row.get(FIELD_PREFIX + "turn") not in (None, ""):
        scored_turn(row, dialogue)
    if dialogue.is_pair:
        return
    found = False
    for turn in dialogue.turns[1:]:
        if turn.role == "listener":
            if turn.text and not turn.text.isspace():
                return
            found = True
    if found:
        raise RowError("empty-response", "every listener turn is blank")
    raise RowError("no-listener-turn", "no listener turn has a turn before it")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    return str(value)
