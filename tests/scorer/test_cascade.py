"""The cascade keeps its promise, on rows that were not used to make it."""

import numpy as np
import pytest

from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.cascade import Doubts, Pairs, curve, describe, plan_cascade, wilson_high
from efficient_empathy.selection.policies import ExpressionPolicy, PaperPolicy

DIMENSIONS = ("sensibility", "rationality")


def make_pairs(rows: int, noise: float, seed: int) -> Pairs:
    rng = np.random.default_rng(seed)
    transformer = rng.uniform(0, 10, (rows, 2))
    return Pairs(np.clip(transformer + rng.normal(0, noise, (rows, 2)), 0, 10), transformer)


def decided(pairs: Pairs, taken: np.ndarray, policy: PaperPolicy) -> float:
    """Share of decisions that differ when the fast tier decides the rows that are taken."""
    fast, transformer = (policy.decide(scores, DIMENSIONS) for scores in (pairs.fast, pairs.transformer))
    return float(((fast != transformer) & taken).mean())


@pytest.mark.parametrize("max_flips", [0.01, 0.03, 0.08])
def test_the_promise_is_kept_on_other_rows(max_flips):
    policy = PaperPolicy()
    for seed in range(5):
        pairs, others = make_pairs(3000, 1.0, seed), make_pairs(20_000, 1.0, 100 + seed)
        plan = plan_cascade(pairs, policy, DIMENSIONS, max_flips)
        assert plan.tier == "cascade"
        assert plan.flips <= plan.flips_high <= max_flips
        taken = Doubts(pairs, policy, DIMENSIONS).of(others.fast) <= plan.limit
        assert abs(taken.mean() - plan.fast_share) < 0.03
        assert decided(others, taken, policy) <= max_flips


def test_a_looser_promise_gives_the_fast_tier_more():
    pairs = make_pairs(3000, 1.0, 0)
    shares = [plan_cascade(pairs, PaperPolicy(), DIMENSIONS, m).fast_share for m in (0.005, 0.01, 0.02, 0.05, 0.1)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_the_doubt_is_greatest_at_the_threshold():
    pairs = make_pairs(4000, 0.5, 0)
    doubts = Doubts(pairs, PaperPolicy(), DIMENSIONS).of(np.array([[5.01, 2.0], [6.0, 2.0], [9.0, 1.0]]))
    # A normal error of 0.5 crosses a threshold 0.01 away about every second time, one 1 away in 2 %, one 4 away never.
    assert doubts[0] == pytest.approx(0.5, abs=0.1)
    assert doubts[1] == pytest.approx(0.02, abs=0.04)
    assert doubts[2] == 0


def test_a_perfect_fast_tier_does_it_all_and_a_useless_one_nothing():
    perfect = make_pairs(500, 0.0, 0)
    assert plan_cascade(perfect, PaperPolicy(), DIMENSIONS, 0.02).tier == "fast"
    useless = Pairs(np.random.default_rng(1).uniform(4.9, 5.1, (500, 2)), perfect.transformer)
    plan = plan_cascade(useless, PaperPolicy(), DIMENSIONS, 0.01)
    assert (plan.tier, plan.fast_share, plan.limit) == ("transformer", 0.0, -1.0)


def test_any_policy_and_any_dimensions():
    rng = np.random.default_rng(0)
    transformer = rng.uniform(0, 4, (1000, 3))
    pairs = Pairs(transformer + rng.normal(0, 0.3, (1000, 3)), transformer)
    policy = ExpressionPolicy({"good": "a > 2 and b > 2", "fair": "c > 3"})
    plan = plan_cascade(pairs, policy, ("a", "b", "c"), 0.05)
    assert plan.tier == "cascade"
    assert 0.3 < plan.fast_share < 1


def test_the_curve_runs_from_sure_to_all():
    # The transformer gives 2 points more or less than the fast tier, at random: at 9 no decision depends on it, at 4 and
    # at 6 every other one does, and half of those are wrong.
    fast = np.repeat([[9.0, 9.0], [4.0, 9.0], [6.0, 9.0]], [100, 50, 50], axis=0)
    moved = np.tile([[2.0, 0.0], [-2.0, 0.0]], (100, 1))
    points = curve(Pairs(fast, fast + moved), ExpressionPolicy({"high": "a > 5"}), ("a", "b"))
    assert (points[0].limit, points[0].fast_share, points[0].flips) == (0.0, 0.5, 0.0)
    assert (points[-1].fast_share, points[-1].flips) == (1.0, 50 / 200)
    assert [point.limit for point in points[1:]] == pytest.approx([0.5] * len(points[1:]), abs=0.1)


def test_the_upper_end_of_a_share():
    # Wilson, 95 %: none of 100 is 3.70 % at most (z2 / (n + z2) = 3.8416 / 103.8416); 5 of 100 is 11.18 %.
    assert wilson_high(0, 100) == pytest.approx(3.8416 / 103.8416)
    assert wilson_high(5, 100) == pytest.approx(0.1118, abs=1e-4)


@pytest.mark.parametrize("max_flips", [0, 1, -0.1, float("nan")])
def test_a_promise_is_a_share(max_flips):
    with pytest.raises(EmpathyError, match="max_flips must be a share"):
        plan_cascade(make_pairs(500, 1.0, 0), PaperPolicy(), DIMENSIONS, max_flips)


def test_too_few_rows_promise_nothing():
    with pytest.raises(EmpathyError, match=r"199 held-out rows.*200 are needed"):
        plan_cascade(make_pairs(199, 1.0, 0), PaperPolicy(), DIMENSIONS, 0.05)


def test_pairs_are_kept_in_a_file(tmp_path):
    pairs = make_pairs(50, 1.0, 0)
    pairs.write(tmp_path / "cascade.json")
    again = Pairs.read(tmp_path / "cascade.json")
    np.testing.assert_allclose(again.fast, pairs.fast, atol=5e-5)
    np.testing.assert_allclose(again.transformer, pairs.transformer, atol=5e-5)


def test_a_plan_is_described_in_plain_numbers():
    described = describe(plan_cascade(make_pairs(500, 1.0, 0), PaperPolicy(), DIMENSIONS, 0.05))
    assert described["max_flips"] == 0.05
    assert {type(value) for value in described.values()} == {str, int, float}
