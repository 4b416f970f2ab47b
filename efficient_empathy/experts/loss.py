"""The loss of responses: the vocabulary head runs only where something is supervised."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from efficient_empathy.experts.prompt_states import read_prompts, told
from efficient_empathy.experts.shared_prefix import can_share, common_prefix, read_shared
from efficient_empathy.experts.trials import trial

IGNORED = -100
"""Label of a token that is not supervised."""
_TOLERANCE = 1e-3
_PROBE_TOKENS = 16

_is_plain: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def response_nll(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, share: bool = False
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of what is supervised, in nats.

    In a dialogue most tokens are context, and the head over a large vocabulary is a good part of a small model. It is run on
    supervised positions alone where the model's logits are just its head on its last hidden states; that is tried once a model, and
    models that do more (scaled or capped logits) go through their own forward.

    Args:
        model: a causal language model of transformers, with PEFT adapters or without.
        input_ids: (batch, time), padded on the right.
        attention_mask: (batch, time), 1 where there is a token.
        labels: (batch, time), the token itself where it is supervised, else -100.
        share: read what all rows begin with once, where that gives the same states: for whoever does not watch each position of
            each row. In training, dropout of that part is then drawn once a batch.

    Returns:
        Sums over each row's supervised tokens, float32 (batch,), and how many these are, int64 (batch,).
    """
    targets_BT = labels[:, 1:]
    chosen_BT = targets_BT != IGNORED
    counts_B = chosen_BT.sum(1)
    if not bool(chosen_BT.any()):
        return torch.zeros(len(labels), device=labels.device), counts_B
    states = read_prompts(model, *_prompts(input_ids, attention_mask, labels))
    with told(model, None if states is None else states[:1]):
        plain = _has_plain_head(model, input_ids[:1, :_PROBE_TOKENS], attention_mask[:1, :_PROBE_TOKENS])
    with told(model, states):
        if plain:
            decoder, head = _parts(model)
            prefix = common_prefix(input_ids, attention_mask, labels != IGNORED) if share and states is None else 0
            if prefix and can_share(decoder, input_ids, attention_mask, prefix):
                hidden_BTH = read_shared(decoder, input_ids, attention_mask, prefix)
            else:
                prefix = 0
                hidden_BTH = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
            logits_NV = head(hidden_BTH[:, :-1][chosen_BT[:, prefix:]])
        else:
            output = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            logits_NV = output.logits[:, :-1][chosen_BT]
    nll_N = nn.functional.cross_entropy(logits_NV.float(), targets_BT[chosen_BT], reduction="none")
    rows_N = chosen_BT.nonzero()[:, 0]
    return torch.zeros(len(labels), device=nll_N.device).index_add(0, rows_N, nll_N), counts_B


def _prompts(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The columns up to the last prompt's end, and where in them there is a prompt: all before what is supervised."""
    answered_BT = (labels != IGNORED).cumsum(1) > 0
    mask_BT = attention_mask * ~answered_BT
    width = int(mask_BT.any(0).sum())
    return input_ids[:, :width], mask_BT[:, :width]


def _parts(model: Any) -> tuple[nn.Module, nn.Module]:
    """The decoder without its head, and the head; adapters live inside the decoder."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return decoder_of(causal), causal.get_output_embeddings()


def decoder_of(model: Any) -> nn.Module:
    """The part of a causal language model whose output is hidden states; a few (Gemma 3) are their own base model."""
    return model.get_decoder() if model.base_model is model else model.base_model


def _has_plain_head(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> bool:
    """Whether head(decoder(x)) are the model's logits, by trying some tokens."""
    if model not in _is_plain:
        decoder, head = _parts(model)
        # Some models may have no part that is the decoder alone.
        if head is None or any(part is head for part in decoder.modules()):
            _is_plain[model] = False
        else:
            with trial(model):
                inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
                ours, theirs = head(decoder(**inputs)[0]), model(**inputs).logits
            _is_plain[model] = ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=_TOLERANCE)
    return _is_plain[model]
