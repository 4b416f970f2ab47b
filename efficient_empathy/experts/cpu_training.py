"""Training on a CPU: frozen weights that are cast to bf16 once, and attention over short texts with a short way back."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from efficient_empathy.experts.adapter_linear import adapters_as_one
from efficient_empathy.experts.attention import attending, register

_NAME = "short_sdpa"
_SHORT = 160
"""Tokens up to which all weights of the attention are held: dialogues are shorter, and memory grows with the square."""


def short_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **values: Any
) -> tuple[Tensor, None]:
    """``sdpa`` of transformers; over short texts as two plain products, whose gradients a CPU computes several times faster.

    Heads that share keys and values stand below each other as the queries of one head, so that nothing is repeated for them.

    Args:
        module: the attention layer; ``num_key_value_groups`` heads share keys and values.
        query: (rows, heads, new, size).
        key: (rows, heads / groups, past and new, size).
        value: (rows, heads / groups, past and new, width); the width may be another size than that of the keys (MLA).
        attention_mask: True where a token is seen, or added to the scores; (rows, 1, new, past and new). None is causal.
        values: what else transformers hands over.

    Returns:
        (rows, new, heads, width), and None for the weights.
    """
    rows, heads, new, size = query.shape
    groups = getattr(module, "num_key_value_groups", 1)
    shared = attention_mask is None or attention_mask.shape[1] == 1
    if max(new, key.shape[2]) > _SHORT or not shared or values.get("dropout") or (attention_mask is None and new == 1):
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **values)
        return found
    scale = values.get("scaling") or size**-0.5
    stacked = query.reshape(rows, heads // groups, groups * new, size)
    scores = (stacked @ key.transpose(2, 3)).view(rows, heads // groups, groups, new, key.shape[2]).float() * scale
    if attention_mask is None:
        attention_mask = torch.ones(new, key.shape[2], dtype=torch.bool).tril(key.shape[2] - new)[None, None]
    mask = attention_mask[:, :, None, :, : key.shape[2]]
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1).to(value.dtype).view(rows, heads // groups, groups * new, key.shape[2])
    return (weights @ value).view(rows, heads, new, value.shape[-1]).transpose(1, 2).contiguous(), None


register(_NAME, short_attention)


@contextlib.contextmanager
def faster_on_cpu(model: nn.Module, half: bool) -> Iterator[None]:
    """Let a model that is on the CPU be trained so; afterwards it is what it was.

    Args:
        model: any language model of transformers, with what is trained in it.
        half: whether it is trained in bf16 autocast.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        yield
        return
    with (
        attending(getattr(model, "config", None), _NAME),
        _cast_once(model) if half else contextlib.nullcontext(),
        adapters_as_one(model, torch.bfloat16 if half else torch.float32),
    ):
        yield


@contextlib.contextmanager
def _cast_once(model: nn.Module) -> Iterator[None]:
    """Frozen weights of linears as autocast would make them anew in each forward: it keeps only those that are trained.

    Weights that something else holds too, as a head that is also the embedding, stay; and those below DoRA, whose lengths are
    computed in full precision.
    """
    kept_full = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    for layer in model.modules():
        if any(getattr(layer, "use_dora", {}).values()):
            kept_full |= {id(parameter) for parameter in layer.parameters()}
    full: list[tuple[Tensor, Tensor]] = []
    try:
        for layer in model.modules():
            if not isinstance(layer, nn.Linear) or layer.weight.requires_grad or id(layer.weight) in kept_full:
                continue
            if layer.weight.dtype == torch.float32:
                full.append((layer.weight, layer.weight.data))
                layer.weight.data = layer.weight.data.bfloat16()
        yield
    finally:
        for weight, data in full:
            weight.data = data
