"""Which rows are run together."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.batching import (
    OutOfMemoryError,
    TokenBudget,
    TokenCount,
    padding_share,
    run_batches,
    token_budget_batches,
)

LENGTHS = st.lists(st.integers(1, 300), max_size=60).map(lambda values: np.array(values, np.int64))


@given(LENGTHS, st.integers(1, 1000))
def test_each_row_is_in_one_batch_and_no_batch_is_over_the_budget(lengths, budget):
    batches = list(token_budget_batches(lengths, budget))
    assert sorted(row for rows in batches for row in rows.tolist()) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= budget


@given(LENGTHS, st.integers(1, 1000))
def test_longest_rows_come_first(lengths, budget):
    order = [int(lengths[row]) for rows in token_budget_batches(lengths, budget) for row in rows]
    assert order == sorted(order, reverse=True)


def test_a_case_by_hand():
    # Longest first: 10 (row 2), 6 (row 0), 5 (row 3), 2 (row 1), 2 (row 4). A budget of 12 takes one row of 10,
    # two of 6, and of the rest two rows of 2.
    batches = [rows.tolist() for rows in token_budget_batches(np.array([6, 2, 10, 5, 2]), 12)]
    assert batches == [[2], [0, 3], [1, 4]]


def test_equal_lengths_keep_their_order():
    assert [rows.tolist() for rows in token_budget_batches(np.array([4, 4, 4]), 8)] == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("lengths", "budget", "share"),
    [
        ([6, 2, 10, 5, 2], 12, 1 / 26),  # padded 10 + 2 * 6 + 2 * 2 = 26 tokens, of them 25 real
        ([4, 4], 100, 0.0),
        ([8, 2], 16, 6 / 16),
        ([8, 2], 15, 0.0),  # one row a batch
        ([], 16, 0.0),
    ],
)
def test_padding_share(lengths, budget, share):
    assert padding_share(np.array(lengths, np.int64), budget) == pytest.approx(share)


class SmallMemory:
    """Runs batches of up to so many tokens with their padding, and refuses larger ones as a device does."""

    def __init__(self, lengths, tokens):
        self.lengths = lengths
        self.tokens = tokens
        self.refused = 0
        self.done = []

    def run(self, rows):
        """Take a batch or refuse it."""
        if len(rows) * self.lengths[rows].max() > self.tokens:
            self.refused += 1
            raise OutOfMemoryError("out of memory")
        self.done.append(rows.tolist())


def test_a_batch_that_does_not_fit_is_halved_and_the_smaller_size_remembered():
    lengths = np.full(40, 10)
    memory, budget = SmallMemory(lengths, 60), TokenBudget(200)
    count = run_batches(lengths, budget, memory.run)
    # 20 rows and 10 rows are refused, 5 rows (50 tokens) fit; from then on 5 at a time.
    assert (memory.refused, budget.tokens) == (2, 50)
    assert [len(rows) for rows in memory.done] == [5] * 8
    assert sorted(row for rows in memory.done for row in rows) == list(range(40))
    assert count == TokenCount(400, 400)
    run_batches(lengths, budget, memory.run)
    assert memory.refused == 2


@settings(deadline=None)  # starting threads takes what the machine allows
@given(LENGTHS, st.integers(1, 1000), st.integers(300, 1000), st.sampled_from([1, 3]))
def test_each_row_is_run_once_whatever_memory_allows(lengths, tokens, memory_tokens, side_by_side):
    memory = SmallMemory(lengths, memory_tokens)
    count = run_batches(lengths, TokenBudget(tokens), memory.run, side_by_side=side_by_side)
    assert sorted(row for rows in memory.done for row in rows) == list(range(len(lengths)))
    assert count.real == lengths.sum() <= count.computed
    if not memory.refused:
        assert count.padding_share == pytest.approx(padding_share(lengths, tokens))


def test_two_batches_run_at_a_time_and_are_those_of_one_at_a_time():
    lengths = np.array([9, 1, 7, 3, 5, 8, 2, 6, 4, 10])
    alone: list[list[int]] = []
    run_batches(lengths, TokenBudget(20), lambda rows: alone.append(rows.tolist()))
    together, meeting, told = [], threading.Barrier(2, timeout=20), []

    def run(rows):
        together.append(rows.tolist())
        meeting.wait()  # goes on only when another batch runs as well

    assert len(alone) % 2 == 0
    count = run_batches(lengths, TokenBudget(20), run, side_by_side=2, on_batch=lambda n: told.append(n))
    assert sorted(together) == sorted(alone)
    assert (count.real, sum(told)) == (55, 10)


def test_a_fault_in_a_thread_is_raised_where_the_batches_were_asked_for():
    def run(rows):
        raise ValueError("broken graph")

    with pytest.raises(ValueError, match="broken graph"):
        run_batches(np.full(9, 5), TokenBudget(10), run, side_by_side=2)


def test_one_example_that_does_not_fit_is_an_error_to_be_mended():
    memory = SmallMemory(np.array([90]), 60)
    with pytest.raises(EmpathyError, match="one example of 90 tokens: out of memory"):
        run_batches(memory.lengths, TokenBudget(200), memory.run)
