"""Which rows are run together: like lengths side by side, as many rows as a budget of tokens takes."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
    side_by_side: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> TokenCount:
    """Run all rows in batches; a batch that does not fit in memory is halved, and so is the budget, for good.

    Args:
        lengths: tokens of each row, shape (n,).
        budget: of tokens of a batch with its padding.
        run: takes row indices, int64 (rows,), and raises MemoryError where they are too many.
        pad_to: the length that a batch is padded to, given its longest row; must not fall as that grows.
        side_by_side: batches that run at a time, each in a thread of its own; which rows are in a batch does not depend on it.
        on_batch: told the rows of each batch that is done, in the calling thread.

    Returns:
        What was computed.

    Raises:
        EmpathyError: memory does not suffice for one row alone.
    """
    left, count = np.argsort(-lengths, kind="stable"), TokenCount()
    running: dict[Future[None], tuple[np.ndarray, int]] = {}
    with _starter(run, side_by_side) as start:
        while len(left) or running:
            while len(left) and len(running) < side_by_side:
                longest = max(1, pad_to(int(lengths[left[0]])))
                rows, left = np.split(left, [max(1, budget.tokens // longest)])
                running[start(rows)] = rows, longest
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                rows, longest = running.pop(future)
                try:
                    future.result()
                except MemoryError as error:
                    if len(rows) == 1:
                        raise EmpathyError(
                            f"memory does not suffice for one example of {longest} tokens: {error}. "
                            "Use fewer --workers, or --device cpu."
                        ) from error
                    budget.tokens = min(budget.tokens, len(rows) // 2 * longest)
                    left = np.concatenate([rows, left])
                    left = left[np.argsort(-lengths[left], kind="stable")]
                    continue
                count += TokenCount(int(lengths[rows].sum()), len(rows) * longest)
                if on_batch is not None:
                    on_batch(len(rows))
    return count


@contextlib.contextmanager
def _starter(run: Callable[[np.ndarray], None], side_by_side: int) -> Iterator[Callable[[np.ndarray], "Future[None]"]]:
    """What starts a batch: threads where several run at a time, else the calling thread, in which it is done at once."""
    if side_by_side > 1:
        with ThreadPoolExecutor(side_by_side, "ee-batch") as pool:
            yield lambda rows: pool.submit(run, rows)
        return

    def here(rows: np.ndarray) -> Future[None]:
        future: Future[None] = Future()
        try:
            run(rows)
            future.set_result(None)
        except MemoryError as error:
            future.set_exception(error)
        return future

    yield here


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
