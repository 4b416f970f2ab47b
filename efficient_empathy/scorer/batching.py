"""Which rows are run together: like lengths side by side, as many rows as a budget of tokens takes."""

from collections.abc import Iterator

import numpy as np


def token_budget_batches(lengths: np.ndarray, max_batch_tokens: int) -> Iterator[np.ndarray]:
    """Yield row indices of batches whose padded size stays within a budget.

    Args:
        lengths: tokens of each row, shape (n,).
        max_batch_tokens: most tokens of a batch with its padding; a row that is longer alone is a batch alone.

    Yields:
        int64 vectors of row indices; together they hold each row once. Longest rows come first, so that memory is at its
        peak at once and not hours later.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, max_batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def padding_share(lengths: np.ndarray, max_batch_tokens: int) -> float:
    """Share of the computed tokens that is padding, 0 to 1, for the batches these lengths give."""
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in token_budget_batches(lengths, max_batch_tokens))
    return 1 - float(lengths.sum()) / padded if padded else 0.0
