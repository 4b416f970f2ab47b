"""The routed layer: a linear, the low-rank matrices of several experts side by side, and gates that weigh them.

Shapes: B rows, T time, I features in, O features out, E experts, R the sum of the experts' ranks; N positions that count.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficient_empathy.errors import EmpathyError


class Routing(NamedTuple):
    """What a gate said."""

    gates: Tensor
    """(…, E): the weight of each expert, summing to 1; 0 where ``top_k`` leaves an expert out."""
    shares: Tensor
    """(…, E): softmax over all experts; the gates themselves where none is left out."""


class Gate(nn.Module):
    """Weighs experts by a hidden state: softmax of a linear, in fp32 whatever the model computes in."""

    def __init__(self, features: int, experts: int, top_k: int | None = None, bias: bool = False):
        """Begin at zero: the uniform mixture.

        Args:
            features: of the hidden state.
            experts: how many there are.
            top_k: how many are mixed; None mixes all.
            bias: whether it has one. The paper's gates have none; prototypes need one for where the middle is.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, features))
        self.bias = nn.Parameter(torch.zeros(experts)) if bias else None
        self.top_k = top_k

    def forward(self, hidden: Tensor) -> Routing:
        """Gates of hidden states (…, features)."""
        device = hidden.device.type
        off = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()
        with off:
            logits = F.linear(hidden.float(), self.weight, self.bias)
        shares = logits.softmax(-1)
        if self.top_k is None:
            return Routing(shares, shares)
        highest, chosen = logits.topk(self.top_k, -1)
        return Routing(torch.zeros_like(logits).scatter(-1, chosen, highest.softmax(-1)), shares)


class RoutedLinear(nn.Module):
    """base(x) + B ((A x) · gates): two small matrix products for any number of experts of any ranks.

    A is the experts' A one above the other, B their scaled B side by side, and each gate is repeated for the ranks of its expert:
    Σ gate_e · scale_e · B_e A_e x, without a tensor of all experts' outputs. Nothing in here is trained; the matrices are buffers.
    """

    lora_A: Tensor
    lora_B: Tensor
    owner: Tensor

    def __init__(self, base: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], route: Callable[[Tensor], Tensor]):
        """Put experts beside a linear.

        Args:
            base: the linear; kept as it is.
            pairs: A (rank, I) and scaled B (O, rank) of each expert; an expert without a part here has rank 0.
            route: from inputs (B, T, I) to gates that broadcast to (B, T, E).
        """
        super().__init__()
        self.base, self._route = base, route
        weight = base.weight
        assert isinstance(weight, Tensor)  # noqa: S101 - narrows the type for the checker
        # Packed weights (4 bits) are no floats: their adapters stay as they were trained.
        dtype = weight.dtype if weight.is_floating_point() else pairs[0][0].dtype
        lora_A, lora_B = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], 1)
        self.register_buffer("lora_A", lora_A.to(weight.device, dtype), persistent=False)
        self.register_buffer("lora_B", lora_B.to(weight.device, dtype), persistent=False)
        owner = [expert for expert, (a, _) in enumerate(pairs) for _ in range(len(a))]
        self.register_buffer("owner", torch.tensor(owner, device=weight.device), persistent=False)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """The linear of the mixture, (B, T, O).

        Raises:
            EmpathyError: the base gives this linear its tokens without batch and position, as OPT does.
        """
        if x_BTI.dim() != 3:
            raise EmpathyError(
                f"this base joins all tokens of a batch before its linears (inputs of {x_BTI.dim()} axes, 3 are needed), so "
                "a router cannot tell its rows apart: mixtures of experts on it are not supported."
            )
        hidden_BTR = F.linear(x_BTI.to(self.lora_A.dtype), self.lora_A)
        gates_BTR = self._route(x_BTI)[..., self.owner].to(hidden_BTR.dtype)
        out_BTO: Tensor = self.base(x_BTI)
        return out_BTO + F.linear(hidden_BTR * gates_BTR, self.lora_B).to(out_BTO.dtype)

    def delta(self, gates_E: Tensor) -> Tensor:
        """What fixed gates add to the base's weight, (O, I)."""
        return (self.lora_B.float() * gates_E[self.owner]) @ self.lora_A.float()
