"""Figures from verdicts, worked by hand."""

import math

import numpy as np
import pytest

from efficient_empathy.experts.pairwise_figures import JudgedPair, length_controlled, sign_test, summarise


def pair(name: str, verdicts: tuple, lengths: tuple[int, int] = (10, 20), reasons: tuple = (None, None)) -> JudgedPair:
    return JudgedPair(
        name, f"d{name[0]}", lengths, not verdicts, verdicts, reasons[: len(verdicts)], (None,) * len(verdicts)
    )


PAIRS = [
    pair("1a", ("first", "first"), (30, 20)),  # win, of the longer
    pair("1b", ("first", "first"), (10, 20)),  # win, of the shorter
    pair("2a", ("second", "second"), (10, 20)),  # lose, to the longer
    pair("3a", ("first", "second"), (30, 20)),  # tie: whoever stands first
    pair("4a", ("tie", "first"), (20, 20)),  # tie: not agreed
    pair("5a", ("tie", "tie"), (40, 20)),  # tie
    pair("6a", (), (20, 20)),  # tie: the same reply, not asked
    pair("7a", ("first", None), (0, 20), (None, "no-verdict")),
    pair("8a", (None, None), (10, 20), ("not-asked", "http-500")),
    pair("9a", ("first", None), (10, 20), (None, "not-asked")),
]


def test_every_figure_by_hand():
    result = summarise(("x", "y"), PAIRS, resamples=200)
    assert (result.wins, result.ties, result.losses, result.identical) == (2, 4, 1, 1)
    assert (result.unscored, result.not_asked) == ({"http-500": 1, "no-verdict": 1}, 1)
    assert result.pairs == 10 == result.scored + sum(result.unscored.values()) + result.not_asked
    assert result.empty == (1, 0)
    # (2 + 4 / 2) / 7
    assert result.win_rate.value == pytest.approx(4 / 7)
    assert result.win_rate.low <= 4 / 7 <= result.win_rate.high
    # Of two wins and one loss: both tails hold everything.
    assert result.sign_test == 1
    # 3a and 4a of the six that were asked and scored.
    assert result.flip_rate == pytest.approx(2 / 6)
    # Single verdicts for somebody, (first order, second order): 1a 1 of 2 for the first place, 1b 1 of 2, 2a 1 of 2,
    # 3a 2 of 2, 4a 0 of 1.
    assert result.first_place == pytest.approx(5 / 9)
    # 1a and 2a, not 1b.
    assert result.longer_wins == pytest.approx(2 / 3)
    # 1a, 3a and 5a of the five scored pairs of unequal length.
    assert result.first_longer == pytest.approx(3 / 5)
    assert result.mean_lengths == (18.0, 20.0)
    shares = result.to_dict()["shares"]
    assert shares == {"wins": pytest.approx(2 / 7), "ties": pytest.approx(4 / 7), "losses": pytest.approx(1 / 7)}


def test_nothing_scored_gives_no_figures():
    result = summarise(("x", "y"), PAIRS[-3:], resamples=20)
    assert (result.scored, result.win_rate, result.length_controlled) == (0, None, None)
    assert (result.flip_rate, result.first_place, result.longer_wins) == (None, None, None)
    assert result.sign_test is None


def test_conversations_are_drawn_whole():
    # Two conversations, one of three wins and one of one loss. A resample holds both, or one of them twice: 3/4, 1 or 0.
    pairs = [pair(name, ("first", "first")) for name in ("1a", "1b", "1c")] + [pair("2a", ("second", "second"))]
    result = summarise(("x", "y"), pairs, resamples=500)
    assert (result.win_rate.value, result.win_rate.low, result.win_rate.high) == (0.75, 0, 1)


def test_sign_test_against_sums_of_binomials():
    # 8 of 10: 2 × (1 + 10 + 45) / 1024
    assert sign_test(8, 2) == pytest.approx(112 / 1024)
    assert sign_test(2, 8) == pytest.approx(112 / 1024)
    # 0 of 6: 2 / 64
    assert sign_test(6, 0) == pytest.approx(2 / 64)
    assert sign_test(5, 5) == 1 == sign_test(0, 0)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_length_control_by_hand():
    # Eight pairs 10 characters longer, eight 10 shorter: the standard deviation is 10, so x is ±tanh(1). With two groups the
    # regression meets both win rates, 7/8 and 3/8, and at x = 0 stands half way between their logits.
    points = np.array([1] * 7 + [0] + [1] * 3 + [0] * 5, float)
    differences = np.repeat([10.0, -10.0], 8)
    expected = 1 / (1 + math.exp(-(logit(7 / 8) + logit(3 / 8)) / 2))
    # The ridge moves it a little: 0.01 against a curvature of about 2.8.
    assert length_controlled(points, differences, np.ones((1, 16)))[0] == pytest.approx(expected, abs=2e-3)
    # Counting each row a thousand times leaves next to nothing of the ridge.
    assert length_controlled(points, differences, np.full((1, 16), 1000.0))[0] == pytest.approx(expected, abs=2e-6)


def test_length_control_leaves_equal_lengths_alone():
    # Without differences only the intercept is left: 3 wins and a tie of 4, less the ridge.
    points, none = np.array([1, 1, 1, 0.5]), np.zeros(4)
    assert length_controlled(points, none, np.full((1, 4), 1000.0))[0] == pytest.approx(3.5 / 4, abs=1e-4)


def test_a_judge_that_only_counts_characters_gives_neither_system_the_better_at_equal_length():
    rng = np.random.default_rng(0)
    differences = rng.normal(30, 40, 400)
    points = (differences > 0).astype(float)
    assert points.mean() > 0.7
    assert length_controlled(points, differences, np.ones((1, 400)))[0] == pytest.approx(0.5, abs=0.15)


def test_extremes_stay_finite_and_ridge_settles_what_the_data_cannot():
    ones, weights = np.ones(200), np.ones((1, 200))
    # All won and lengths balanced: nearly 1, not nan.
    assert 0.999 < length_controlled(ones, np.tile([5.0, -5.0], 100), weights)[0] < 1
    # All won and always longer by the same: half of the evidence goes to the length.
    rate = length_controlled(ones, np.full(200, 7.0), weights)[0]
    assert 0.9 < rate < length_controlled(ones, np.zeros(200), weights)[0]


def test_each_row_of_weights_is_a_regression_of_its_own():
    rng = np.random.default_rng(1)
    points, differences = rng.choice([0, 0.5, 1], 50), rng.normal(0, 20, 50)
    weights = rng.integers(0, 3, (6, 50)).astype(float)
    together = length_controlled(points, differences, weights)
    apart = [length_controlled(points, differences, row[None])[0] for row in weights]
    repeated = [np.repeat(np.arange(50), row.astype(int)) for row in weights]
    drawn = [length_controlled(points[r], differences[r], np.ones((1, len(r))))[0] for r in repeated]
    assert together == pytest.approx(apart, abs=1e-8)
    assert together == pytest.approx(drawn, abs=1e-8)
