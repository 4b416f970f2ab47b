"""The loss of responses, against the model's own logits."""

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")

from efficient_empathy.experts.loss import IGNORED, response_nll  # noqa: E402


def batch(lengths, starts, seed=0):
    """Random tokens, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, 30, (len(lengths), max(lengths)), generator=generator)
    places = torch.arange(max(lengths))
    mask = (places < torch.tensor(lengths)[:, None]).long()
    supervised = (places >= torch.tensor(starts)[:, None]) & mask.bool()
    return ids, mask, torch.where(supervised, ids, IGNORED)


def by_hand(model, ids, mask, labels):
    """Each token's log-probability from the whole logits, row by row without padding."""
    sums, counts = [], []
    for row in range(len(ids)):
        length = int(mask[row].sum())
        log_probabilities = model(input_ids=ids[row : row + 1, :length]).logits[0].float().log_softmax(-1)
        places = [t for t in range(1, length) if labels[row, t] != IGNORED]
        sums.append(-sum(float(log_probabilities[t - 1, ids[row, t]]) for t in places))
        counts.append(len(places))
    return sums, counts


@torch.no_grad()
def test_it_is_the_sum_over_supervised_tokens(make_tiny_lm):
    model, (ids, mask, labels) = make_tiny_lm(), batch([9, 5, 7], [4, 2, 6])
    nll, tokens = response_nll(model, ids, mask, labels)
    sums, counts = by_hand(model, ids, mask, labels)
    assert tokens.tolist() == counts == [5, 3, 1]
    assert nll.tolist() == pytest.approx(sums, abs=1e-4)


@torch.no_grad()
def test_logits_that_are_more_than_the_head_are_taken_from_the_model(make_tiny_lm):
    plain, capped = make_tiny_lm(), make_tiny_lm()
    forward = capped.forward

    def scaled(**inputs):
        output = forward(**inputs)
        output.logits = output.logits * 0.5
        return output

    capped.forward = scaled
    rows = batch([9, 5], [4, 2])
    nll, _ = response_nll(capped, *rows)
    sums, _ = by_hand(capped, *rows)
    assert nll.tolist() == pytest.approx(sums, abs=1e-4)
    assert nll.tolist() != pytest.approx(response_nll(plain, *rows)[0].tolist(), abs=1e-2)


@torch.no_grad()
def test_a_model_with_adapters_whose_decoder_is_no_part_of_its_own():
    from peft import LoraConfig, get_peft_model
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    size = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    config = Gemma3TextConfig(**size, num_attention_heads=2, num_key_value_heads=1, sliding_window=8, pad_token_id=1)
    model = get_peft_model(Gemma3ForCausalLM(config), LoraConfig(r=2, target_modules="all-linear")).eval()
    rows = batch([9, 5], [4, 2])
    assert response_nll(model, *rows)[0].tolist() == pytest.approx(by_hand(model, *rows)[0], abs=1e-4)


def test_trying_a_model_leaves_its_modes_alone(make_tiny_lm):
    model = make_tiny_lm(attention_dropout=0.1)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    response_nll(model, *batch([6], [3]))
    assert [module.training for module in model.modules()] == modes


def test_autocast_keeps_no_casts_of_the_trials(make_tiny_lm):
    """Torch before 2.10 hands casts without gradients that it kept to the passes after them."""
    model, seen = make_tiny_lm(), []
    model.get_decoder().register_forward_pre_hook(
        lambda *_: seen.append((torch.is_grad_enabled(), torch.is_autocast_cache_enabled()))
    )
    ids, mask, labels = batch([20, 15], [14, 13])
    ids[1, :11] = ids[0, :11]
    with torch.autocast("cpu", torch.bfloat16):
        nll, _ = response_nll(model, ids, mask, labels, share=True)
        assert torch.is_autocast_cache_enabled()
    assert nll.requires_grad
    # The head is tried by two passes, sharing by three; then the prefix is read, and the rest.
    assert seen == [(False, False)] * 5 + [(True, True)] * 2


def test_a_batch_without_supervised_tokens_is_zero(make_tiny_lm):
    ids, mask, labels = batch([6], [6])
    nll, tokens = response_nll(make_tiny_lm(), ids, mask, labels)
    assert nll.tolist() == [0.0]
    assert tokens.tolist() == [0]
