"""What is said of a router, worked by hand."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")

from efficient_empathy.moe.options import RouterOptions  # noqa: E402
from efficient_empathy.moe.router import Router  # noqa: E402
from efficient_empathy.moe.seeing import Routings, auc, report, verdict  # noqa: E402


def test_auc_by_hand():
    # Of 3 × 2 pairs: 3 beats both, 2 beats 1 and ties with 2 (½), 1 ties with 1 (½): 2 + 1.5 + 0.5 = 4 of 6.
    assert auc([3, 2, 1], [2, 1]) == pytest.approx(4 / 6)
    assert auc([2, 3], [0, 1]) == 1.0
    assert auc([0], [1, 2]) == 0.0
    assert auc([1, 1], [1, 1, 1]) == 0.5


def routings(first_gate: list[list[float]], tokens: list[int]) -> Routings:
    gates = np.array(first_gate)
    return Routings(
        np.stack([gates, 1 - gates], -1), np.full(gates.shape, 0.2), np.array(tokens), np.zeros(len(tokens))
    )


def test_report_by_hand():
    names = {"model.layers.0.mlp.up_proj": 4, "model.layers.11.mlp.up_proj": 4}
    router = Router(names, ["a", "b"], RouterOptions())
    # Rows of 1 and 3 tokens, then one of 4: weights 1/8, 3/8, 4/8.
    own, other = routings([[1.0, 0.8], [0.6, 0.4]], [1, 3]), routings([[0.2, 0.4]], [4])
    found = report(router, [own, other])
    # Layer 0: 1/8 + 0.6 · 3/8 + 0.2 · 4/8 = 0.45; layer 11: 0.1 + 0.15 + 0.2 = 0.45.
    assert found.layers == {"0": {"a": 0.45, "b": 0.55}, "11": {"a": 0.45, "b": 0.55}}
    assert found.mean_gate == {"a": 0.45, "b": 0.55}
    assert found.sites["model.layers.11.mlp.up_proj"] == [0.45, 0.55]
    assert found.entropy == pytest.approx(0.2)
    assert found.entropy_share == pytest.approx(0.2 / math.log(2))
    assert found.entropy_of_mean == pytest.approx(-0.45 * math.log(0.45) - 0.55 * math.log(0.55))
    assert found.auc == 1.0  # row means 0.9 and 0.5 against 0.3
    assert found.gap == pytest.approx(0.7 - 0.3)  # the same for b: 0.7 against 0.3
    assert found.rows == 3
    assert found.verdict.startswith("the router separates the subsets")
    assert report(router, [own]).auc is None


def test_a_router_that_learnt_nothing_is_said_so():
    assert "the router did not separate the subsets" in verdict(0.69, 0.2)
    assert verdict(0.70, 0.2) == "the router separates the subsets: AUC 0.70 on held-out rows"
    assert "but an expert's gate is only 0.001 higher" in verdict(0.95, 0.001)
    assert "was not measured" in verdict(None, None)
