"""The records of a CSV file, one at a time and in bounded memory; a stray quote costs its own line and no other."""

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from efficient_empathy.dialogues.blocks import MAX_LINE_BYTES, CutLine, DamagedFileError

_MOST_LINES = 10_000
"""Lines that one record may take."""
_MANY = 20
"""So many delimiters, all in the places where rows have them, do not stand inside a cell by accident."""


@dataclass(frozen=True, slots=True)
class CsvRecord:
    """One record of a CSV file."""

    first: int
    """Its first line, from 1."""
    last: int
    cells: list[str]
    raw: str
    """Its lines as they stand in the file; what is not UTF-8 as surrogates."""
    fault: str = ""
    """Why there are no cells."""


class CsvReader:
    """Reads a CSV file.

    A quoted cell may go over several lines. Where it is not closed, or is closed in a place where no writer would, its quote was
    just a quote: the record's first line is a fault, and reading goes on with the next line.
    """

    def __init__(self, lines: Iterable[bytes], delimiter: str) -> None:
        """Begin before the first line.

        Args:
            lines: the file's lines without line feeds.
            delimiter: what stands between cells.
        """
        # The csv module's own limit, 131,072 characters a cell, is less than a long conversation.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
        self._lines = iter(lines)
        self._delimiter = delimiter
        self._reader = csv.reader(self, delimiter=delimiter, strict=True)
        self._number = 0  # of the last line of the last record
        self._taken: list[str] = []
        self._held = 0
        self._cut_off = False
        self._back: deque[str] = deque()
        self._damage: DamagedFileError | None = None

    def read(self, columns: int = 0) -> CsvRecord | None:
        """The next record; None at the end.

        Args:
            columns: cells that a row should have; 0 where that is not known yet.

        Raises:
            DamagedFileError: the file is damaged from here on.
        """
        self._begin()
        cells: list[str] = []
        fault = ""
        try:
            cells = next(self._reader)
        except StopIteration:
            return None
        except csv.Error as error:
            fault = str(error)
        taken, first = self._taken, self._number + 1
        last = self._number + len(taken)
        if self._cut_off:
            fault = f"a quote that it opens is not closed up to line {last}"
        elif fault:
            fault += f", in lines {first} to {last}" if last > first else ""
        elif self._are_rows(taken[1:-1], columns):
            fault = f"a quote that it opens is closed in line {last}, and all lines between are rows"
        if fault:
            self._back.extendleft(reversed(taken[1:]))
            cells, taken, last = [], taken[:1], first
        self._number = last
        return CsvRecord(first, last, cells, "".join(taken).rstrip("\r\n"), fault)

    def lines(self) -> Iterator[tuple[int, str]]:
        """The lines that are left, with their numbers."""
        self._begin()
        for text in self:
            self._number += 1
            yield self._number, text
            self._begin()

    def __iter__(self) -> Iterator[str]:
        """The reader itself: the csv module takes the lines of a record from it."""
        return self

    def __next__(self) -> str:
        """The next line of this record."""
        if self._taken and (len(self._taken) >= _MOST_LINES or self._held > MAX_LINE_BYTES):
            self._cut_off = True
            raise StopIteration
        try:
            text = self._back.popleft() if self._back else self._read()
        except StopIteration:
            self._cut_off = bool(self._taken)
            raise
        self._taken.append(text)
        self._held += len(text)
        return text

    def _begin(self) -> None:
        self._taken, self._held, self._cut_off = [], 0, False

    def _read(self) -> str:
        """The file's next line; damage comes once all lines before it were dealt with."""
        if self._damage is None:
            try:
                return _text(next(self._lines))
            except DamagedFileError as error:
                self._damage = error
        if self._taken:
            raise StopIteration
        raise self._damage

    def _are_rows(self, texts: list[str], columns: int) -> bool:
        if len(texts) * (columns - 1) < _MANY:
            return False
        return all(len(self._alone(text)) == columns for text in texts)

    def _alone(self, text: str) -> list[str]:
        try:
            return next(csv.reader([text], delimiter=self._delimiter, strict=True), [])
        except csv.Error:
            return []


def _text(line: bytes) -> str:
    # A byte that is not UTF-8 becomes a surrogate, which no valid text holds: its row is found and rejected alone.
    # A line that was cut gets one, too.
    return (line + b"\xff" if isinstance(line, CutLine) else line).decode("utf-8", "surrogateescape") + "\n"
