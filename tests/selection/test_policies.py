"""Policies: the paper's rule on hand-worked scores and on the paper's own, naming, and free expressions."""

import gzip

import numpy as np
import orjson
import pytest

from efficient_empathy.errors import EmpathyError
from efficient_empathy.selection import ExpressionPolicy, PaperPolicy, ReleasedScriptPolicy, make_policy

DIMENSIONS = ("sensibility", "rationality")
# Shares in percent of the 5,734 rows of the paper's validation part: sensibility, discarded, rationality.
PUBLISHED_SHARES = {
    3: (30.4, 2.8, 66.7),
    4: (53.8, 5.7, 40.5),
    5: (60.6, 6.9, 32.6),
    6: (63.0, 6.9, 30.1),
    7: (56.6, 6.7, 36.7),
    8: (7.7, 0.6, 91.7),
}


def names(policy, scores, dimensions=DIMENSIONS):
    return [policy.subsets[index] for index in policy.decide(np.array(scores, float), dimensions)]


def test_the_paper_s_rule_is_strict_on_both_sides():
    #          S  R: warm only, cold only, both high, both low, tie in S, tie in R, tie in both
    scores = [(8, 2), (2, 8), (8, 8), (2, 2), (5, 2), (8, 5), (5, 5)]
    assert names(PaperPolicy(), scores) == ["sensibility", "discarded", *["rationality"] * 5]
    assert names(ReleasedScriptPolicy(), scores) == ["sensibility", "rationality", *["discarded"] * 5]
    # Ties: the last three. Low on both: (2, 2) alone, for a tie is not below T.
    assert PaperPolicy().tally(np.array(scores, float), DIMENSIONS) == {"ties_at_threshold": 3, "low_on_both": 1}


def test_the_order_of_the_columns_does_not_matter():
    assert names(PaperPolicy(), [(2, 8)], ("rationality", "sensibility")) == ["sensibility"]


@pytest.mark.parametrize("threshold", sorted(PUBLISHED_SHARES))
def test_the_published_table_comes_out_of_the_published_scores(shared_data, threshold):
    with gzip.open(shared_data / "ed_paper_scores.valid.jsonl.gz") as file:
        rows = [orjson.loads(line) for line in file]
    counts = {"sensibility": 0, "discarded": 0, "rationality": 0}
    for row in rows:
        if row["rationality"] < threshold and row["sensibility"] > threshold:
            counts["sensibility"] += 1
        elif row["rationality"] > threshold and row["sensibility"] < threshold:
            counts["discarded"] += 1
        else:
            counts["rationality"] += 1
    policy = PaperPolicy(threshold)
    decision = policy.decide(np.array([[row[name] for name in DIMENSIONS] for row in rows], float), DIMENSIONS)
    found = {name: int((decision == index).sum()) for index, name in enumerate(policy.subsets)}
    assert found == counts
    assert sum(found.values()) == len(rows) == 5712
    # 22 rows of the published 5,734 are not in the file, so shares, not counts, are compared.
    shares = [100 * found[name] / len(rows) for name in ("sensibility", "discarded", "rationality")]
    assert shares == pytest.approx(PUBLISHED_SHARES[threshold], abs=0.5)


def test_the_first_expression_that_matches_wins_and_the_rest_is_discarded():
    policy = ExpressionPolicy({"calm": "sensibility > 6", "clear": "rationality > 6"})
    assert policy.subsets == ("calm", "clear", "discarded")
    assert names(policy, [(7, 7), (1, 7), (7, 1), (1, 1)]) == ["calm", "clear", "calm", "discarded"]
    assert policy.tally(np.array([(7.0, 7.0), (1.0, 7.0)]), DIMENSIONS) == {"matched_by_several": 1}


def test_discarded_may_be_named_to_discard_first():
    policy = ExpressionPolicy({"discarded": "rationality < 2", "good": "sensibility > 6"})
    assert policy.subsets == ("discarded", "good")
    assert names(policy, [(7, 1), (7, 5), (1, 5)]) == ["discarded", "good", "discarded"]


@pytest.mark.parametrize("name", ["rejected", "Rejected", "", ".units", "../up", "a/b", "a b", "-x", "x" * 65, "ü"])
def test_a_subset_s_name_must_be_a_safe_folder_name(name):
    with pytest.raises(EmpathyError, match="cannot name a subset"):
        ExpressionPolicy({name: "sensibility > 6"})


def test_names_that_differ_only_in_capital_letters_are_refused():
    with pytest.raises(EmpathyError, match="capital letters"):
        ExpressionPolicy({"calm": "sensibility > 6", "Calm": "sensibility > 5"})


def test_another_rubric_s_scorer_is_told_what_to_do():
    with pytest.raises(EmpathyError, match=r"has: active-listening, warmth.*--keep 'kept=active_listening>6'"):
        PaperPolicy().check(("active-listening", "warmth"))
    ExpressionPolicy({"kept": "warmth > 6"}).check(("active-listening", "warmth"))
    with pytest.raises(EmpathyError, match="no dimension 'sensibility'"):
        ExpressionPolicy({"kept": "sensibility > 6"}).check(("active-listening", "warmth"))


@pytest.mark.parametrize("threshold", [0, 10, 50, -1])
def test_a_threshold_outside_the_scale_is_refused(threshold):
    scales = {"sensibility": (0.0, 10.0), "rationality": (0.0, 10.0)}
    PaperPolicy(5).check(DIMENSIONS, scales)
    with pytest.raises(EmpathyError, match="not inside the scale of sensibility, 0 to 10"):
        PaperPolicy(threshold).check(DIMENSIONS, scales)


def test_the_command_line_s_words_make_the_policy():
    assert make_policy() == PaperPolicy(5.0)
    assert make_policy("released-script", 4.0) == ReleasedScriptPolicy(4.0)
    made = make_policy(keep=["calm=sensibility>=6", " low =rationality == 1"])
    assert made.expressions == {"calm": "sensibility>=6", "low": "rationality == 1"}
    for wrong, match in [
        ({"name": "papers"}, "there are: paper, released-script"),
        ({"keep": ["a=x>1"], "threshold": 5.0}, "one or the other"),
        ({"keep": ["sensibility>6"]}, "has no name"),
        ({"keep": ["sensibility>=6"]}, "cannot name a subset"),
        ({"keep": ["a=x>1", "a=x>2"]}, "twice"),
        ({"threshold": float("nan")}, "finite"),
    ]:
        with pytest.raises(EmpathyError, match=match):
            make_policy(**wrong)


def test_the_manifest_s_words_name_every_rule():
    assert PaperPolicy().describe()["rules"] == {
        "sensibility": "rationality < 5 and sensibility > 5",
        "discarded": "rationality > 5 and sensibility < 5",
        "rationality": "all other examples",
    }
    assert ReleasedScriptPolicy(4.5).describe()["rules"]["rationality"] == "rationality > 4.5 and sensibility < 4.5"
    assert ExpressionPolicy({"b": "x > 1", "a": "x > 0"}).describe()["rules"] == [
        {"subset": "b", "expression": "x > 1"},
        {"subset": "a", "expression": "x > 0"},
    ]
