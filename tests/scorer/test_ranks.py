"""Spearman's rank correlation, by hand and against scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_empathy.scorer.ranks import spearman

PAIRS = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=3, max_size=60).map(np.array)


def test_by_hand():
    # Ranks 1 2 3 against 1 3 2: 1 - 6 × (0 + 1 + 1) / (3 × 8) = 0.5.
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 9.0, 4.0])) == pytest.approx(0.5)
    # Ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4: deviations -1.5, 0, 0, 1.5 and -.5, -1.5, .5, 1.5; 3 / sqrt(4.5 * 5).
    assert spearman(np.array([1, 5, 5, 9]), np.array([2, 1, 3, 8])) == pytest.approx(3 / np.sqrt(22.5))


@given(PAIRS)
def test_it_agrees_with_scipy_also_with_ties(pairs):
    spearmanr = pytest.importorskip("scipy.stats", reason="scipy is part of the distill extra").spearmanr
    a, b = pairs.T
    if np.ptp(a) and np.ptp(b):
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    else:
        assert spearman(a, b) == 0.0
