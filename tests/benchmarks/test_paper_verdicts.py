"""From differences to verdicts, and from the JSON to the page: numbers worked by hand."""

import copy
import json

import numpy as np
import pytest

pytest.importorskip("rouge_score", reason="rouge-score is part of the experts extra")

from claims.over_seeds import Noise, mean_over_seeds, noise_of_differences, noise_of_one
from claims.page import render
from claims.pooling import DECIDING, METRICS, comparisons_of, pooled
from claims.verdicts import finding, robust, size, superior, verdict
from common import ROOT, read_result

from efficient_empathy.errors import EmpathyError

NATS = next(metric for metric in DECIDING if metric.name == "nats")  # less is better, margin 0.05
EPITOME = next(metric for metric in DECIDING if metric.name == "epitome/all")  # more is better, margin 0.15
THRESHOLDS = (4.0, 5.0, 6.0, 7.0)
SYSTEMS = ("base", *(f"sensibility-T{t:g}" for t in THRESHOLDS), "random", "all", "rationality", "mixture")


def compared(value, low, high, holm=0.01, seeds=3, metric="nats", baseline="all", system="sensibility-T5"):
    found = {"value": value, "low": low, "high": high, "holm": holm, "seeds": [value] * seeds, "metric": metric}
    return {**found, "baseline": baseline, "system": system, "claim": "a"}


def test_better_and_worse_go_by_the_figures_direction():
    assert finding(compared(-0.2, -0.3, -0.1), NATS) == "better"
    assert finding(compared(-0.2, -0.3, -0.1), EPITOME) == "worse"
    assert finding(compared(0.2, 0.1, 0.3), EPITOME) == "better"


def test_nothing_is_shown_without_three_seeds_the_interval_and_the_correction():
    assert finding(compared(-0.2, -0.3, -0.1, seeds=2), NATS) == "too few seeds"
    assert finding(compared(-0.2, -0.3, 0.0), NATS) == "not shown"
    assert finding(compared(-0.2, -0.3, -0.1, holm=0.051), NATS) == "not shown"
    assert finding(compared(-0.2, -0.3, -0.1, holm=0.05), NATS) == "better"


def test_small_is_the_whole_interval_within_the_margin_and_large_the_whole_outside():
    assert size(compared(0.0, -0.04, 0.04, holm=1.0), NATS) == "small"
    assert size(compared(0.03, 0.01, 0.049), NATS) == "small"  # different for sure, and next to nothing
    assert size(compared(0.03, 0.01, 0.06), NATS) == "not shown"
    assert size(compared(0.08, 0.06, 0.1), NATS) == "large"
    assert size(compared(-0.08, -0.1, -0.06), NATS) == "large"
    assert size(compared(0.08, 0.06, 0.1, holm=0.2), NATS) == "not shown"
    assert size(compared(0.0, -0.04, 0.04, seeds=2), NATS) == "too few seeds"


def test_a_claim_of_being_better_needs_every_baseline():
    better, none = compared(-0.2, -0.3, -0.1), compared(0.1, -0.2, 0.3, metric="epitome/all", holm=1.0)
    assert superior([better, none]).word == "held"
    other = compared(0.0, -0.1, 0.1, holm=1.0, baseline="random")
    assert superior([better, none, other]).word == "cannot tell"
    worse = compared(0.2, 0.1, 0.3, baseline="random")
    assert superior([better, none, worse]).word == "did not hold"
    # Better in one figure and worse in another against the same system: they disagree.
    mixed = superior([better, compared(-0.5, -0.6, -0.4, metric="epitome/all")])
    assert mixed.word == "cannot tell"
    assert "better in nats a token" in mixed.why
    assert "worse in EPITOME" in mixed.why


def test_a_claim_of_robustness_needs_every_threshold():
    def at(threshold, *interval):
        return compared(*interval, baseline="sensibility-T5", system=f"sensibility-T{threshold}")

    small, open_, large = at(4, 0.0, -0.01, 0.01), at(6, 0.04, 0.0, 0.08), at(7, 0.1, 0.08, 0.12)
    assert robust([small]).word == "held"
    assert robust([small, open_]).word == "cannot tell"
    assert robust([small, open_, large]).word == "did not hold"


def test_two_seeds_or_nothing_compared_is_no_verdict():
    two = superior([compared(-0.2, -0.3, -0.1, seeds=2)])
    assert (two.word, two.why) == ("cannot tell", "2 of the 3 seeds that a verdict needs")
    assert robust([]).word == "cannot tell"


def test_noise_between_seeds_by_hand():
    # Differences 1, 2 and 6 of two systems: their variance is 7, with two degrees of freedom.
    assert noise_of_differences(np.array([[1.0, 0], [2, 0], [6, 0]])) == Noise(pytest.approx(7.0), 2)
    # What all systems of a seed have in common is no noise of a difference: here only seed 2 of system 2 is off, by 3.
    shifted = np.array([[0.0, 0, 0], [5, 5, 5], [9, 9, 12]])
    # What is left: (2/3, 2/3, -4/3) * (1/3, 1/3, -2/3) * 3 / 2; its squares sum to 4, over 4 degrees; twice that.
    assert noise_of_differences(shifted) == Noise(pytest.approx(2.0), 4)
    assert noise_of_one(np.array([1.0, 2, 6])) == Noise(pytest.approx(7.0), 2)
    assert noise_of_differences(np.ones((1, 4))) is None
    assert noise_of_one(np.ones(1)) is None


def test_the_interval_covers_conversations_and_seeds():
    # Resamples one above and one below each figure: variance 1. Between seeds 7 / 3. Degrees: (10/3)^2 / (1/100 + (7/3)^2 / 2).
    arrays = [np.array([value, value + 1, value - 1, np.nan]) for value in (1.0, 2, 6)]
    found = mean_over_seeds(arrays, 101, Noise(7.0, 2))
    error, t_of_4_07 = (10 / 3) ** 0.5, 2.7586
    assert found.value == 3.0
    assert (found.low, found.high) == pytest.approx((3 - t_of_4_07 * error, 3 + t_of_4_07 * error), rel=1e-3)
    assert found.p == pytest.approx(0.174, abs=2e-3)
    alone = mean_over_seeds(arrays[:1], 101, None)
    assert (alone.low, alone.high) == pytest.approx((1 - 1.98397, 1 + 1.98397), rel=1e-4)
    assert mean_over_seeds([np.zeros(9)], 101, None).p == 1.0


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_without_a_difference_one_interval_in_twenty_misses(spread):
    rng = np.random.default_rng(0)
    missed = found = 0
    for _ in range(600):
        # Eight systems, three seeds: an error of each system on these contexts, and of each training.
        values_SK = rng.normal(size=8) + spread * (rng.normal(size=(3, 1)) + rng.normal(size=(3, 8)))
        resampled = 2**0.5 * rng.normal(size=400)
        arrays = [np.append(own, own + resampled) for own in values_SK[:, 0] - values_SK[:, 1]]
        mean = mean_over_seeds(arrays, 400, noise_of_differences(values_SK))
        missed += not mean.low <= 0 <= mean.high
        found += mean.p < 0.05 / 28
    assert 0.03 < missed / 600 < 0.075
    assert found / 600 < 0.008


def values(changes=(), resamples=1000):
    """A seed whose figures are 2 for all systems on all resamples, but for some."""
    found = {s: {m.name: np.full(1 + resamples, 2.0) for m in METRICS} for s in SYSTEMS}
    for system, metric, value in changes:
        found[system][metric] = np.full(1 + resamples, value)
    return found


def test_seeds_together_decide_claim_by_claim():
    ours = pooled([values([("sensibility-T5", "nats", 1.5)])] * 3, THRESHOLDS, 500)
    by_claim = {claim: verdict(claim, ours["comparisons"]) for claim in "abc"}
    # T = 5 is better by 0.5 nats than all, random and every other threshold; the mixture is worse than it.
    assert {claim: one.word for claim, one in by_claim.items()} == {
        "a": "held",
        "b": "did not hold",
        "c": "did not hold",
    }
    first = next(one for one in ours["comparisons"] if (one["baseline"], one["metric"]) == ("all", "nats"))
    assert ours["tests"] == 28 == len(comparisons_of(THRESHOLDS)) * len(DECIDING)
    # Neither seeds nor resamples vary.
    assert (first["value"], first["low"], first["high"]) == pytest.approx((-0.5, -0.5, -0.5))
    assert first["p"] == first["holm"] == 0.0


def test_seeds_that_disagree_leave_it_open():
    seeds = [values([("sensibility-T5", "nats", nats)]) for nats in (1.5, 1.6, 2.4)]
    found = pooled(seeds, THRESHOLDS, 500)
    first = next(one for one in found["comparisons"] if (one["baseline"], one["metric"]) == ("all", "nats"))
    # -0.5, -0.4 and 0.4; every other system is the same in all seeds.
    assert first["seeds"] == pytest.approx([-0.5, -0.4, 0.4])
    assert first["value"] == pytest.approx(-0.5 / 3)
    assert first["low"] < -0.5 / 3 < 0 < first["high"]
    assert verdict("a", found["comparisons"]).word == "cannot tell"


def test_a_figure_that_decides_must_be_there():
    seeds = [values(), values()]
    del seeds[1]["random"]["nats"]
    with pytest.raises(EmpathyError, match="'nats'"):
        pooled(seeds, THRESHOLDS, 500)


def test_what_the_choosing_scorer_says_decides_nothing():
    flattered = [("sensibility-T5", "paper/sensibility", 9.0), ("mixture", "paper/sensibility", 9.5)]
    found = pooled([values(flattered)] * 3, THRESHOLDS, 500)
    assert verdict("a", found["comparisons"]).word == "cannot tell"
    assert all("holm" not in one for one in found["comparisons"] if one["metric"].startswith("paper/"))


def result_of(changes=(), seeds=3):
    plan = {"labels": 1000, "examples": 1500, "contexts": 500, "thresholds": list(THRESHOLDS), "tiny": False}
    sizes = {"examples": 1500, "share": 0.6, "also_at_5": 1400, "jaccard": 0.875}
    facts = [
        {
            "seed": number,
            "costs": {"scorer": {"attempts": 1, "seconds": 120.0}, "experts/all": {"attempts": 2, "seconds": 90.0}},
            "thresholds": {"4": sizes, "pool": {"examples": 2500}},
            "experts": {},
        }
        for number in range(seeds)
    ]
    together = pooled([values(changes)] * seeds, THRESHOLDS, 500)
    found = {"plan": plan, "cores": 2, "shared_costs": {}, "seeds": facts}
    found["pooled"] = {"seeds": list(range(seeds)), "contexts": 500, "conversations": 500, **together}
    return json.loads(json.dumps(found))


def test_the_page_is_made_of_the_json():
    result = result_of([("sensibility-T5", "nats", 1.5)])
    page = render(result)
    a, b, c = (page.split(f"## ({claim})")[1].split("## ")[0] for claim in "abc")
    assert "Verdict: **held**." in a
    assert "Verdict: **did not hold**." in b
    assert "Verdict: **did not hold**." in c
    row = "| nats a token of what people answered | independent | 1.500 | 2.000 | −0.500 [−0.500, −0.500] |"
    assert f"{row} −0.500, −0.500, −0.500 | <0.001 | better |" in a
    assert "| 0 | 4 | 1500 | 60.0 % | 1400 | 0.875 |" in b
    # 120 s of the scorer and 90 s of an expert, whose first attempt was killed.
    assert "| 0 | 2.0 | 0.0 | 1.5 | 0.0 | 0.0 | 0.0 | 3.5 | 1 |" in page
    changed = copy.deepcopy(result)
    for one in changed["pooled"]["comparisons"]:
        if one["claim"] == "a":
            one["holm"] = 0.2
    assert "Verdict: **cannot tell**." in render(changed).split("## (a)")[1].split("## ")[0]


def test_a_page_without_seeds_gives_no_figure():
    page = render({})
    assert "has not been run at full size yet" in page
    assert "Verdict" not in page
    assert "| seed |" not in page
    started = result_of(seeds=1)
    started.pop("pooled")
    assert "No seed is evaluated yet" in render(started)


def test_the_page_in_docs_is_that_of_the_json_in_the_project():
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == render(read_result("paper"))
