"""Keys and values of past tokens, for batches that grow by a token a step and whose rows come and go."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_SPARE = 32
"""Columns of room for tokens to come: so many steps go by before the past is copied again."""


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
