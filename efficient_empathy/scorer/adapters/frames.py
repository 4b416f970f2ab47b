"""Data frames of pandas and polars: scored in one call."""

from typing import Any, TypeVar

from efficient_empathy.dialogues.records import FIELD_PREFIX
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.adapters.rows import Rated, RowOptions, RowScorer, is_read
from efficient_empathy.scorer.job import RatesExamples

_Frame = TypeVar("_Frame")


def score_frame(frame: _Frame, scorer: RatesExamples, options: RowOptions | None = None) -> _Frame:
    """Score a data frame of pandas or polars.

    Args:
        frame: rows of any format, one a dialogue or an example.
        scorer: gives the scores.
        options: policy, what to keep, which examples, what becomes of bad rows.

    Returns:
        A new frame of the same library: one row an example, the columns it came with but for ``ee_`` fields of an earlier run,
        and the new ones. A pandas row keeps its index label.

    Raises:
        EmpathyError: it is no such frame, or a row cannot be read and ``bad_rows`` is ``raise``.
    """
    library = type(frame).__module__.partition(".")[0]
    if type(frame).__name__ != "DataFrame" or library not in ("pandas", "polars"):
        raise EmpathyError(
            f"score_frame takes a DataFrame of pandas or polars, not {library}.{type(frame).__name__}; "
            "call collect() on a LazyFrame first."
        )
    rows = RowScorer(scorer, options)
    return _score_pandas(frame, rows) if library == "pandas" else _score_polars(frame, rows)


def _score_pandas(frame: Any, rows: RowScorer) -> Any:
    import pandas as pd

    read = frame[[name for name in frame.columns if is_read(name)]].astype(object)
    rated = _rated(rows, read.where(read.notna(), None).to_dict("records"), frame)
    kinds = {"string": object, "int": "Int64", "float": "float64"}
    found = frame.drop(columns=_old(frame.columns)).iloc[rated.rows].copy()
    for name, values in rated.columns.items():
        found[name] = pd.Series(values, found.index, kinds[rows.columns[name]])
    return found


def _score_polars(frame: Any, rows: RowScorer) -> Any:
    import polars as pl

    rated = _rated(rows, frame.select([name for name in frame.columns if is_read(name)]).to_dicts(), frame)
    kinds = {"string": pl.String, "int": pl.Int64, "float": pl.Float64}
    new = [pl.Series(name, values, kinds[rows.columns[name]]) for name, values in rated.columns.items()]
    return frame.drop(_old(frame.columns))[rated.rows].with_columns(new)


def _rated(rows: RowScorer, read: list[dict[str, Any]], frame: Any) -> Rated:
    others = {
        name: None for name in frame.columns if not is_read(name)
    }  # so that messages name the columns that are there
    # Without a column that is read some versions of both libraries give no rows.
    return rows.rate([{**row, **others} for row in read or [{}] * len(frame)])


def _old(names: Any) -> list[Any]:
    return [name for name in names if isinstance(name, str) and name.startswith(FIELD_PREFIX)]
