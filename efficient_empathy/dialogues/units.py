"""Units: the pieces of the inputs that are read, resumed and handed out as a whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import orjson

from efficient_empathy.dialogues.blocks import DamagedFileError, unpack
from efficient_empathy.dialogues.files import file_size, find_files, open_file, reading
from efficient_empathy.dialogues.paths import KNOWN, container_of, is_url, row_names, shown_path
from efficient_empathy.dialogues.tables import plan_batches, plan_row_groups
from efficient_empathy.errors import EmpathyError

UnitKind = Literal["lines", "whole", "row-groups", "batches"]
_LARGEST_UNIT, _SMALLEST_UNIT, _UNITS = 8 << 20, 256 << 10, 64
_SCAN_BYTES = 8 << 20
_PEEK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of one input."""

    index: int
    """Place among all units, from 0."""
    path: str
    kind: UnitKind
    """``lines``: bytes of a text file, cut between lines; ``whole``: a file that cannot be cut; ``row-groups`` of a
    Parquet file; ``batches`` of an Arrow file."""
    start: int
    """First byte, row group or batch."""
    stop: int
    """Where the next unit starts."""
    line: int = 1
    """Number of the first line or row, from 1."""
    name: str = ""
    """What rows without an id are called by, before their line; told apart from the other inputs of the run."""


def plan_units(inputs: Sequence[str], unit_bytes: int | None = _LARGEST_UNIT) -> list[Unit]:
    """Cut the inputs into units; the same files give the same units.

    Args:
        inputs: files, folders, globs or URLs, see ``find_files``.
        unit_bytes: size of a unit, in bytes, at least 1; a unit ends with the line, row group or batch that reaches it.
            None takes a 64th of the inputs, from 256 KiB to 8 MiB, so that several workers end at about the same time.

    Raises:
        EmpathyError: an input is missing, of no known container or damaged, or all of them are empty.
    """
    if unit_bytes is not None and unit_bytes < 1:
        raise EmpathyError(f"unit_bytes must be at least 1, not {unit_bytes}.")
    paths = find_files(inputs)
    size = _shared_out(paths) if unit_bytes is None else unit_bytes
    units: list[Unit] = []
    for path, name in zip(paths, row_names(paths), strict=True):
        with reading(path):
            units += (replace(unit, name=name) for unit in _units_of(path, size))
    if not units:
        names = ", ".join(f"'{shown_path(path)}'" for path in paths[:3]) + (
            f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        )
        raise EmpathyError(f"the input is empty: {names} {'holds' if len(paths) == 1 else 'hold'} no rows.")
    return [replace(unit, index=index) for index, unit in enumerate(units)]


def _shared_out(paths: Sequence[str]) -> int:
    if any(is_url(path) for path in paths):
        return _LARGEST_UNIT  # asking for every size takes its time
    return min(_LARGEST_UNIT, max(_SMALLEST_UNIT, sum(file_size(path) or 0 for path in paths) // _UNITS))


def _units_of(path: str, unit_bytes: int) -> Iterator[Unit]:
    container = container_of(path)
    if container is None:
        raise EmpathyError(f"'{shown_path(path)}' is of no known container; a file's name must end in one of: {KNOWN}.")
    kind, packed = container
    if kind == "json" and not packed and _holds_lines(path):
        kind = "lines"
    if kind == "parquet":
        for start, stop, line in plan_row_groups(path, unit_bytes):
            yield Unit(0, path, "row-groups", start, stop, line)
    elif kind == "arrow":
        for start, stop, line in plan_batches(path, unit_bytes):
            yield Unit(0, path, "batches", start, stop, line)
    elif kind == "lines" and not packed:
        yield from _line_units(path, unit_bytes)
    elif size := _size_if_any(path, packed):
        yield Unit(0, path, "whole", 0, size)


def _line_units(path: str, unit_bytes: int) -> Iterator[Unit]:
    """Cut a text file at the first line start that is ``unit_bytes`` or more after the last cut, counting its lines."""
    start = start_line = offset = 0
    lines = 0  # line feeds before the place that has been counted up to
    with open_file(path) as file:
        while block := file.read(_SCAN_BYTES):
            counted = 0
            while (at := block.find(b"\n", max(0, start + unit_bytes - 1 - offset))) >= 0:
                lines += block.count(b"\n", counted, at + 1)
                counted = at + 1
                yield Unit(0, path, "lines", start, offset + counted, start_line + 1)
                start, start_line = offset + counted, lines
            lines += block.count(b"\n", counted)
            offset += len(block)
    if offset > start:
        yield Unit(0, path, "lines", start, offset, start_line + 1)


def _holds_lines(path: str) -> bool:
    """Whether a ``.json`` file holds one object a line, as many do, and not a list."""
    with open_file(path) as file:
        head = file.read(_PEEK_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(b"{"):
        return False
    first, _, rest = head.partition(b"\n")
    if rest or len(head) < _PEEK_BYTES // 2:
        try:
            orjson.loads(first)
        except orjson.JSONDecodeError:
            message = f"'{shown_path(path)}' holds one JSON object; a .json file must hold a list of objects, or one object a line."
            raise EmpathyError(message) from None
    return True


def _size_if_any(path: str, packed: str) -> int:
    """A file's size, or 0 if it unpacks to nothing."""
    with open_file(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            return size if next(unpack(file, packed), b"") else 0
        except DamagedFileError:
            return size  # read_unit reports it as a rejected row
