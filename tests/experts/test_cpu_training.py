"""Training on a CPU: attention over short texts is sdpa with its gradients, and weights cast once are what autocast makes."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")
pytest.importorskip("transformers", reason="transformers is part of the experts extra")

from efficient_empathy.experts import cpu_training  # noqa: E402
from efficient_empathy.experts.cpu_training import faster_on_cpu, short_attention  # noqa: E402
from efficient_empathy.experts.dropout import draw_bytes  # noqa: E402


def _causal(new, past, padded):
    """(2, 1, new, past and new), True where seen; the second row's last columns are padding."""
    mask = torch.ones(2, 1, new, past + new, dtype=torch.bool).tril(past)
    if padded:
        mask[1, :, :, -padded:] = False
    return mask


_MASKED = [(7, 0, 0), (7, 0, 3), (4, 5, 2), (1, 6, 0), (200, 0, 9)]
_UNMASKED = [(7, 0, 0), (200, 0, 0)]  # without a mask a text is whole


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    ("kind", "new", "past", "padded"),
    [(kind, *one) for kind in ("bool", "added") for one in _MASKED] + [("none", *one) for one in _UNMASKED],
)
def test_short_attention_is_sdpa_with_its_gradients(groups, kind, new, past, padded):
    torch.manual_seed(0)
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    query = torch.randn(2, 2 * groups, new, 8, requires_grad=True)
    key, value = (torch.randn(2, 2, past + new, 8, requires_grad=True) for _ in range(2))
    mask = None if kind == "none" else _causal(new, past, padded)
    if kind == "added":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    found, weights = short_attention(module, query, key, value, mask, scaling=0.3)
    assert weights is None
    repeated = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, *repeated, mask, scale=0.3, is_causal=mask is None
    ).transpose(1, 2)
    assert found.shape == (2, new, 2 * groups, 8)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    pull = torch.randn_like(found)
    ours = torch.autograd.grad((found * pull).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected * pull).sum(), (query, key, value))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_values_narrower_than_keys(masked):
    """As multi-head latent attention has them (DeepSeek)."""
    torch.manual_seed(0)
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    query, key = (torch.randn(2, 4, 7, 8) for _ in range(2))
    value, mask = torch.randn(2, 4, 7, 5), _causal(7, 0, 3) if masked else None
    found, _ = short_attention(module, query, key, value, mask)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=not masked)
    assert found.shape == (2, 7, 4, 5)
    assert found.is_contiguous()  # as models expect it of sdpa
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_a_query_that_sees_nothing_spoils_nothing():
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    query, key, value = torch.randn(3, 2, 1, 4, 8)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    mask[0, :, :, :2] = False  # padded on the left: the first two queries have nothing to look at
    found, _ = short_attention(module, query, key, value, mask)
    assert bool(found.isfinite().all())


def test_long_texts_go_the_usual_way(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu_training, "sdpa_attention_forward", lambda *_, **__: calls.append(1) or (None, None))
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    for length in (cpu_training._SHORT, cpu_training._SHORT + 1):
        tensor = torch.zeros(1, 1, length, 8)
        short_attention(module, tensor, tensor, tensor, None)
    assert len(calls) == 1


def _adapted(make_tiny_lm, **changes):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules="all-linear", **changes)
    model = get_peft_model(make_tiny_lm(tie_word_embeddings=True), config)
    draw_bytes(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def _loss_and_gradients(model, half=False):
    ids = torch.arange(8, 24).view(2, 8)
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_weights_cast_once_are_those_that_autocast_makes(make_tiny_lm):
    model = _adapted(make_tiny_lm)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    expected = _loss_and_gradients(model, half=True)
    with cpu_training._cast_once(model):
        kinds = {name: p.dtype for name, p in model.named_parameters()}
        found = _loss_and_gradients(model, half=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    half = {name for name, kind in kinds.items() if kind == torch.bfloat16}
    assert half == {
        name for name in kinds if "base_layer" in name
    }  # neither adapters nor norms, nor the embedding (the head)
    assert len(half) == 14
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_training_on_a_cpu_has_the_gradients_that_it_would_have_anyway(make_tiny_lm, dropout):
    model = _adapted(make_tiny_lm, lora_dropout=dropout)
    expected = _loss_and_gradients(model)
    with faster_on_cpu(model, half=False):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert model.config._attn_implementation == "short_sdpa"
        found = _loss_and_gradients(model)
    assert model.config._attn_implementation == "sdpa"
    assert len(found) == 1 + 2 * 14
    for one, other in zip(found, expected, strict=True):
        assert float(other.abs().max()) > 1e-4
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_an_adapter_that_no_token_reaches_has_no_gradients(make_tiny_lm):
    """As experts of a sparse layer have it, of which each token sees some only."""
    model = _adapted(make_tiny_lm, lora_dropout=0.3)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    x = torch.zeros(0, 16, requires_grad=True)
    with faster_on_cpu(model, half=False):
        found = layer(x)
        found.sum().backward()
    assert found.shape == (0, 32)
    assert x.grad.shape == (0, 16)
    assert not any(bool(layer.get_parameter(f"lora_{side}.default.weight").grad.any()) for side in "AB")


def test_in_bf16_gradients_differ_by_rounding_alone(make_tiny_lm):
    model = _adapted(make_tiny_lm, lora_dropout=0.3)
    exact = _loss_and_gradients(model)
    plain = _loss_and_gradients(model, half=True)
    with faster_on_cpu(model, half=True):
        found = _loss_and_gradients(model, half=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}

    def away(gradients):
        flat, true = (torch.cat([one.flatten() for one in some]) for some in (gradients, exact))
        return float((flat - true).norm() / true.norm())

    assert 0 < away(found) < 1.5 * away(plain) < 0.1


def test_what_is_not_one_plain_adapter_is_left_to_peft(make_tiny_lm):
    from peft import LoraConfig

    def changed(model):
        with faster_on_cpu(model, half=True):
            return sum("forward" in vars(layer) for layer in model.modules())

    assert changed(_adapted(make_tiny_lm)) == 14
    two = _adapted(make_tiny_lm)
    two.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"))
    two.base_model.set_adapter(["default", "second"])
    dora = _adapted(make_tiny_lm, use_dora=True)
    merged = _adapted(make_tiny_lm)
    merged.merge_adapter()
    assert [changed(model) for model in (two, dora, merged)] == [0, 0, 0]


def test_dora_computes_its_lengths_from_full_weights(make_tiny_lm):
    model = _adapted(make_tiny_lm, use_dora=True)
    with faster_on_cpu(model, half=True):
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_what_it_changed_is_put_back_after_an_error(make_tiny_lm):
    model = _adapted(make_tiny_lm)
    with pytest.raises(KeyboardInterrupt), faster_on_cpu(model, half=True):
        raise KeyboardInterrupt
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(layer) for layer in model.modules())
