"""Resampling of conversations, paired differences and Holm's correction, by hand."""

import numpy as np
import pytest

from efficient_empathy.experts.statistics import Draws, draw, holm, interval, p_value

GROUPS = ["a", "a", "b", "c", "c", "c"]


def test_the_first_draw_is_everything_once():
    draws = draw(GROUPS, 50)
    assert draws.times.shape == (51, 3)
    assert draws.sums(np.arange(6.0))[0, 0] == 15


def test_conversations_are_drawn_whole_and_as_many_as_there_are():
    draws = draw(GROUPS, 200)
    assert (draws.times.sum(axis=1) == 3).all()
    each = np.stack([draws.sums(row)[:, 0] for row in np.eye(6)])
    assert (each[0] == each[1]).all()  # rows of one conversation come together
    assert (each[3] == each[5]).all()
    assert (each[0] != each[2]).any()


def test_sums_by_hand():
    # Conversation a twice, c once: rows 1 + 2, twice, and 4 + 5 + 6.
    draws = Draws(np.array([0, 0, 1, 2, 2, 2]), np.array([[1, 1, 1], [2, 0, 1]], np.uint16))
    assert draws.sums(np.array([1, 2, 3, 4, 5, 6]))[:, 0].tolist() == [21, 21]
    assert draws.sums(np.ones((6, 2))).tolist() == [[6, 6], [7, 7]]


def test_the_seed_alone_decides_and_a_generator_may_be_given():
    assert (draw(GROUPS, 30, 3).times == draw(GROUPS, 30, 3).times).all()
    assert (draw(GROUPS, 30, 3).times == draw(GROUPS, 30, np.random.default_rng(3)).times).all()
    assert (draw(GROUPS, 30, 3).times != draw(GROUPS, 30, 4).times).any()


def test_interval_of_a_constant_difference_is_that_constant():
    draws = draw(GROUPS, 100)
    values = np.random.default_rng(0).normal(size=6)
    rows = draws.sums(np.ones(6))[:, 0]
    difference = draws.sums(values + 2)[:, 0] / rows - draws.sums(values)[:, 0] / rows
    figure = interval(difference)
    assert (figure.low, figure.value, figure.high) == pytest.approx((2, 2, 2))
    assert p_value(difference) == pytest.approx(1 / 101)


def test_no_difference_has_the_highest_p_value():
    assert p_value(np.zeros(21)) == 1.0


def test_p_value_by_hand():
    # Mean 2, deviations 1, 0, 1, 0: none reaches the observed 2.
    assert p_value(np.array([2.0, 1, 2, 3, 2])) == 1 / 5
    # Mean 2, deviations 3, 1, 3, 1: two of four do; the sign does not matter.
    assert p_value(np.array([2.0, -1, 1, 5, 3])) == 3 / 5
    assert p_value(np.array([-2.0, 1, -1, -5, -3])) == 3 / 5
    assert p_value(np.array([2.0, np.nan, 1, 2, 3])) == 1 / 4


def test_interval_leaves_out_undefined_resamples_and_can_be_recentred():
    # Of 4, 5, 6 the 2.5th percentile is 4 + 0.025 * 2 = 4.05.
    plain = interval(np.array([10.0, 4, np.nan, 5, 6]))
    assert (plain.value, plain.low, plain.high) == pytest.approx((10, 4.05, 5.95))
    moved = interval(np.array([10.0, 4, 5, 6]), recentred=True)
    assert (moved.value, moved.low, moved.high) == pytest.approx((10, 9.05, 10.95))


def test_holm_by_hand():
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1: .02, .03, .06, .04, and the last may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("conversations", "least"), [(1, 1.0), (3, 0.25), (5, 0.0625), (40, 1 / 101)])
def test_few_conversations_cannot_show_much(conversations, least):
    # All of n conversations point one way: where nothing differs that has a chance of 2 / 2^n.
    assert p_value(np.full(101, 2.0), conversations) == least
    assert p_value(np.full(101, 2.0)) == 1 / 101
