"""Which rows are run together: like lengths side by side, as many rows as a budget of tokens takes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from efficient_empathy.errors import EmpathyError


class OutOfMemoryError(MemoryError):
    """A batch did not fit in memory; a smaller one may."""


@dataclass
class TokenCount:
    """Tokens that a scorer has computed, to know what was padding."""

    real: int = 0
    """Tokens of the examples."""
    computed: int = 0
    """The same with padding."""

    def __add__(self, other: "TokenCount") -> "TokenCount":
        return TokenCount(self.real + other.real, self.computed + other.computed)

    def __sub__(self, other: "TokenCount") -> "TokenCount":
        return TokenCount(self.real - other.real, self.computed - other.computed)

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that was padding, 0 to 1."""
        return 1 - self.real / self.computed if self.computed else 0.0


@dataclass
class TokenBudget:
    """Most tokens of a batch; smaller from then on where memory did not suffice."""

    tokens: int


def run_batches(
    lengths: np.ndarray,
    budget: TokenBudget,
    run: Callable[[np.ndarray], None],
    pad_to: Callable[[int], int] = int,
) -> TokenCount:
    """Run all rows in batches; a batch that does not fit in memory is halved, and so is the budget, for good.

    Args:
        lengths: tokens of each row, shape (n,).
        budget: of tokens of a batch with its padding.
        run: takes row indices, int64 (rows,), and raises MemoryError where they are too many.
        pad_to: the length that a batch is padded to, given its longest row; must not fall as that grows.

    Returns:
        What was computed.

    Raises:
        EmpathyError: memory does not suffice for one row alone.
    """
    order = np.argsort(-lengths, kind="stable")
    done, count = 0, TokenCount()
    while done < len(order):
        longest = max(1, pad_to(int(lengths[order[done]])))
        rows = order[done : done + max(1, budget.tokens // longest)]
        try:
            run(rows)
        except MemoryError as error:
            if len(rows) == 1:
                raise EmpathyError(
                    f"memory does not suffice for one example of {longest} tokens: {error}. "
                    "Use fewer --workers, or --device cpu."
                ) from error
            budget.tokens = len(rows) // 2 * longest
            continue
        done += len(rows)
        count += TokenCount(int(lengths[rows].sum()), len(rows) * longest)
    return count


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
