"""CSV files: one row a dialogue with the columns as keys, or EmpatheticDialogues with one row an utterance."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from efficient_empathy.dialogues.blocks import DamagedFileError
from efficient_empathy.dialogues.csv_records import CsvReader
from efficient_empathy.dialogues.paths import shown_path
from efficient_empathy.dialogues.records import Reject, Row
from efficient_empathy.errors import EmpathyError

Found = Reject | Row
"""A row, or why there is none."""

_MOST_DIGITS = 9
_UTTERANCE_COLUMNS = {"conv_id", "utterance_idx", "context", "prompt", "speaker_idx", "utterance"}


def read_sheet(path: str, lines: Iterable[bytes], delimiter: str) -> Iterator[Found]:
    """The rows of a CSV file.

    Args:
        path: the file's name, for rejects.
        lines: the file's lines without line feeds.
        delimiter: what stands between cells.

    Raises:
        EmpathyError: the header cannot be read, or names a column twice.
    """
    reader, shown = CsvReader(lines, delimiter), shown_path(path)
    head = reader.read()
    if head is None:
        return
    header = head.cells
    fault = head.fault or ("" if _is_utf8(head.raw) else "it is not UTF-8")
    if fault:
        raise EmpathyError(
            f"'{shown}' has a first line that cannot be read: {fault}. Save it as UTF-8 text whose lines end with a line feed."
        )
    if len(set(header)) < len(header):
        raise EmpathyError(
            f"'{shown}' must name each column differently in its first line; found: {', '.join(header)[:200]}."
        )
    if set(header) >= _UTTERANCE_COLUMNS:
        yield from _utterance_rows(path, reader, header, delimiter)
    else:
        yield from _plain_rows(path, reader, header)


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _plain_rows(path: str, reader: CsvReader, header: list[str]) -> Iterator[Found]:
    while (record := reader.read(len(header))) is not None:
        first, cells = record.first, record.cells
        if not record.fault and (not cells or cells == [""]):
            continue
        if not _is_utf8(record.raw):
            yield Reject(
                path, first, "invalid-utf8", "a cell is not UTF-8, or its line is over 64 MiB", _shown(record.raw)
            )
        elif record.fault:
            yield Reject(path, first, "bad-csv-row", record.fault, record.raw)
        elif len(cells) != len(header):
            detail = f"{len(cells)} cells in lines {first} to {record.last}, {len(header)} expected; is a quote open?"
            yield Reject(path, first, "bad-csv-row", detail, record.raw)
        else:
            yield first, dict(zip(header, cells, strict=True)), None


@dataclass
class _Conversation:
    """The utterances of one conversation, gathered while its lines pass."""

    id: str
    line: int
    emotion: str = ""
    situation: str = ""
    turns: list[tuple[int, str, str]] = field(default_factory=list)
    """Place in the conversation, speaker's number, text."""
    lines: list[str] = field(default_factory=list)
    fault: tuple[str, str] | None = None
    """Reason and detail of the first line that could not be read: the conversation is then rejected whole."""


def _utterance_rows(path: str, reader: CsvReader, header: list[str], delimiter: str) -> Iterator[Found]:
    current: _Conversation | None = None
    try:
        for number, text in reader.lines():
            line = text.strip("\r\n")
            if not line.strip():
                continue
            cells = _cells(line, header, delimiter)
            own = line.split(delimiter, 1)[0].strip('"') if cells is None else cells["conv_id"]
            if current is None or current.id != own:
                if current is not None:
                    yield _finished(path, current)
                current = _Conversation(own, number)
            _add(current, number, line, cells)
    except DamagedFileError as error:
        if current is None:
            raise
        current.fault = (error.reason, error.detail)  # the rest of this conversation is lost: it is not whole
    if current is not None:
        yield _finished(path, current)


def _add(to: _Conversation, number: int, line: str, cells: dict[str, str] | None) -> None:
    to.lines.append(line)
    if cells is None:
        to.fault = to.fault or ("bad-csv-row", f"line {number} does not have the columns of EmpatheticDialogues")
    elif not _is_utf8(line):
        to.fault = to.fault or ("invalid-utf8", f"line {number} is not UTF-8")
    else:
        to.emotion = to.emotion or cells["context"]
        to.situation = to.situation or _commas(cells["prompt"])
        to.turns.append((int(cells["utterance_idx"]), cells["speaker_idx"], _commas(cells["utterance"])))


def _finished(path: str, found: _Conversation) -> Found:
    if found.fault is not None:
        return Reject(path, found.line, *found.fault, _shown("\n".join(found.lines)))
    turns = sorted(found.turns, key=lambda turn: turn[0])
    speaker = turns[0][1]
    row: dict[str, Any] = {"conv_id": found.id, "emotion": found.emotion, "situation": found.situation}
    row["turns"] = [{"role": "speaker" if who == speaker else "listener", "text": text} for _, who, text in turns]
    return found.line, row, None


def _cells(line: str, header: list[str], delimiter: str) -> dict[str, str] | None:
    """One line by column, or None.

    The data set's own files hold no quoted cells: a comma is ``_comma_``, a quote is just a quote, and some lines have
    one cell more than the header. Copies that were saved again may be quoted. What fits is taken.
    """
    for cells in (_quoted(line, delimiter), line.split(delimiter)):
        if len(cells) in (len(header), len(header) + 1):
            row = dict(zip(header, cells, strict=False))
            if _is_number(row["utterance_idx"]) and _is_number(row["speaker_idx"]):
                return row
    return None


def _is_number(cell: str) -> bool:
    return cell.strip().isdecimal() and len(cell) <= _MOST_DIGITS


def _quoted(line: str, delimiter: str) -> list[str]:
    if '"' not in line:
        return []
    try:
        return next(csv.reader([line], strict=True, delimiter=delimiter), [])
    except csv.Error:
        return []


def _commas(text: str) -> str:
    return text.replace("_comma_", ",")
