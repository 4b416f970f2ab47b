"""Keys and values of past tokens, for batches that grow by a token a step and whose rows come and go."""

import inspect
import logging
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from efficient_empathy.experts.prompt_states import read_prompts, told
from efficient_empathy.experts.trials import trial

_log = logging.getLogger(__name__)
_SPARE = 32
"""Columns of room for tokens to come: so many steps go by before the past is copied again."""
_TRIED_TOKENS = 16
_TOLERANCE = 0.2
"""Of the logits' length: rounding in bf16 is a tenth of it, a past that was forgotten five times as much."""

_goes_on: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


class RoomyLayer(DynamicLayer):
    """A layer with spare room: a new token does not copy all those before it."""

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values, each (rows, heads, new, size), and return all that there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        past = self.get_seq_length()
        total = past + key_states.shape[-2]
        if not self._buffers or self._buffers[0].shape[-2] < total:
            shapes = [(*new.shape[:2], total + _SPARE, new.shape[-1]) for new in (key_states, value_states)]
            buffers = [key_states.new_empty(shape) for shape in shapes]
            if past:
                buffers[0][..., :past, :], buffers[1][..., :past, :] = self.keys, self.values
            self._buffers = buffers
        self._buffers[0][..., past:total, :], self._buffers[1][..., past:total, :] = key_states, value_states
        self.keys, self.values = (buffer[..., :total, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        total = self.get_seq_length()
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self.keys, self.values = (buffer[..., :total, :] for buffer in self._buffers)

    def put(self, keys: Tensor, values: Tensor) -> None:
        """Hold these instead of what it held."""
        self.keys, self.values, self._buffers = keys, values, []


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model; layers that see a window only stay as transformers makes them."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def goes_on(model: Any, tokens: Sequence[int]) -> bool:
    """Whether a model answers from keys and values of past tokens what it answers from these tokens; tried once a model.

    Models that keep other states too, of convolutions or recurrences, do not.

    Args:
        model: a causal language model of transformers.
        tokens: the beginning of a prompt, at least one.
    """
    if model not in _goes_on:
        try:
            with trial(model):
                _goes_on[model] = _agrees(model, torch.tensor([[*tokens, *tokens][:_TRIED_TOKENS]]))
        except Exception as error:
            _log.debug("going on from keys and values failed: %s", error)
            _goes_on[model] = False
        if not _goes_on[model]:
            _log.warning(
                "%s keeps other states than keys and values of past tokens: answers come one by one, and for each token all is "
                "read anew, which is slow",
                type(model).__name__,
            )
    return _goes_on[model]


def _agrees(model: Any, input_ids: Tensor) -> bool:
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "past_key_values" not in inspect.signature(causal.forward).parameters:
        return False
    ids = input_ids.to(next(model.parameters()).device)
    mask, cache = torch.ones_like(ids), new_cache(model.config)
    with told(model, read_prompts(model, ids, mask)):
        whole = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1].float()
        model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache, use_cache=True)
        last = model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=cache, use_cache=True)
    # What is added to all logits changes no answer.
    whole, ours = (logits - logits.mean() for logits in (whole, last.logits[:, -1].float()))
    return bool((ours - whole).norm() <= _TOLERANCE * whole.norm())


def depends_on_length(model: nn.Module) -> bool:
    """Whether a model turns its keys by other angles in longer texts, those of past tokens too (rope ``dynamic``, ``longrope``)."""
    kinds = [str(getattr(module, "rope_type", "")) for module in model.modules()]
    return any("dynamic" in kind or kind == "longrope" for kind in kinds)


def turns_within(model: Any, tokens: int) -> bool:
    """Whether a model that reads so many tokens turns all keys by other angles on the way (rope ``longrope``)."""
    first = getattr(model.config, "original_max_position_embeddings", None)
    return first is not None and tokens > first and depends_on_length(model)


def can_join(cache: DynamicCache) -> bool:
    """Whether caches of this kind can be joined: a layer that sees a window only does not know its columns any more."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def join(caches: Iterable[tuple[DynamicCache, int]], width: int) -> DynamicCache:
    """One cache with the rows of several, the newest token of all in the last column.

    Args:
        caches: each with the number of its oldest columns that no row needs.
        width: columns of the result.
    """
    given = list(caches)
    joined = given[0][0]
    for index, layer in enumerate(joined.layers):
        layers = [(cache.layers[index], drop) for cache, drop in given]
        layer.put(
            torch.cat([widened(each.keys[..., drop:, :], width, -2) for each, drop in layers]),
            torch.cat([widened(each.values[..., drop:, :], width, -2) for each, drop in layers]),
        )
    return joined


def widened(tensor: Tensor, width: int, dimension: int = -1) -> Tensor:
    """The tensor with zeros before it, up to this width."""
    shape = list(tensor.shape)
    shape[dimension] = width - shape[dimension]
    return torch.cat([tensor.new_zeros(shape), tensor], dimension) if shape[dimension] else tensor
