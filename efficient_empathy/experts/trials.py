"""Trying a model on a few tokens, to see what it can do."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from efficient_empathy.experts.dropout import without_dropout


@contextlib.contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Run a model without dropout and gradients, and leave nothing behind.

    Autocast keeps no weights that it casts meanwhile: torch before 2.10 would give these casts, which have no gradients, to the
    training step that the trial is part of.
    """
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad(), without_dropout(model):
            yield
    finally:
        torch.set_autocast_cache_enabled(kept)
