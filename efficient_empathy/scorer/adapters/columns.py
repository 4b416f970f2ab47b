"""Functions for ``datasets``: ``Dataset`` and ``IterableDataset``, ``map`` and ``filter``, with ``batched=True``.

They pickle to the same bytes for the same scorer and options, so the library finds what it has already computed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from efficient_empathy.dialogues.records import FIELD_PREFIX
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.adapters.rows import RowOptions, RowScorer, is_read
from efficient_empathy.scorer.job import RatesExamples


class RowMap:
    """Adds the new columns to a batch; a conversation becomes one row an example, with all its other columns.

    Fields of an earlier run that are not written again (``ee_subset`` without a policy) become null: ``map`` cannot take columns
    away.
    """

    def __init__(self, scorer: RatesExamples, options: RowOptions | None = None):
        self._rows = RowScorer(scorer, options)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The columns that are new or have another length than before."""
        names = _names(batch)
        rated = self._rows.rate(_read_rows(batch, names))
        found: dict[str, Any] = {
            name: _Typed(values, self._rows.columns[name]) for name, values in rated.columns.items()
        }
        stale = [name for name in names if name.startswith(FIELD_PREFIX) and name not in found]
        found |= {name: [None] * len(rated.rows) for name in stale}
        if rated.rows != list(range(_count(batch, names))):
            others = {name: _as_stored(batch, name) for name in names if name not in found}
            found = {name: [column[place] for place in rated.rows] for name, column in others.items()} | found
        return found


class RowFilter:
    """Says for each row whether it stays: it is in one of the subsets to ``keep``.

    A conversation is judged by its last listener turn. To judge each turn, map first, and filter by ``ee_subset``. A row that
    cannot be read has no place to say so here: ``Scorer.as_filter`` raises unless told ``keep`` or ``drop``.
    """

    def __init__(self, scorer: RatesExamples, options: RowOptions):
        if not options.keep or options.examples != "last-turn":
            raise EmpathyError("a filter needs the subsets to keep, and examples='last-turn': it decides about rows.")
        self._rows = RowScorer(scorer, options)

    def __call__(self, batch: Mapping[str, Any]) -> list[bool]:
        """One answer a row."""
        names = _names(batch)
        kept = set(self._rows.rate(_read_rows(batch, names)).rows)
        return [place in kept for place in range(_count(batch, names))]


def arrow_column(values: Sequence[Any], kind: str) -> Any:
    """A ``pyarrow.Array`` of a new column, given what it holds: ``string``, ``int`` or ``float``."""
    import pyarrow as pa

    return pa.array(values, {"string": pa.string(), "int": pa.int64(), "float": pa.float64()}[kind])


class _Typed(list[Any]):
    """A column that Arrow gives the same type in every batch: one of nulls alone would be of none, and the next would not fit."""

    def __init__(self, values: list[Any], kind: str):
        super().__init__(values)
        self._kind = kind

    def __arrow_array__(self, type: Any = None) -> Any:
        import pyarrow as pa

        return arrow_column(list(self), self._kind) if type is None else pa.array(list(self), type)


def _names(batch: Any) -> list[str]:
    if not isinstance(batch, Mapping) and not hasattr(batch, "keys"):
        raise EmpathyError(
            f"a batch must be columns by name, not {type(batch).__name__}: use batched=True, and with_format(None) on the data set."
        )
    names = list(batch.keys())
    for name in names:
        if is_read(name) and _is_of_one_row(batch[name]):
            raise EmpathyError("these are the columns of one row, not of a batch: add batched=True.")
    return names


def _is_of_one_row(value: Any) -> bool:
    """Whether it is a text, or a list of turns: a batch has a list of those."""
    if isinstance(value, str):
        return True
    turns = value if isinstance(value, list) else []
    return any(isinstance(turn, Mapping) and isinstance(turn.get("role", turn.get("from")), str) for turn in turns[:1])


def _as_stored(batch: Any, name: str) -> list[Any]:
    """A column that is passed on; a picture that nobody has looked at stays the bytes that it is."""
    if name in getattr(batch, "keys_to_format", ()):  # of the library's own batches: columns not decoded yet
        return batch.pa_table.column(name).to_pylist()
    return list(batch[name])


def _read_rows(batch: Mapping[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """Rows of a batch; columns that are not looked at are not decoded, and stand as None."""
    columns = [batch[name] if is_read(name) else None for name in names]
    return [
        {name: None if column is None else column[place] for name, column in zip(names, columns, strict=True)}
        for place in range(_count(batch, names))
    ]


def _count(batch: Mapping[str, Any], names: list[str]) -> int:
    read = [name for name in names if is_read(name)] or names
    return len(batch[read[0]]) if read else 0
