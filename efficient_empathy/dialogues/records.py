"""Rows as they came in: what is kept of each, its examples, and how new fields are added to it."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from efficient_empathy.dialogues.examples import ExampleMode, cut_examples, examples_of
from efficient_empathy.dialogues.formats import RowError, parse_row, read_parts
from efficient_empathy.dialogues.paths import shown_path
from efficient_empathy.dialogues.types import Dialogue, Example, Turn

FIELD_PREFIX = "ee_"
"""What the names of added fields begin with."""
_SCORED_TURN = FIELD_PREFIX + "turn"

_WHOLE = re.compile(r"[0-9]{1,9}(\.0+)?")

Row = tuple[int, dict[str, Any], bytes | None]
"""A row's line number, its columns and its bytes (JSONL only)."""


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


def reject_line(reject: Reject) -> bytes:
    """A row that could not be read as a line of ``rejected/``, without line end."""
    return orjson.dumps(
        {
            "file": shown_path(reject.path),
            "line": reject.line,
            "reason": reject.reason,
            "detail": reject.detail,
            "raw": reject.raw,
        }
    )


def with_fields(record: Record, fields: Mapping[str, Any]) -> bytes:
    """The row that came in plus new fields, as one JSON line without line end.

    The bytes of a JSONL row stay as they are. A row that already has fields with our prefix loses those first, and a
    row of a table becomes JSON: dates as ISO 8601, bytes as base64, NaN as null,
    and whatever else JSON lacks as text.

    Args:
        record: the row.
        fields: new fields by name, each beginning with ``ee_``.
    """
    if not fields:
        return _without_old_fields(record.row, record.raw)
    return open_row(record.row, record.raw) + orjson.dumps(dict(fields), option=orjson.OPT_SERIALIZE_NUMPY)[1:]


def open_row(row: Mapping[str, Any], raw: bytes | None) -> bytes:
    """The row that came in as JSON up to where new fields go: ``with_fields`` in two steps, for several examples of a row.

    Args:
        row: the row's columns.
        raw: its bytes, for JSONL.
    """
    head = _without_old_fields(row, raw)[:-1].rstrip()
    return head if head == b"{" else head + b","


def _without_old_fields(row: Mapping[str, Any], raw: bytes | None) -> bytes:
    if _has_old_fields(tuple(row)):
        return row_json({key: value for key, value in row.items() if not key.startswith(FIELD_PREFIX)})
    return row_json(row) if raw is None else raw.strip()


@lru_cache(1024)  # rows of a file have the same keys, or a few sets of them
def _has_old_fields(keys: tuple[str, ...]) -> bool:
    return any(key.startswith(FIELD_PREFIX) for key in keys)


def row_json(row: Any) -> bytes:
    """A row of any container, or a value of one, as JSON.

    Raises:
        TypeError: it lies more than some 250 levels deep.
    """
    return orjson.dumps(row, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def row_examples(row: dict[str, Any], row_id: str, mode: ExampleMode) -> list[Example]:
    """The examples of a row: what ``record_examples`` gives for its record, without making that.

    Raises:
        RowError: the row cannot be read, or holds no example.
    """
    if row.get(_SCORED_TURN) not in (None, ""):
        dialogue = parse_row(row, row_id)
        check_dialogue(row, dialogue)
        return record_examples(Record(row, dialogue, "", 0, None), mode)
    own, turns, _, is_pair, group = read_parts(row, row_id)
    examples = cut_examples(own, turns, is_pair, group, mode)
    if not examples:
        raise _no_example(turns)
    return examples


def record_examples(record: Record, mode: ExampleMode = "every-turn") -> list[Example]:
    """The examples of a record; a row that was written with scores (``ee_turn``) is the one example that it names.

    Args:
        record: the row.
        mode: which listener turns to take, see ``examples_of``; a row with ``ee_turn`` is one example in every mode.

    Raises:
        RowError: ``ee_turn`` is not the index of a listener turn.
    """
    dialogue, row = record.dialogue, record.row
    if row.get(_SCORED_TURN) in (None, ""):
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
    value, turns = row[_SCORED_TURN], dialogue.turns
    if isinstance(value, str) and _WHOLE.fullmatch(value):  # a CSV cell
        value = float(value)
    if isinstance(value, float) and value.is_integer():  # what data frames make of a column with gaps
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
    if row.get(_SCORED_TURN) not in (None, ""):
        scored_turn(row, dialogue)
    if dialogue.is_pair:
        return
    for turn in dialogue.turns[1:]:
        if turn.role == "listener" and turn.text and not turn.text.isspace():
            return
    raise _no_example(dialogue.turns)


def _no_example(turns: Sequence[Turn]) -> RowError:
    if any(turn.role == "listener" for turn in turns[1:]):
        return RowError("empty-response", "every listener turn is blank")
    return RowError("no-listener-turn", "no listener turn has a turn before it")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    return str(value)
