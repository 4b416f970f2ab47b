"""Which rows are run together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_empathy.scorer.batching import padding_share, token_budget_batches

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
