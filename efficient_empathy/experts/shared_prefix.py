"""What all rows of a batch begin with goes through the model once: the instruction is a third of a short dialogue."""

import inspect
import logging
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from efficient_empathy.experts.key_values import depends_on_length
from efficient_empathy.experts.trials import trial

_log = logging.getLogger(__name__)
_LEAST = 8
"""Tokens from which on a second pass through the layers pays."""
_PROBE_TOKENS = 16
_TOLERANCE = 0.03
"""Of the hidden states' length: rounding in bf16 is a third of it, another position or mask many times as much."""

_is_same: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def common_prefix(input_ids: Tensor, attention_mask: Tensor, supervised_BT: Tensor) -> int:
    """How many tokens all rows begin with, up to the last before a supervised one; 0 where sharing would not pay.

    Args:
        input_ids: (batch, time), padded on the right.
        attention_mask: (batch, time).
        supervised_BT: (batch, time), True where a token is supervised.
    """
    if len(input_ids) < 2:
        return 0
    same_T = (input_ids == input_ids[:1]).all(0) & attention_mask.bool().all(0)
    answered_T = supervised_BT.any(0).cumsum(0) > 0
    # The state of the last token before the first supervised one is needed row by row.
    count = min(int(same_T.cumprod(0).sum()), int((~answered_T).sum()) - 1)
    return count if count >= _LEAST else 0


def can_share(decoder: Any, input_ids: Tensor, attention_mask: Tensor, prefix: int) -> bool:
    """Whether a decoder gives the same states when it reads a prefix once; tried once a model, on two rows of a batch.

    Layers that see a window only are not tried, nor are positions that depend on how long the text is; nor is a model that computes
    its states anew on the way back, since it then keeps none. A model that fails when it is tried, since it cannot go on from keys
    and values alone (it keeps states of convolutions or recurrences too), does not share.
    """
    if getattr(decoder, "is_gradient_checkpointing", False) and decoder.training:
        return False
    if decoder not in _is_same:
        try:
            with trial(decoder):
                _is_same[decoder] = _takes_cache(decoder) and _agrees(
                    decoder, input_ids[:2], attention_mask[:2], prefix
                )
        except Exception as error:
            _log.debug("each row is read whole: %s", error)
            _is_same[decoder] = False
    return _is_same[decoder]


def read_shared(decoder: Any, input_ids: Tensor, attention_mask: Tensor, prefix: int) -> Tensor:
    """Last hidden states of what comes after the prefix, (batch, time - prefix, hidden size), with gradients through both."""
    cache = DynamicCache(config=decoder.config)
    decoder(input_ids=input_ids[:1, :prefix], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(input_ids))
    found: Tensor = decoder(
        input_ids=input_ids[:, prefix:], attention_mask=attention_mask, past_key_values=cache, use_cache=True
    )[0]
    return found


def _takes_cache(decoder: Any) -> bool:
    if "past_key_values" not in inspect.signature(decoder.forward).parameters or depends_on_length(decoder):
        return False
    layers = DynamicCache(config=decoder.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _agrees(decoder: Any, input_ids: Tensor, attention_mask: Tensor, prefix: int) -> bool:
    end = prefix + _PROBE_TOKENS
    ids, mask = input_ids[:, :end], attention_mask[:, :end]
    whole = decoder(input_ids=ids, attention_mask=mask, use_cache=False)[0][:, prefix:].float()
    shared = read_shared(decoder, ids, mask, prefix).float()
    seen = mask[:, prefix:].bool()
    return bool((shared - whole)[seen].norm() <= _TOLERANCE * whole[seen].norm())
