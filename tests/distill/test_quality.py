"""Figures of agreement, by hand and against scipy and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_empathy.distill.decision import decision_rule, separate_decisions
from efficient_empathy.distill.quality import (
    Judged,
    agreement,
    macro_f1,
    mean_absolute_error,
    quadratic_kappa,
    with_interval,
)
from efficient_empathy.scorer.artifact import Scale

SCALE = Scale("sensibility", 0.0, 10.0)
PAIRS = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=3, max_size=60).map(np.array)


def test_mean_absolute_error():
    assert mean_absolute_error(np.array([1.0, 4.0]), np.array([2.0, 2.0])) == 1.5


@given(PAIRS)
def test_kappa_agrees_with_scikit_learn(pairs):
    from sklearn.metrics import cohen_kappa_score

    a, b = pairs.T
    if len(set(a) | set(b)) > 1:
        expected = cohen_kappa_score(a, b, weights="quadratic", labels=range(11))
        assert quadratic_kappa(a.astype(float), b.astype(float), SCALE) == pytest.approx(expected, abs=1e-9)
    else:
        assert quadratic_kappa(a.astype(float), b.astype(float), SCALE) == 0.0


def test_kappa_rounds_what_was_found_and_knows_other_scales():
    judge = np.array([1.0, 3.0, 5.0])
    assert quadratic_kappa(np.array([1.4, 2.6, 9.0]), judge, Scale("x", 1, 5)) == 1.0
    assert quadratic_kappa(judge[::-1].copy(), judge, Scale("x", 1, 5)) == pytest.approx(-1.0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60).map(np.array))
def test_macro_f1_agrees_with_scikit_learn(pairs):
    from sklearn.metrics import f1_score

    found, expected = pairs.T
    assert macro_f1(found, expected, 3) == pytest.approx(f1_score(expected, found, average="macro"))


def test_an_interval_holds_its_value_and_depends_on_the_seed_alone():
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    groups = [f"c{row // 2}" for row in range(200)]
    figure = with_interval(lambda rows: float(values[rows].mean()), groups, resamples=500, seed=4)
    assert figure.low < figure.value < figure.high
    assert figure.value == pytest.approx(values.mean())
    assert figure == with_interval(lambda rows: float(values[rows].mean()), groups, resamples=500, seed=4)
    assert figure != with_interval(lambda rows: float(values[rows].mean()), groups, resamples=500, seed=5)
    # The mean of 200 draws: 1.96 / sqrt(200) either side.
    assert figure.high - figure.low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.25)


def test_conversations_are_drawn_whole():
    # Each conversation holds a 0 and a 1: however they are drawn, the mean is 0.5.
    values = np.array([0.0, 1.0] * 20)
    groups = [f"c{row // 2}" for row in range(40)]
    figure = with_interval(lambda rows: float(values[rows].mean()), groups, resamples=100)
    assert (figure.low, figure.value, figure.high) == (0.5, 0.5, 0.5)
    alone = with_interval(lambda rows: float(values[rows].mean()), [str(row) for row in range(40)], resamples=100)
    assert alone.low < 0.5 < alone.high


def test_agreement_names_every_figure():
    scores = np.array([[9.0, 1.0], [1.0, 9.0], [5.0, 5.0], [8.0, 2.0]])
    dimensions = (Scale("sensibility", 0, 10), Scale("rationality", 0, 10))
    judged = Judged(scores, ["a", "b", "c", "d"], dimensions, lambda s: (s[:, 0] > s[:, 1]).astype(int), 2)
    figures = agreement(scores, judged, resamples=20)
    assert {name: figure.value for name, figure in figures.items()} == {
        "spearman/sensibility": pytest.approx(1.0),
        "mae/sensibility": 0.0,
        "kappa/sensibility": 1.0,
        "spearman/rationality": pytest.approx(1.0),
        "mae/rationality": 0.0,
        "kappa/rationality": 1.0,
        "decision/accuracy": 1.0,
        "decision/macro_f1": 1.0,
    }
    half = agreement(scores[:, ::-1].copy(), judged, resamples=20)
    assert half["decision/accuracy"].value == 0.25  # of the four only the tie stays where it was
    assert half["spearman/sensibility"].value == pytest.approx(-1.0)
    assert half["mae/sensibility"].value == (8 + 8 + 0 + 6) / 4


def test_many_dimensions_make_many_classes_of_which_few_occur():
    # 20 yes/no items: a million classes, a table of which would have 2^40 cells.
    scales = tuple(Scale(f"item {d}", 0.0, 1.0) for d in range(20))
    scores = np.random.default_rng(0).integers(0, 2, (12, 20)).astype(float)
    bits = 1 << np.arange(20)
    judged = Judged(scores, [str(row) for row in range(12)], scales, lambda s: ((s > 0.5) * bits).sum(1), 1 << 20)
    found = agreement(scores, judged, resamples=20)
    assert (found["decision/macro_f1"].value, found["decision/accuracy"].value) == (1.0, 1.0)


def test_the_paper_s_rule_needs_one_scale_for_both():
    both = (Scale("sensibility", 0.0, 10.0), Scale("rationality", 0.0, 10.0))
    assert decision_rule(both)[1:] == (3, "paper rule, T = 5")
    decide, classes, name = decision_rule((Scale("sensibility", 1.0, 5.0), Scale("rationality", 1.0, 10.0)))
    assert (classes, name) == (4, "above or below each scale's middle")
    # Middles 3 and 5.5: below both, above the first, above the second, above both.
    assert decide(np.array([[2, 5], [4, 5], [2, 6], [4, 6]])).tolist() == [0, 1, 2, 3]


def test_dimensions_that_the_rule_does_not_name_have_a_decision_each():
    scales = tuple(Scale(name, 0.0, 10.0) for name in ("warmth", "rationality", "safety", "sensibility"))
    rule, warmth, safety = separate_decisions(scales)
    assert [columns for columns, _ in (rule, warmth, safety)] == [[1, 3], [0], [2]]
    # Rationality, then sensibility: sensibility, discarded, rationality.
    rows = np.array([[2.0, 8.0], [8.0, 2.0], [8.0, 8.0]])
    assert rule[1](rows).tolist() == decision_rule((scales[1], scales[3]))[0](rows).tolist()
    assert len(set(rule[1](rows).tolist())) == 3
    assert warmth[1](np.array([[4.0], [5.0], [6.0]])).tolist() == [0, 0, 1]
