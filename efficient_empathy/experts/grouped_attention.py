"""Attention of one new token a row, as decoding needs it, without copying keys and values for each head that shares them."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from efficient_empathy.experts.attention import attending, register

_NAME = "grouped_sdpa"


def grouped_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **values: Any
) -> tuple[Tensor, None]:
    """``sdpa`` of transformers, but heads that share keys stand as the queries of one head.

    transformers repeats keys and values once a head where there is a mask: with a long past that is more work than the
    attention itself. Anything but one new token a row goes the usual way.

    Args:
        module: the attention layer; ``num_key_value_groups`` heads share keys and values.
        query: (rows, heads, new, size).
        key: (rows, heads / groups, past and new, size).
        value: (rows, heads / groups, past and new, width).
        attention_mask: None or broadcastable to (rows, heads, new, past and new).
        values: what else transformers hands over.

    Returns:
        (rows, new, heads, width), and None for the weights.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    rows, heads, new, size = query.shape
    if new != 1 or groups == 1 or (attention_mask is not None and attention_mask.shape[1] != 1):
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **values)
        return found
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[2]]
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query.view(rows, heads // groups, groups, size), key, value, attention_mask, scale=values.get("scaling")
    )
    return mixed.reshape(rows, 1, heads, value.shape[-1]), None


register(_NAME, grouped_attention)


def grouped(config: Any) -> AbstractContextManager[None]:
    """Let a model with this configuration attend so, if it uses ``sdpa``; others stay as they are."""
    return attending(config, _NAME)
