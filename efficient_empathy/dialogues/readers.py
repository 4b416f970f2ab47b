"""From a unit to its records and rejects, in bounded memory."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import orjson

from efficient_empathy.dialogues.blocks import CutLine, DamagedFileError, read_range, split_lines, unpack, without_bom
from efficient_empathy.dialogues.examples import ExampleMode
from efficient_empathy.dialogues.files import open_file
from efficient_empathy.dialogues.formats import RowError, parse_row
from efficient_empathy.dialogues.paths import base_name, container_of, is_url, row_names, scrubbed, shown_path
from efficient_empathy.dialogues.records import Record, Reject, Row, check_dialogue, row_examples, row_json
from efficient_empathy.dialogues.sheets import Found, read_sheet
from efficient_empathy.dialogues.tables import read_batches, read_row_groups
from efficient_empathy.dialogues.types import Dialogue, Example
from efficient_empathy.dialogues.units import Unit, plan_units
from efficient_empathy.errors import EmpathyError

_MAX_LIST_BYTES = 512 << 20
_Made = TypeVar("_Made")


def read_unit(unit: Unit, answered: bool = True) -> Iterator[Record | Reject]:
    """Read the rows of a unit, in their order; a row that cannot be read comes as a ``Reject`` and stops nothing.

    Args:
        unit: what to read.
        answered: reject what holds no response; without, dialogues that end with the speaker and prompts alone are read.

    Raises:
        EmpathyError: the file is gone or cannot be read, or a table is damaged.
    """
    path, name = unit.path, _row_name(unit)

    def record(found: Row) -> Record:
        line, row, raw = found
        dialogue = parse_row(row, f"{name}:{line}", answered)
        if answered:
            check_dialogue(row, dialogue)
        return Record(row, dialogue, path, line, raw)

    return _made(unit, record)


def read_examples(unit: Unit, mode: ExampleMode = "every-turn") -> Iterator[tuple[Row, list[Example]] | Reject]:
    """Read the rows of a unit and their examples, as ``read_unit`` and ``record_examples`` do, but faster.

    Args:
        unit: what to read.
        mode: which listener turns to take, see ``examples_of``.

    Raises:
        EmpathyError: the file is gone or cannot be read, or a table is damaged.
    """
    name = _row_name(unit)
    return _made(unit, lambda found: (found, row_examples(found[1], f"{name}:{found[0]}", mode)))


def stream_examples(inputs: Sequence[str], mode: ExampleMode, rejected: Counter[str]) -> Iterator[Example]:
    """The examples of some dialogues; rows that cannot be read are passed over.

    Args:
        inputs: files, folders, globs or URLs.
        mode: which listener turns to take, see ``examples_of``.
        rejected: counts the rows that cannot be read, by reason.

    Raises:
        EmpathyError: an input cannot be read.
    """
    for unit in plan_units(inputs):
        for found in read_examples(unit, mode):
            if isinstance(found, Reject):
                rejected[found.reason] += 1
            else:
                yield from found[1]


def _made(unit: Unit, make: Callable[[Row], _Made]) -> Iterator[_Made | Reject]:
    """What is made of each row of a unit; a row that nothing can be made of comes as a ``Reject``."""
    try:
        for found in _rows_of(unit):
            if isinstance(found, Reject):
                yield found
                continue
            try:
                made = make(found)
            except RowError as error:
                line, row, raw = found
                yield Reject(unit.path, line, error.reason, error.detail, _text(row_json(row) if raw is None else raw))
            else:
                yield made
    except EmpathyError:
        raise
    except Exception as error:
        # What a lost connection raises is no OSError in every file system's package.
        if not isinstance(error, OSError) and not is_url(unit.path):
            raise
        said = scrubbed(str(error) or type(error).__name__, unit.path)
        raise EmpathyError(
            f"reading '{shown_path(unit.path)}' failed: {said}. Run the same command again to go on."
        ) from error


def read_records(
    inputs: Sequence[str],
    limit: int | None = None,
    on_reject: Callable[[Reject], None] | None = None,
    answered: bool = True,
) -> Iterator[Record]:
    """Read every row of some inputs.

    Args:
        inputs: files, folders, globs or URLs.
        limit: stop after this many records.
        on_reject: called with each row that cannot be read; without it, such a row raises.
        answered: whether a row must hold a response, see ``read_unit``.

    Raises:
        EmpathyError: an input cannot be read, or a row cannot and ``on_reject`` is None.
    """
    records = _records(plan_units(inputs), on_reject, answered)
    return records if limit is None else itertools.islice(records, limit)


def read_dialogues(
    inputs: Sequence[str], limit: int | None = None, on_reject: Callable[[Reject], None] | None = None
) -> Iterator[Dialogue]:
    """Read every dialogue of some inputs; see ``read_records`` for the arguments and what is raised."""
    return (record.dialogue for record in read_records(inputs, limit, on_reject))


def _records(units: Iterable[Unit], on_reject: Callable[[Reject], None] | None, answered: bool) -> Iterator[Record]:
    for unit in units:
        for found in read_unit(unit, answered):
            if isinstance(found, Record):
                yield found
            elif on_reject is None:
                raise EmpathyError(f"'{shown_path(found.path)}', line {found.line}: {found.reason}: {found.detail}.")
            else:
                on_reject(found)


def _row_name(unit: Unit) -> str:
    """What rows without an id are called by; a unit that was not planned knows of no other inputs."""
    return unit.name or row_names([unit.path])[0]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _rows_of(unit: Unit) -> Iterator[Found]:
    if unit.kind == "row-groups":
        yield from _table(unit, read_row_groups(unit.path, unit.start, unit.stop))
    elif unit.kind == "batches":
        yield from _table(unit, read_batches(unit.path, unit.start, unit.stop))
    else:
        with open_file(unit.path) as file:
            if unit.kind == "lines":
                blocks = read_range(file, unit.start, unit.stop)
                yield from _json_lines(unit.path, without_bom(blocks) if unit.start == 0 else blocks, unit.line)
            else:
                kind, packed = container_of(unit.path) or ("lines", "")
                yield from _WHOLE[kind](unit.path, without_bom(unpack(file, packed)), 1)


def _json_lines(path: str, blocks: Iterable[bytes], first: int) -> Iterator[Found]:
    number = first - 1
    try:
        for number, line in enumerate(split_lines(blocks), first):
            line = line if type(line) is CutLine else line.rstrip(b"\r")
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if line.strip():
                    yield _bad_line(path, number, line, str(error))
                continue
            if type(row) is dict and type(line) is bytes:
                yield number, row, line
            else:
                yield _bad_line(path, number, line, "")
    except DamagedFileError as error:
        yield Reject(path, number + 1, error.reason, error.detail, "")


def _bad_line(path: str, number: int, line: bytes, fault: str) -> Reject:
    if isinstance(line, CutLine):
        return Reject(
            path, number, "line-too-long", "a line may have 64 MiB; only its beginning is kept here", _text(line)
        )
    if not fault:
        return Reject(path, number, "not-an-object", "the line is JSON but no object", _text(line))
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Reject(path, number, "invalid-utf8", f"byte {error.start + 1} of the line is not UTF-8", _text(line))
    return Reject(path, number, "invalid-json", fault, _text(line))


def _json_list(path: str, blocks: Iterable[bytes], first: int) -> Iterator[Found]:
    """A ``.json`` file: a list, which has to be held whole, or one object a line."""
    blocks = iter(blocks)
    head = next(blocks, b"")
    if head.lstrip().startswith(b"{"):
        yield from _json_lines(path, itertools.chain([head], blocks), first)
        return
    held, size = [head], len(head)
    try:
        for block in blocks:
            held.append(block)
            size += len(block)
            if size > _MAX_LIST_BYTES:
                raise EmpathyError(
                    f"'{shown_path(path)}' is a JSON list of over 512 MiB, which would be held whole; write it as JSONL."
                )
        rows = orjson.loads(b"".join(held))
    except DamagedFileError as error:
        yield Reject(path, first, error.reason, error.detail, "")
        return
    except orjson.JSONDecodeError as error:
        yield Reject(path, first, "invalid-json", f"the file is not a JSON list: {error}", "")
        return
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], first):
        try:
            text = row_json(row)
        except TypeError:  # orjson reads some 1,000 levels, and writes some 250
            yield Reject(path, number, "too-deep", "the item's values lie too many levels deep to be written again", "")
            continue
        if isinstance(row, dict):
            yield number, row, None
        else:
            yield Reject(path, number, "not-an-object", "the list's item is no object", _text(text))


def _sheet(path: str, blocks: Iterable[bytes], first: int) -> Iterator[Found]:
    number = first
    name = base_name(path).lower().removesuffix(".gz").removesuffix(".zst")
    delimiter = "\t" if name.endswith(".tsv") else ","
    try:
        for found in read_sheet(path, split_lines(blocks), delimiter):
            number = found.line if isinstance(found, Reject) else found[0]
            yield found
    except DamagedFileError as error:
        yield Reject(path, number + 1, error.reason, error.detail, "")


_WHOLE = {"lines": _json_lines, "json": _json_list, "csv": _sheet}


def _table(unit: Unit, rows: Iterable[dict[str, Any] | Exception]) -> Iterator[Found]:
    for number, row in enumerate(rows, unit.line):
        if isinstance(row, DamagedFileError):
            yield Reject(unit.path, number, row.reason, row.detail, "")
        elif isinstance(row, UnicodeDecodeError):
            yield Reject(unit.path, number, "invalid-utf8", "a column's text is not UTF-8", "")
        elif isinstance(row, Exception):
            yield Reject(unit.path, number, "bad-value", f"a column's value is out of range: {row}", "")
        else:
            yield number, row, None
