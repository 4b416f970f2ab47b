"""Models that settle something once a prompt, as a mixture that routes whole answers does. For all others this does nothing.

What was settled is held by whoever holds the rows, and handed in with each call: so it follows rows that leave a batch, and is
the same with and without a cache of past tokens.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

ATTRIBUTE = "mixture_router"
"""Where a model keeps what reads prompts; see ``moe.router.Router``."""


def read_prompts(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor | None:
    """What the model settles for some prompts.

    Args:
        model: any language model.
        input_ids: (rows, time).
        attention_mask: (rows, time), 1 at the tokens of the prompt; padded on either side.

    Returns:
        A tensor whose first dimension is that of the rows; None for a model that settles nothing.
    """
    router = getattr(model, ATTRIBUTE, None)
    return None if router is None else router.read_prompts(model, input_ids, attention_mask)


@contextlib.contextmanager
def told(model: Any, states: Tensor | None) -> Iterator[None]:
    """Let the model go by what was settled for these rows, as ``read_prompts`` gave it."""
    if states is None:
        yield
        return
    with getattr(model, ATTRIBUTE).held(states):
        yield
