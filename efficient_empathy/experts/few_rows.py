"""Products of few rows on the CPU, as decoding needs them: a token a row, a few tens of rows a step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ROWS = range(8, 49)
_LEAST_SIDE = 64
"""Below it (LoRA's narrow side) turning costs more than it saves."""


class FewRows(TorchFunctionMode):
    """Within it, a linear layer of 8 to 48 rows multiplies from the other side: W xᵀ instead of x Wᵀ.

    The same sums, half as long: the kernels of fp32 products go by the rows of what stands on the left, and here there are too
    few of them (in torch 2.13 on two AVX-512 cores, 16 rows of 576 against 1,536 columns: 85 ms against 31 for sixty layers).
    Other products, types and devices are left alone.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for each of its functions."""
        if func is torch.nn.functional.linear and not kwargs and _gains(*args[:2]):
            input_, weight, *bias = args
            rows = weight.mm(input_.reshape(-1, input_.shape[-1]).t()).t()
            if bias and bias[0] is not None:
                rows = rows + bias[0]
            # Whoever reads it row by row finds the rows together.
            return rows.contiguous().view(*input_.shape[:-1], weight.shape[0])
        return func(*args, **(kwargs or {}))


def _gains(input_: Tensor, weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == input_.dtype == torch.float32
        and weight.dim() == 2
        and min(weight.shape) >= _LEAST_SIDE
        and input_.numel() // input_.shape[-1] in _ROWS
    )
