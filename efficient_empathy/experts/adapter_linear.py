"""A frozen linear with a LoRA adapter as one operation of a training on a CPU: the same products, and less around them."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficient_empathy.experts.dropout import ByteDropout


class _Adapted(torch.autograd.Function):
    """x Wᵀ + bias + scale · dropout(x) Aᵀ Bᵀ, with gradients for x, A and B alone.

    Beside the products PEFT's own layer makes a dozen passes over tensors as large as x or the result, forward and back. Here the
    scale is on the narrow side, and what the adapter adds is added in place. N positions, I features in, O out, R the rank.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        kept: Tensor | None,
        scale: float,
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        dropped_NI = x_NI if kept is None else x_NI * kept
        small_a, small_b = a_RI.to(x.dtype), (b_OR * scale).to(x.dtype)
        narrow_NR = dropped_NI @ small_a.t()
        out_NO = F.linear(x_NI, weight, bias).addmm_(narrow_NR, small_b.t())
        ctx.save_for_backward(weight, small_a, small_b, dropped_NI, narrow_NR, kept)
        ctx.scale = scale
        # Sizes are named: an expert of a sparse layer may have no positions at all.
        return out_NO.view(*x.shape[:-1], out_NO.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, small_a, small_b, dropped_NI, narrow_NR, kept = ctx.saved_tensors
        gradient_NO = gradient.reshape(-1, gradient.shape[-1])
        narrow = gradient_NO @ small_b
        for_a, for_b = narrow.t() @ dropped_NI, (gradient_NO.t() @ narrow_NR).float() * ctx.scale
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = gradient_NO @ weight
            if kept is None:
                for_x.addmm_(narrow, small_a)
            else:
                for_x.addcmul_(narrow @ small_a, kept)
            for_x = for_x.view(*gradient.shape[:-1], for_x.shape[-1])
        return for_x, None, None, for_a.float(), for_b, None, None


class _Cast:
    """What autocast would cast several times: linears side by side read the very same tensor."""

    def __init__(self) -> None:
        self._seen: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Give x in another type: the same tensor when it is asked for again, in the same mode."""
        if x.dtype == dtype:
            return x
        if (
            self._seen is None
            or self._seen[0] is not x
            or self._seen[1].requires_grad != (torch.is_grad_enabled() and x.requires_grad)
        ):
            self._seen = x, x.to(dtype)
        return self._seen[1]

    def clear(self) -> None:
        """Hold nothing."""
        self._seen = None


def _forward(layer: Any, name: str, cast: _Cast, dtype: torch.dtype, x: Tensor) -> Tensor:
    base, dropout = layer.base_layer, layer.lora_dropout[name]
    x = cast(x, dtype)
    kept, scale = None, layer.scaling[name]
    if isinstance(dropout, ByteDropout) and layer.training and dropout.dropped:
        kept, scale = dropout.keep(x.numel()).view(-1, x.shape[-1]).to(dtype), scale * dropout.scale
    weights = layer.lora_A[name].weight, layer.lora_B[name].weight
    bias = base.bias if base.bias is None else base.bias.to(dtype)
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Adapted.apply(x, base.weight.to(dtype), bias, *weights, kept, scale)
    return out


@contextlib.contextmanager
def adapters_as_one(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it, linears of a model whose one adapter is plain LoRA compute so; others, and everything afterwards, as PEFT does.

    Args:
        model: on the CPU, with adapters of PEFT that are trained; nothing else of their linears is.
        dtype: what it computes in: float32, or bfloat16 in the place of autocast.
    """
    from peft.tuners.lora import Linear

    cast, changed = _Cast(), []
    try:
        for layer in model.modules():
            if isinstance(layer, Linear) and (name := _plain(layer)):
                layer.forward = partial(_forward, layer, name, cast, dtype)
                changed.append(layer)
        yield
    finally:
        cast.clear()
        for layer in changed:
            del layer.forward


def _plain(layer: Any) -> str | None:
    """The adapter's name, if nothing but it and its linear takes part."""
    names, base = list(layer.active_adapters), layer.base_layer
    if len(names) != 1 or names[0] not in layer.lora_A or names[0] in layer.lora_variant or layer.merged:
        return None
    a, b, dropout = layer.lora_A[names[0]], layer.lora_B[names[0]], layer.lora_dropout[names[0]]
    known = isinstance(dropout, (nn.Identity, ByteDropout)) and type(base) is nn.Linear
    if not known or a.bias is not None or b.bias is not None or layer.disable_adapters:
        return None
    return None if any(parameter.requires_grad for parameter in base.parameters()) else str(names[0])
