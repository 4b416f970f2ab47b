"""What all rows begin with is read once: the same sums and gradients, and only where it fits."""

import inspect

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")
pytest.importorskip("transformers", reason="transformers is part of the experts extra")

from tiny_hybrids import HYBRIDS, make_hybrid  # noqa: E402

from efficient_empathy.experts.loss import IGNORED, response_nll  # noqa: E402
from efficient_empathy.experts.shared_prefix import common_prefix  # noqa: E402


def batch(lengths, starts, shared, seed=0):
    """Random tokens, padded on the right, whose first ``shared`` tokens are those of the first row; row i's next is 8 + i."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, 30, (len(lengths), max(lengths)), generator=generator)
    ids[:, :shared] = ids[:1, :shared]
    ids[:, shared] = torch.arange(len(lengths)) + 8
    places = torch.arange(max(lengths))
    mask = (places < torch.tensor(lengths)[:, None]).long()
    supervised = (places >= torch.tensor(starts)[:, None]) & mask.bool()
    return ids, mask, torch.where(supervised, ids, IGNORED)


class Columns:
    """How wide the inputs of each pass through a decoder were, and how many rows they had."""

    def __init__(self, model):
        self.seen = []
        model.get_decoder().register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _, __, inputs):
        self.seen.append(tuple(inputs["input_ids"].shape))


def test_sums_and_gradients_are_the_same_and_less_is_read(make_tiny_lm):
    model, rows = make_tiny_lm(), batch([20, 15, 18], [14, 13, 16], shared=11)
    nll, tokens = response_nll(model, *rows)
    nll.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    response_nll(model, *rows, share=True)  # the first time it is tried whether that is the same
    columns = Columns(model)
    model.zero_grad()
    shared, counts = response_nll(model, *rows, share=True)
    shared.sum().backward()
    assert columns.seen == [(1, 11), (3, 9)]
    assert counts.tolist() == tokens.tolist() == [6, 2, 2]
    torch.testing.assert_close(shared, nll, atol=1e-5, rtol=1e-5)
    for parameter, before in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("lengths", "starts", "shared", "prefix"),
    [
        ([20, 15], [14, 13], 11, 11),
        ([20, 15], [14, 13], 7, 0),  # too short to pay
        ([20], [14], 11, 0),  # nobody to share with
        ([20, 15], [10, 13], 11, 9),  # the state before the first supervised token belongs to its row
        ([20, 10], [14, 9], 12, 8),  # what is padding in one row is not shared
    ],
)
def test_what_is_shared(lengths, starts, shared, prefix):
    ids, mask, labels = batch(lengths, starts, shared)
    assert common_prefix(ids, mask, labels != IGNORED) == prefix


def test_rows_that_are_one_are_told_apart_by_nothing(make_tiny_lm):
    ids, mask, labels = (part.expand(2, -1) for part in batch([16], [12], shared=0))
    model = make_tiny_lm()
    expected, _ = response_nll(model, ids, mask, labels)
    found, _ = response_nll(model, ids, mask, labels, share=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_model_that_sees_a_window_only_reads_all(make_tiny_lm):
    from transformers import MistralConfig, MistralForCausalLM

    plain = make_tiny_lm().config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = MistralConfig(**{name: getattr(plain, name) for name in names}, num_key_value_heads=1, sliding_window=6)
    model, rows = MistralForCausalLM(config).eval(), batch([20, 15], [14, 13], shared=11)
    response_nll(model, *rows, share=True)
    columns = Columns(model)
    response_nll(model, *rows, share=True)
    assert columns.seen == [(2, 20)]


@torch.no_grad()
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_model_that_keeps_other_states_too_reads_all(name):
    model, rows = make_hybrid(name), batch([20, 15], [14, 13], shared=11)
    expected, _ = response_nll(model, *rows)
    found, _ = response_nll(model, *rows, share=True)
    assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_model_whose_positions_depend_on_the_length_reads_all(make_tiny_lm, kind):
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    if kind == "longrope":
        scaling = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = make_tiny_lm(rope_scaling=scaling)  # beyond 128 tokens all keys are turned by other angles
    response_nll(model, *batch([20, 15], [14, 13], shared=11), share=True)  # a model is tried once, on whatever comes
    rows = batch([140, 138], [130, 130], shared=11)
    expected, _ = response_nll(model, *rows)
    found, _ = response_nll(model, *rows, share=True)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_a_model_whose_states_would_be_others_reads_all(make_tiny_lm):
    model, rows = make_tiny_lm(), batch([20, 15], [14, 13], shared=11)
    decoder = model.get_decoder()
    forward = decoder.forward

    def forgetful(**inputs):
        past = inputs.get("past_key_values")
        if past is not None and past.get_seq_length():
            past.layers[0].keys = torch.zeros_like(past.layers[0].keys)
        return forward(**inputs)

    forgetful.__signature__ = inspect.signature(forward)
    decoder.forward = forgetful
    expected, _ = response_nll(model, *rows)
    found, _ = response_nll(model, *rows, share=True)
    assert torch.equal(found, expected)


def test_checkpointed_layers_keep_no_states(make_tiny_lm):
    model, rows = make_tiny_lm(), batch([20, 15], [14, 13], shared=11)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    columns = Columns(model)
    nll, _ = response_nll(model, *rows, share=True)
    nll.sum().backward()
    assert (1, 11) not in columns.seen
