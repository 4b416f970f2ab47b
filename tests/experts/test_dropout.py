"""Dropout from bytes: the share, the mean, and the same mask from the same seed."""

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")

from efficient_empathy.experts.dropout import ByteDropout  # noqa: E402


def test_about_the_share_is_dropped_and_the_mean_stays():
    torch.manual_seed(0)
    dropout = ByteDropout(0.25)  # 64 of 256: exact
    values = dropout(torch.ones(400, 501))  # not a multiple of 8
    assert float((values == 0).float().mean()) == pytest.approx(0.25, abs=0.005)  # 200,400 draws: ± 0.001
    assert sorted(values.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    rounded = ByteDropout(0.1)
    assert rounded.dropped == 26
    assert float(rounded(torch.ones(1000, 1000)).mean()) == pytest.approx(1.0, abs=0.002)


def test_the_seed_decides_and_eval_mode_does_nothing():
    dropout, x = ByteDropout(0.5), torch.randn(20, 30)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout(x))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert dropout.eval()(x) is x


def test_the_gradient_goes_through_what_is_kept():
    torch.manual_seed(0)
    x = torch.randn(50, 60, requires_grad=True)
    y = ByteDropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 2.0))
