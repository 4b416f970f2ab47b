"""Finding an example, or a rejected row, in what a filter or score run wrote."""

import difflib
import heapq
import itertools
import os.path
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.audit.files import Folder
from efficient_empathy.audit.rows import read_rows
from efficient_empathy.dialogues.formats import GROUP_KEYS
from efficient_empathy.errors import EmpathyError

_REJECTED = "rejected"
_NEAR = 5
_COMPARED = 400


@dataclass(frozen=True)
class Found:
    """A row of a run's output."""

    file: str
    """Relative to the folder."""
    line: int
    """Line or row of that file, from 1."""
    row: Mapping[str, Any]

    @property
    def rejected(self) -> bool:
        """Whether it is a row that could not be read, with its reason."""
        return self.file.startswith(f"{_REJECTED}/")


def find_example(folder: Folder, name: str) -> list[Found]:
    """The rows that an id names.

    Args:
        folder: of a filter or score run.
        name: an example's id (``ee_id``); a conversation's, for all its examples; the id of a row that was rejected, or its
            ``file:line``.

    Raises:
        EmpathyError: nothing has this id; the message names some that are like it.
    """
    found = [hit for file in folder.manifest["files"] for hit in _in_file(folder.root, file, name)]
    exact = [hit for hit in found if hit.row.get("ee_id") == name]
    if exact or found:
        return sorted(exact or found, key=lambda hit: hit.row.get("ee_turn") or 0)
    near = _near(folder, name)
    like = f" Like it are: {', '.join(near)}." if near else ""
    raise EmpathyError(
        f"'{folder.path}' holds no example '{name}', and no rejected row of that id.{like} An id is what stands in ee_id, e.g. "
        "'hit:0_conv:1_turn:1'; a rejected row is also found as FILE:LINE."
    )


def _in_file(root: Path, file: str, name: str) -> Iterator[Found]:
    if file.startswith(f"{_REJECTED}/"):
        for line, row in read_rows(root / file):
            if _is_rejected_row(row, name):
                yield Found(file, line, row)
        return
    for line, row in read_rows(root / file, name):
        example = str(row.get("ee_id"))
        if name == example or name in _names(row) or example.startswith(f"{name}_turn:"):
            yield Found(file, line, row)


def _is_rejected_row(row: Mapping[str, Any], name: str) -> bool:
    path, _, line = name.rpartition(":")
    if path and line == str(row["line"]) and path in (row["file"], os.path.basename(row["file"])):
        return True
    if name not in row["raw"] and "\\u" not in row["raw"]:
        return False  # an id may be written there with \u escapes
    try:
        raw = orjson.loads(row["raw"])
    except orjson.JSONDecodeError:
        return f'"{name}"' in row["raw"]  # broken JSON may still show its id
    return isinstance(raw, dict) and name in _names(raw)


def _names(row: Mapping[str, Any]) -> set[str]:
    """Its own id and that of its conversation, which a pair has beside it."""
    return {str(row[key]) for key in ("id", *GROUP_KEYS) if row.get(key) is not None}


def _near(folder: Folder, name: str) -> list[str]:
    """Ids that are like this one; a first sieve by common beginning and end keeps it quick where there are millions."""
    names = (
        str(row["ee_id"])
        for file in folder.manifest["files"]
        if not file.startswith(f"{_REJECTED}/")
        for _, row in read_rows(folder.root / file)
        if "ee_id" in row
    )
    best = heapq.nlargest(_COMPARED, names, key=lambda other: _shared(name, other))
    return difflib.get_close_matches(name, best, _NEAR, 0.5)


def _shared(name: str, other: str) -> int:
    return _beginning(name, other) + _beginning(name[::-1], other[::-1])


def _beginning(name: str, other: str) -> int:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False))
    return sum(1 for _ in same)
