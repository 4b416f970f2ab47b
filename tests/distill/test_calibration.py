"""From raw outputs to the judge's scale, and held-out figures with nothing chosen on the rows themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_empathy.distill.batches import split_by_conversation
from efficient_empathy.distill.calibration import clipped, cross_fitted, fit_calibration
from efficient_empathy.distill.quality import spearman
from efficient_empathy.scorer.artifact import Scale

SEED = 3
SCALES = (Scale("sensibility", 0.0, 10.0), Scale("rationality", 0.0, 10.0))


def test_mean_and_spread_become_the_judge_s():
    # Raw 0, 2: mean 1, spread 1. Judge 3, 7: mean 5, spread 2. So 2 * raw + 3.
    calibration = fit_calibration(np.array([[0.0], [2.0]]), np.array([[3.0], [7.0]]))
    assert (calibration.slope.tolist(), calibration.intercept.tolist()) == ([2.0], [3.0])
    assert calibration.apply(np.array([[1.5]])).tolist() == [[6.0]]


@given(st.integers(0, 1000))
def test_calibrated_rows_have_the_judge_s_mean_spread_and_their_own_order(seed):
    rng = np.random.default_rng(seed)
    raw, scores = rng.normal(size=(40, 2)), rng.integers(0, 11, (40, 2)).astype(float)
    found = fit_calibration(raw, scores).apply(raw)
    np.testing.assert_allclose(found.mean(0), scores.mean(0), atol=1e-9)
    np.testing.assert_allclose(found.std(0), scores.std(0), atol=1e-9)
    assert spearman(found[:, 0], raw[:, 0]) == pytest.approx(1.0)


def test_outputs_that_do_not_vary_get_the_judge_s_mean():
    calibration = fit_calibration(np.full((5, 1), 0.3), np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]))
    assert calibration.apply(np.array([[0.3]]))[0, 0] == pytest.approx(3.0)


@pytest.fixture
def held():
    """Outputs of four epochs for 60 held-out rows of 30 conversations, ever closer to the judge."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 11, (60, 2)).astype(float)
    epochs = [scores / 5 + rng.normal(scale=noise, size=scores.shape) for noise in (3.0, 1.5, 0.5, 1.0)]
    return epochs, scores, [f"c{row // 2}" for row in range(60)]


def test_labels_of_one_half_have_no_part_in_its_own_scores(held):
    epochs, scores, groups = held
    before = cross_fitted(epochs, scores, groups, SCALES, SEED)
    for half in split_by_conversation(groups, 0.5, SEED):
        other = np.setdiff1d(np.arange(60), half)
        changed = scores.copy()
        changed[half] = np.random.default_rng(1).permutation(10 - changed[half]) * 0.5
        after = cross_fitted(epochs, changed, groups, SCALES, SEED)
        np.testing.assert_array_equal(after[half], before[half])
        assert np.abs(after[other] - before[other]).max() > 0.1


def test_outputs_of_one_half_are_only_scaled_by_the_other(held):
    epochs, scores, groups = held
    here, there = split_by_conversation(groups, 0.5, SEED)
    found = cross_fitted(epochs, scores, groups, SCALES, SEED)
    best = int(np.argmax([sum(spearman(e[there, d], scores[there, d]) for d in (0, 1)) for e in epochs]))
    assert best == 2  # the epoch with the least noise
    expected = fit_calibration(epochs[best][there], scores[there]).apply(epochs[best][here])
    np.testing.assert_allclose(found[here], np.clip(expected, 0, 10))


def test_scores_stay_within_their_scales_as_the_shipped_ones_do():
    # Each half has a conversation with raw 0 and 2, which the judge gave 0 and 10: 5 * raw. Raw 3 would be 15, raw -1 be -5.
    groups, low = ["a", "a", "b", "b"], Scale("warmth", 0.0, 10.0)
    raw, scores = np.array([[0.0], [2.0], [3.0], [-1.0]]), np.array([[0.0], [10.0], [10.0], [0.0]])
    here, there = split_by_conversation(groups, 0.5, SEED)
    assert sorted([here.tolist(), there.tolist()]) == [[0, 1], [2, 3]]
    found = cross_fitted([raw], scores, groups, (low,), SEED)
    # Judged by the other half, which has raw 3 and -1 for 10 and 0, the first is 2.5 * raw + 2.5.
    assert found.ravel().tolist() == [2.5, 7.5, 10.0, 0.0]
    assert clipped(np.array([[-1.0, 11.0]]), SCALES).tolist() == [[0.0, 10.0]]
    assert clipped(np.array([[0.1, 7.3]], np.float32), SCALES).dtype == np.float32


def test_the_scores_of_a_conversation_do_not_touch_its_own_figures(held):
    epochs, scores, groups = held
    before = cross_fitted(epochs, scores, groups, SCALES, 1)
    for group in sorted(set(groups))[:5]:
        own = np.array([other == group for other in groups])
        changed = np.where(own[:, None], 10 - scores, scores)
        np.testing.assert_array_equal(cross_fitted(epochs, changed, groups, SCALES, 1)[own], before[own])
    two = ["a"] * 59 + ["b"]
    assert np.isfinite(cross_fitted(epochs, scores, two, SCALES, 0)).all()


def test_a_dimension_that_does_not_vary_among_the_held_out_keeps_its_ranking():
    raw = np.array([[0.1], [0.3], [0.2]])
    found = fit_calibration(raw, np.zeros((3, 1))).apply(raw)
    assert found.ravel().argsort().tolist() == [0, 2, 1]
    assert found.mean() == pytest.approx(0.0)
