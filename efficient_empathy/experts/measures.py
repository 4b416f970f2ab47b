"""A figure of a system, kept as sums over rows: each resample of the rows then costs one addition, not a new computation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from efficient_empathy.experts.statistics import Draws


@dataclass(frozen=True)
class Measure:
    """One figure of one set of answers."""

    name: str
    family: str
    """The block of the table that it stands in."""
    rows: int
    """Rows that count for it."""
    values: Callable[[Draws], np.ndarray]
    """The figure, then its value on each resample, float64 (1 + R,); nan where a resample has no row that counts."""
    record: str
    """What the rows of ``statistics`` are called in ``rows.jsonl``; figures made of the same statistics share it."""
    statistics: np.ndarray = field(repr=False)
    """float64 (n, k): what each row adds to the sums; nan in rows that do not count. Enough to compute the figure again,
    save those of distinct n-grams, which need the answers."""
    recentred: bool = False
    """See ``statistics.interval``."""


def sum_measure(
    name: str,
    family: str,
    statistics: np.ndarray,
    finish: Callable[[np.ndarray], np.ndarray],
    record: str | None = None,
) -> list[Measure]:
    """A figure of sums over rows.

    Args:
        name: of the figure.
        family: of the figure.
        statistics: float64 (n, k); nan in rows that do not count.
        finish: from sums (r, k) to figures (r,).
        record: what the statistics are called; the figure's name if None.

    Returns:
        The figure alone, or nothing when no row counts.
    """
    counts = np.isfinite(statistics).all(axis=1)
    if not counts.any():
        return []
    filled = np.where(counts[:, None], statistics, 0.0)

    def values(draws: Draws) -> np.ndarray:
        found = finish(draws.sums(filled))
        return np.where(draws.sums(counts)[:, 0] > 0, found, np.nan)

    return [Measure(name, family, int(counts.sum()), values, record or name, statistics)]


def mean_measure(name: str, family: str, values: np.ndarray, times: float = 1.0) -> list[Measure]:
    """The mean over the rows that have a value, float (n,), nan elsewhere; times 100 for rates in percent."""
    with_ones = np.stack([values * times, np.where(np.isfinite(values), 1.0, np.nan)], axis=1)
    found = sum_measure(name, family, with_ones, ratio)
    return [replace(measure, statistics=with_ones[:, :1]) for measure in found]


def ratio(sums: np.ndarray) -> np.ndarray:
    """First column by second, (r, 2) to (r,); nan where the second is 0."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)


def distinct_measures(
    record: str,
    grams: Sequence[Sequence[tuple[str, ...]] | None],
    figures: Sequence[tuple[str, str, Callable[[np.ndarray, np.ndarray], np.ndarray]]],
) -> list[Measure]:
    """Figures of how many different n-grams the answers of a resample hold together.

    Args:
        record: what the number of n-grams of a row is called.
        grams: the n-grams of each row; None where the row does not count.
        figures: name, family, and what gives the figure from the counts (r,) of distinct and of all n-grams.
    """
    rows = sum(row is not None for row in grams)
    if not rows:
        return []
    number = {gram: index for index, gram in enumerate(dict.fromkeys(g for row in grams for g in row or ()))}
    ids = np.array([number[gram] for row in grams for gram in row or ()], np.int64)
    row_of = np.repeat(np.arange(len(grams)), [len(row or ()) for row in grams])
    totals = np.array([np.nan if row is None else len(row) for row in grams], np.float64)

    @lru_cache(maxsize=1)
    def counts(draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        unique = _distinct(draws.group_of_row[row_of], ids, len(number), draws)
        return unique, draws.sums(np.nan_to_num(totals))[:, 0]

    def values(of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Draws], np.ndarray]:
        return lambda draws: of(*counts(draws))

    return [
        Measure(name, family, rows, values(of), record, totals[:, None], recentred=True) for name, family, of in figures
    ]


def _distinct(groups: np.ndarray, ids: np.ndarray, size: int, draws: Draws) -> np.ndarray:
    """How many different ids each resample holds; ``groups`` is the conversation of each id."""
    pairs = np.unique(
        np.stack([groups, ids]), axis=1
    )  # an id counts once a conversation, however often it stands there
    found = np.empty(len(draws.times))
    for resample, times in enumerate(draws.times):
        seen = np.zeros(size, bool)
        seen[pairs[1, times[pairs[0]] > 0]] = True
        found[resample] = seen.sum()
    return found
