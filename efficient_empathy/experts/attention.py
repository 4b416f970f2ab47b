"""Attentions of our own beside those that transformers has, and models that use one for a while."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask


def register(name: str, attention: Callable[..., Any]) -> None:
    """Make an attention known to transformers; it is given the masks that ``sdpa`` is given."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)


@contextlib.contextmanager
def attending(config: Any, name: str) -> Iterator[None]:
    """Let a model with this configuration attend by another name, if it uses ``sdpa``; others stay as they are."""
    if getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
