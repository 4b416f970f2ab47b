"""What gates are asked for, worked by hand."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")

from efficient_empathy.errors import EmpathyError  # noqa: E402
from efficient_empathy.moe.options import BalanceOptions  # noqa: E402
from efficient_empathy.moe.regularisers import (  # noqa: E402
    at_positions,
    entropy,
    kl_prior,
    load_balancing,
    mutual_information,
)
from efficient_empathy.moe.routed import Routing  # noqa: E402

LOG2 = math.log(2)


def test_entropy():
    found = entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]))
    # −(¼ ln ¼ + ¾ ln ¾) = 0.346574 + 0.215762.
    assert found.tolist() == pytest.approx([LOG2, 0.0, 0.562335], abs=1e-6)


def test_mutual_information_is_lowest_where_tokens_are_decided_and_both_experts_used():
    decided = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # entropy of a token 0, of the mean ln 2
    alike = torch.tensor([[[0.25, 0.75], [0.25, 0.75]]])  # both the same: 0
    one_sided = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert float(mutual_information(decided)) == pytest.approx(-LOG2, abs=1e-6)
    assert float(mutual_information(alike)) == pytest.approx(0.0, abs=1e-6)
    assert float(mutual_information(one_sided)) == pytest.approx(0.0, abs=1e-6)
    # Two gates of the router: the mean of both.
    assert float(mutual_information(torch.cat([decided, alike]))) == pytest.approx(-LOG2 / 2, abs=1e-6)


def test_kl_to_a_prior():
    gates = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])  # mean ¾, ¼
    assert float(kl_prior(gates, torch.tensor([0.75, 0.25]))) == pytest.approx(0.0, abs=1e-6)
    # ¾ ln (¾ / ½) + ¼ ln (¼ / ½) = 0.304099 − 0.173287.
    assert float(kl_prior(gates, torch.tensor([0.5, 0.5]))) == pytest.approx(0.130812, abs=1e-6)


def test_load_balancing_of_two_of_three():
    gates = torch.tensor([[[0.6, 0.4, 0.0], [0.7, 0.0, 0.3]]])
    shares = torch.tensor([[[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]]])
    # Of four choices 2, 1, 1: f = ½, ¼, ¼. P = 0.55, 0.2, 0.25. 3 · (0.275 + 0.05 + 0.0625).
    assert float(load_balancing(Routing(gates, shares))) == pytest.approx(1.1625, abs=1e-6)


def test_load_balancing_is_a_constant_where_all_experts_are_chosen():
    logits = torch.randn(1, 5, 2, requires_grad=True)
    shares = logits.softmax(-1)
    loss = load_balancing(Routing(shares, shares))
    loss.backward()
    assert loss.item() == pytest.approx(1.0, abs=1e-6)
    assert float(logits.grad.abs().max()) < 1e-6
    with pytest.raises(
        EmpathyError, match="with 2 of 2 experts at every token the Switch load-balancing loss is a constant"
    ):
        BalanceOptions("load-balancing").check(2, None)
    BalanceOptions("load-balancing").check(3, 2)


def test_prompt_and_padding_do_not_count():
    gates = torch.arange(12.0).reshape(2, 3, 2)
    chosen = torch.tensor([[False, True], [False, False]])  # the last position predicts nothing
    found = at_positions([Routing(gates, gates)] * 2, chosen)
    assert found.gates.tolist() == [[[2.0, 3.0]]] * 2
    whole = torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    assert at_positions([Routing(whole, whole)], chosen).gates[0].tolist() == [pytest.approx([0.3, 0.7])]


def test_a_prior_must_fit():
    with pytest.raises(EmpathyError, match="the prior has 2 shares for 3 experts"):
        BalanceOptions("kl-prior", prior=(59.0, 33.0)).check(3, None)
    with pytest.raises(EmpathyError, match="each share of the prior must be over 0"):
        BalanceOptions("kl-prior", prior=(1.0, 0.0))
    with pytest.raises(EmpathyError, match="is for the regulariser kl-prior"):
        BalanceOptions(prior=(1.0, 1.0))
    with pytest.raises(EmpathyError, match=r"a weight \(0.1\) is for a regulariser"):
        BalanceOptions(weight=0.1)
