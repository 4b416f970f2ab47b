"""The short ways of a decoding step give what torch and transformers give, and stay out of everything else."""

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")

from types import SimpleNamespace  # noqa: E402

from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402

from efficient_empathy.experts import few_rows  # noqa: E402
from efficient_empathy.experts.few_rows import FewRows  # noqa: E402
from efficient_empathy.experts.grouped_attention import grouped, grouped_attention  # noqa: E402


@pytest.fixture
def turned(monkeypatch):
    """The products that were turned, by their rows."""
    found = []
    gains = few_rows._gains

    def noted(input_, weight):
        if gains(input_, weight):
            found.append(input_.numel() // input_.shape[-1])
            return True
        return False

    monkeypatch.setattr(few_rows, "_gains", noted)
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "is_turned"), [((7, 1), False), ((8, 1), True), ((3, 16), True), ((49, 1), False)])
def test_few_rows_give_the_same_sums(turned, shape, is_turned, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 64, bias=bias)
    given = torch.randn(*shape, 96)
    plain = layer(given)
    with FewRows():
        found = layer(given)
    assert found.shape == plain.shape
    assert found.is_contiguous()
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    assert bool(turned) is is_turned


def test_few_rows_by_hand():
    weight = torch.zeros(64, 64)
    weight[0, 1], weight[2, 0] = 2.0, 3.0
    given = torch.arange(8.0)[:, None] * torch.eye(64)[0] + torch.eye(64)[1]
    bias = torch.full((64,), 0.5)
    with FewRows():
        found = torch.nn.functional.linear(given, weight, bias)
    assert found[:, 0].tolist() == [2.5] * 8
    assert found[:, 2].tolist() == [3.0 * n + 0.5 for n in range(8)]
    assert (found[:, 3:] == 0.5).all()


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x.bfloat16()])
def test_other_types_and_narrow_layers_are_left_alone(turned, change):
    wide, narrow = torch.nn.Linear(96, 64), torch.nn.Linear(96, 8)
    with FewRows():
        narrow(torch.randn(16, 96))
        change(wide)(change(torch.randn(16, 96)))
    assert turned == []


def test_few_rows_keep_the_gradients():
    torch.manual_seed(0)
    layer, given = torch.nn.Linear(96, 64), torch.randn(16, 96)
    layer(given).square().sum().backward()
    plain = layer.weight.grad.clone()
    layer.zero_grad()
    with FewRows():
        layer(given).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("new", [1, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_grouped_attention_is_sdpa(groups, new, masked):
    torch.manual_seed(0)
    rows, kinds, past, size = 4, 3, 11, 16
    query = torch.randn(rows, kinds * groups, new, size)
    key, value = (torch.randn(rows, kinds, past, size) for _ in range(2))
    mask = torch.ones(rows, 1, new, past, dtype=torch.bool)
    mask[1, ..., :5] = mask[3, ..., :9] = False
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    values = {"attention_mask": mask if masked else None, "scaling": 0.3}
    expected, _ = sdpa_attention_forward(module, query, key, value, **values)
    found, weights = grouped_attention(module, query, key, value, **values)
    assert weights is None
    assert found.shape == (rows, new, kinds * groups, size)
    torch.testing.assert_close(found, expected)


def test_a_configuration_is_left_as_it_was():
    config = SimpleNamespace(_attn_implementation="sdpa")
    with pytest.raises(RuntimeError), grouped(config):
        assert config._attn_implementation == "grouped_sdpa"
        raise RuntimeError
    assert config._attn_implementation == "sdpa"
    config._attn_implementation = "eager"
    with grouped(config):
        assert config._attn_implementation == "eager"
    with grouped(None):
        pass
