"""A GPU whose memory does not suffice, said in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from efficient_empathy.errors import EmpathyError


@contextmanager
def within_memory(advice: str) -> Iterator[None]:
    """Turn a GPU's lack of memory into a sentence.

    Args:
        advice: what to do about it.

    Raises:
        EmpathyError: the block ran out of it.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EmpathyError(f"the memory of the GPU does not suffice: {advice}") from error
