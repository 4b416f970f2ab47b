"""Dropout for adapters on CPUs, with masks drawn as bytes: many times faster than torch's numbers there; and models without any."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 256


class _Masked(torch.autograd.Function):
    """x · kept · scale, which holds one byte a value for the way back instead of four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None, None


class ByteDropout(nn.Module):
    """Zeroes a share of the values while training and scales up the rest, as ``nn.Dropout`` does.

    The share is rounded to 1/256, and the scale fits the rounded share, so that expected values stay as they are. Torch draws 150
    million random numbers a second on a CPU core, and LoRA on all linears of a model needs more of these than it has weights.
    The mask follows from torch's own generator: what is seeded, or drawn again by checkpointing, gives the same mask.
    """

    def __init__(self, p: float):
        super().__init__()
        self.dropped = round(p * _LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        """Values of any shape, on the CPU."""
        if not self.training or self.dropped == 0:
            return x
        masked: Tensor = _Masked.apply(x, self.keep(x.numel()).view(x.shape), self.scale)
        return masked

    @property
    def scale(self) -> float:
        """By what the values that are kept are multiplied."""
        return _LEVELS / (_LEVELS - self.dropped)

    def keep(self, count: int) -> Tensor:
        """Which of so many values are kept, bool (count,); drawn anew each time."""
        seed = int(torch.randint(2**63 - 1, (1,)))
        drawn = np.frombuffer(np.random.Generator(np.random.SFC64(seed)).bytes(count), np.uint8)
        return torch.from_numpy(drawn >= self.dropped)

    def extra_repr(self) -> str:
        """The share."""
        return f"p={self.dropped}/{_LEVELS}"


def draw_bytes(model: Any) -> None:
    """Give all adapters of a PEFT model this dropout instead of their own."""
    for module in model.modules():
        choices = getattr(module, "lora_dropout", {})
        for name, dropout in list(choices.items()):
            if isinstance(dropout, nn.Dropout):
                choices[name] = ByteDropout(dropout.p)


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Have a model in eval mode, and leave each of its modules in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
