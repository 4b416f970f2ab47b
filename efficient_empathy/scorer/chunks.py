"""Examples that were rated together, with the fields that are added to their rows: as values, and as JSON lines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson

from efficient_empathy.dialogues import Row
from efficient_empathy.dialogues.records import open_row
from efficient_empathy.dialogues.types import Example

_NUMBER = 32
"""Bytes of a number, with its place in a list."""


@dataclass(frozen=True)
class Chunk:
    """Some examples in input order, one place each."""

    rows: Sequence[Row]
    """The row each was cut from; those of one conversation share one."""
    examples: Sequence[Example]
    scores: np.ndarray
    """Float64 (n, d), as they are written."""
    dimensions: Sequence[str]
    subsets: Sequence[str] | None = None
    """Where each goes; None without a policy."""
    tiers: Sequence[str] | None = None
    """Which tier gave each its scores; None unless it is a cascade."""

    def row(self, place: int) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """The columns that came in, and the new fields."""
        example = self.examples[place]
        fields: dict[str, Any] = {"ee_id": example.id, "ee_turn": example.turn}
        fields.update(zip(self._names, self.scores[place].tolist(), strict=True))
        if self.subsets is not None:
            fields["ee_subset"] = self.subsets[place]
        if self.tiers is not None:
            fields["ee_tier"] = self.tiers[place]
        return self.rows[place][1], fields

    def size(self, place: int) -> int:
        """About how many bytes the columns that came in hold."""
        return self._sizes[place]

    def lines(self, places: Iterable[int]) -> Iterator[bytes]:
        """JSON lines without line ends: each the row's own bytes with the new fields spliced in.

        The same bytes that ``with_fields`` gives. One at a time: each of a long conversation's lines holds the whole of it.
        """
        template, values = self._spliced
        return (template % values[place] for place in places)

    @cached_property
    def _spliced(self) -> tuple[bytes, list[tuple[Any, ...]]]:
        """What a line is made of. Each column is turned to JSON at once: a call for each example costs more than its work."""
        columns: list[Any] = [self._heads(), _texts([e.id for e in self.examples]), [e.turn for e in self.examples]]
        columns += _numbers(self.scores)
        template = b'%b"ee_id":%b,"ee_turn":%d' + b"".join(b",%b:%%b" % _escaped(name) for name in self._names)
        for field, values in (("subset", self.subsets), ("tier", self.tiers)):
            if values is not None:
                names = {name: orjson.dumps(name) for name in set(values)}
                columns.append([names[name] for name in values])
                template += b',"ee_%b":%%b' % field.encode()
        template += b"}"
        return template, list(zip(*columns, strict=True))

    @cached_property
    def _sizes(self) -> list[int]:
        sizes: list[int] = []
        last: Row | None = None
        for found in self.rows:
            if found is not last:
                size = _bytes_of(found[1]) if found[2] is None else len(found[2])
                last = found
            sizes.append(size)
        return sizes

    @property
    def _names(self) -> list[str]:
        return [f"ee_{dimension}" for dimension in self.dimensions]

    def _heads(self) -> list[bytes]:
        heads: list[bytes] = []
        last: Row | None = None
        for found in self.rows:
            if found is not last:
                head = open_row(found[1], found[2])
                last = found
            heads.append(head)
        return heads


def _bytes_of(value: Any) -> int:
    """About how much memory a value takes."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    if isinstance(value, list | tuple):
        # Of an embedding's many numbers one is as large as another.
        is_numbers = len(value) > 0 and isinstance(value[0], int | float)
        return _NUMBER * len(value) if is_numbers else sum(map(_bytes_of, value))
    return _NUMBER


def _escaped(name: str) -> bytes:
    return orjson.dumps(name).replace(b"%", b"%%")


def _texts(values: list[str]) -> list[bytes]:
    """Each text as JSON. A line feed never stands inside one, so the indented form can be cut at its own."""
    return orjson.dumps(values, option=orjson.OPT_INDENT_2)[4:-2].split(b",\n  ")


def _numbers(scores: np.ndarray) -> list[list[bytes]]:
    """Each column's numbers as JSON, for (n, d) finite scores."""
    text = orjson.dumps(np.ascontiguousarray(scores.T), option=orjson.OPT_SERIALIZE_NUMPY)
    return [column.split(b",") for column in text[2:-2].split(b"],[")]
