"""From raw outputs to the judge's scale, and held-out figures with nothing chosen on the rows themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_empathy.distill.batches import split_by_conversation
from efficient_empathy.distill.calibration import calibrate, clipped, cross_fitted, fit_calibration, fit_line
from efficient_empathy.distill.decision import decision_rule
from efficient_empathy.distill.quality import macro_f1, spearman
from efficient_empathy.distill.student import exceedances, expected_scores
from efficient_empathy.scorer.artifact import Scale

SEED = 3
SCALES = (Scale("sensibility", 0.0, 10.0), Scale("rationality", 0.0, 10.0))
WARMTH = (Scale("warmth", 0.0, 10.0),)
YES_OR_NO = Scale("warm", 0.0, 1.0)


def test_a_line_gives_the_judge_s_mean_and_spread():
    # Raw 0, 2: mean 1, spread 1. Judge 3, 7: mean 5, spread 2. So 2 * raw + 3.
    line = fit_line(np.array([[0.0], [2.0]]), np.array([[3.0], [7.0]]))
    assert (line.slope.tolist(), line.intercept.tolist()) == ([2.0], [3.0])
    assert line.apply(np.array([[1.5]])).tolist() == [[6.0]]


@given(st.integers(0, 1000))
def test_rows_on_a_line_have_the_judge_s_mean_spread_and_their_own_order(seed):
    rng = np.random.default_rng(seed)
    raw, scores = rng.normal(size=(40, 2)), rng.integers(0, 11, (40, 2)).astype(float)
    found = fit_line(raw, scores).apply(raw)
    np.testing.assert_allclose(found.mean(0), scores.mean(0), atol=1e-9)
    np.testing.assert_allclose(found.std(0), scores.std(0), atol=1e-9)
    assert spearman(found[:, 0], raw[:, 0]) == pytest.approx(1.0)


def test_each_side_gets_the_judge_s_mean_distance_from_the_middle():
    # The line through all rows reaches 5 at raw 0 and decides every row right: there the two lines meet.
    raw, scores = np.array([[-1.0], [-1.0], [1.0], [1.0]]), np.array([[3.0], [3.0], [7.0], [7.0]])
    even = calibrate(raw, scores, raw, scores[None], WARMTH)
    assert (even.cut.item(), even.below.item(), even.above.item()) == (0.0, 2.0, 2.0)
    raw, scores = np.array([[-1.0], [-1.0], [1.0], [2.0]]), np.array([[3.0], [4.0], [8.0], [9.0]])
    bent = calibrate(raw, scores, raw, scores[None], WARMTH)
    # Mean 0.25 and 6, spread 1.299 and 2.550: slope 1.963, and 5 is reached at 0.25 - 1 / 1.963 = -0.2595.
    assert bent.cut.item() == pytest.approx(-0.2595, abs=1e-4)
    # Below: 0.7405 twice against 2 and 1; above: 1.2595 and 2.2595 against 3 and 4.
    assert bent.below.item() == pytest.approx(3 / 1.4810, abs=1e-3)
    assert bent.above.item() == pytest.approx(7 / 3.5190, abs=1e-3)
    assert bent.apply(raw).mean() == pytest.approx(scores.mean())


def test_the_cut_is_where_decisions_are_best_and_not_where_the_line_has_it():
    raw, scores = np.arange(10.0)[:, None], np.array([[4.0]] * 7 + [[6.0]] * 3)
    # Mean 4.5 and 4.6, spread 2.872 and 0.917: the line reaches 5 at 5.75, and so calls raw 6 high.
    assert fit_line(raw, scores).apply(np.array([[6.0]])).item() > 5
    calibration = calibrate(raw, scores, raw, scores[None], WARMTH)
    assert 6 < calibration.cut.item() < 7
    assert ((calibration.apply(raw) > 5) == (scores > 5)).all()


def test_cuts_of_the_paper_s_rule_are_chosen_together():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 11, (400, 2)).astype(float)
    raw = np.exp(scores / 4) + rng.normal(scale=0.3, size=scores.shape)  # no line is right
    decide = decision_rule(SCALES)[0]
    lines, both = fit_line(raw, scores).apply(raw), calibrate(raw, scores, raw, scores[None], SCALES).apply(raw)
    figures = [macro_f1(decide(found), decide(scores), 3) for found in (lines, both)]
    assert figures[0] < 0.8 < 0.9 < figures[1]


@given(st.integers(0, 1000))
def test_calibration_keeps_the_order(seed):
    rng = np.random.default_rng(seed)
    raw, scores = rng.normal(size=(30, 2)), rng.integers(0, 11, (30, 2)).astype(float)
    found = calibrate(raw, scores, raw, scores[None], SCALES).apply(raw)
    for column in (0, 1):
        assert (np.diff(found[np.argsort(raw[:, column]), column]) > 0).all()


def test_a_few_rows_bend_the_line_by_no_more_than_a_factor():
    # One row of 20 is a little over the middle for the judge, and far over the cut for the student.
    raw, scores = np.array([[0.0]] * 10 + [[1.0]] * 9 + [[9.0]]), np.array([[1.0]] * 10 + [[3.0]] * 9 + [[5.5]])
    calibration, line = calibrate(raw, scores, raw, scores[None], WARMTH), fit_line(raw, scores)
    assert calibration.above.item() == pytest.approx(line.slope.item() / 2)


def test_how_sure_the_student_says_it_is_does_not_move_the_decisions():
    rng = np.random.default_rng(0)
    odds = rng.normal(size=(300, 1))
    scores = (rng.random((300, 1)) < 1 / (1 + np.exp(-odds + 1))).astype(float)

    def decided(sharpness):
        probabilities = 1 / (1 + np.exp(-sharpness * (odds - 1)))
        return fit_calibration(probabilities, scores, (YES_OR_NO,)).apply(probabilities) > 0.5

    # 16 ** (10 / 80): a step of the numbers that are tried, so that the probabilities become the same.
    assert (decided(1.0) == decided(16 ** (10 / 80))).all()
    assert 0.05 < decided(1.0).mean() < 0.95


def test_a_rare_subset_is_found_from_what_the_student_is_not_sure_of():
    # Of 600 rows 8 % are high, and none is more likely so than 40 %: no row would be called high by its own probability.
    rng = np.random.default_rng(0)
    chance = rng.choice([0.02, 0.4], p=[0.85, 0.15], size=(600, 1))
    scores = (rng.random((600, 1)) < chance).astype(float)
    calibration = fit_calibration(chance, scores, (YES_OR_NO,))
    assert 0.02 < calibration.cut.item() < 0.4


def test_unlabelled_rows_settle_where_the_cut_is_best():
    # The held-out rows hold none of the second kind, which is common elsewhere and high half of the time.
    kinds = np.array([[0.05], [0.5], [0.9]])
    held, scores = kinds[[0] * 10 + [2] * 10], np.array([[0.0]] * 10 + [[1.0]] * 10)
    more = kinds[[0] * 50 + [1] * 100]
    assert 0.05 < fit_calibration(held, scores, (YES_OR_NO,), more).cut.item() < 0.5
    # Of these few are high: to call the second kind so would be wrong half of the time, and is the best there is for macro-F1.
    assert 0.05 < fit_calibration(held, scores, (YES_OR_NO,), kinds[[0] * 500 + [1] * 10]).cut.item() < 0.5
    assert 0.05 < fit_calibration(held, scores, (YES_OR_NO,)).cut.item() < 0.9


@pytest.mark.parametrize(("shared", "more"), [(0.0, False), (-0.9, True)])
def test_what_is_left_unsaid_in_both_dimensions_counts_together(shared, more):
    # The probabilities are the same for all rows: what the judge says varies beside them, in the two dimensions independently, or
    # the one up where the other is down. Drawn alike, the discarded rows (rationality high, sensibility low) are as many as those.
    from efficient_empathy.distill.calibration import draw

    rng = np.random.default_rng(0)
    normal = rng.multivariate_normal([0, 0], [[1, shared], [shared, 1]], 400)
    scores = np.clip(np.rint(5 + 2.5 * normal), 0, 10)
    probabilities = np.tile(exceedances(scores, SCALES).mean(0), (400, 1))
    drawn = draw(probabilities, scores, probabilities, SCALES)
    assert drawn.shape[1:] == scores.shape
    decide = decision_rule(SCALES)[0]
    shares = [np.bincount(decide(some), minlength=3)[2] / len(some) for some in (drawn.reshape(-1, 2), scores)]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)
    assert (shares[0] > 0.3) == more


def test_outputs_that_do_not_vary_get_the_judge_s_mean():
    raw, scores = np.full((5, 1), 0.3), np.array([[1.0], [2.0], [3.0], [4.0], [9.0]])
    assert calibrate(raw, scores, raw, scores[None], WARMTH).apply(np.array([[0.3]])).item() == pytest.approx(3.8)


@pytest.fixture
def held():
    """Probabilities of four epochs for 60 held-out rows of 30 conversations, the third the closest to the judge."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 11, (60, 2)).astype(float)
    noises = [rng.normal(scale=noise, size=scores.shape) for noise in (6.0, 3.0, 1.0, 2.0)]
    epochs = [0.8 * exceedances(np.clip(scores + noise, 0, 10), SCALES) + 0.1 for noise in noises]
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
    raw = [expected_scores(probabilities, SCALES) for probabilities in epochs]
    best = int(np.argmax([sum(spearman(e[there, d], scores[there, d]) for d in (0, 1)) for e in raw]))
    assert best == 2  # the epoch with the least noise
    expected = fit_calibration(epochs[best][there], scores[there], SCALES).apply(raw[best][here])
    np.testing.assert_allclose(found[here], np.clip(expected, 0, 10))


def test_scores_stay_within_their_scales_as_the_shipped_ones_do(held):
    epochs, scores, groups = held
    # The judge knows only the ends, so lines are steep and lead over them.
    found = cross_fitted(epochs, np.where(scores > 5, 10.0, 0.0), groups, SCALES, SEED)
    assert (found.min(), found.max()) == (0.0, 10.0)
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


@pytest.mark.parametrize("judged", [0.0, 5.0, 10.0])
def test_a_dimension_that_does_not_vary_among_the_held_out_keeps_its_ranking(judged):
    raw = np.array([[0.1], [0.3], [0.2]])
    scores = np.full((3, 1), judged)
    found = calibrate(raw, scores, raw, scores[None], WARMTH).apply(raw)
    assert found.ravel().argsort().tolist() == [0, 2, 1]
    assert found.mean() == pytest.approx(judged)
