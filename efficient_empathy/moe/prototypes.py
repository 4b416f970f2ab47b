"""Beginning where the subsets differ: gates along the differences of their mean hidden states."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from efficient_empathy.experts.batches import OrderedBatches, Rows
from efficient_empathy.experts.loss import IGNORED, response_nll
from efficient_empathy.moe.router import Router

_BATCH = 16


def start_at_prototypes(model: Any, router: Router, subsets: Sequence[Rows]) -> None:
    """Set the gates so that each expert's grows toward the mean hidden state of its own subset.

    With m_e the mean of what a gate reads at the response tokens of subset e, its logit is m_e·x − |m_e|²/2, the nearest mean's,
    less what all experts share; divided so that the logits have a standard deviation of 1 over those tokens: before anything was
    learnt no gate is decided.

    Args:
        model: with experts attached, its gates at zero.
        router: its gates; they must have biases.
        subsets: rows of each expert's subset, in the order of the experts.
    """
    means: list[list[Tensor]] = []
    for rows in subsets:
        sums = [_Moments(gate.weight.shape[1]) for gate in router.gates]
        _visit(model, router, rows, partial(_add, sums))
        means.append([moments.mean for moments in sums])
    found = []
    for of_gate in zip(*means, strict=True):
        mean_EI = torch.stack(of_gate)
        bias_E = -mean_EI.square().sum(1) / 2
        found.append((mean_EI - mean_EI.mean(0), bias_E - bias_E.mean()))
    logits = [_Moments(len(subsets)) for _ in found]
    for rows in subsets:
        _visit(model, router, rows, lambda place, x_NI: logits[place].add(x_NI @ found[place][0].T + found[place][1]))
    with torch.no_grad():
        for gate, (weight_EI, bias_E), moments in zip(router.gates, found, logits, strict=True):
            gate.weight.copy_(weight_EI / moments.deviation)
            if gate.bias is not None:
                gate.bias.copy_(bias_E / moments.deviation)


def _add(moments: "Sequence[_Moments]", place: int, values_ND: Tensor) -> None:
    moments[place].add(values_ND)


class _Moments:
    """Running sums of vectors."""

    def __init__(self, size: int):
        self._sum, self._squares = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        self._count = 0

    def add(self, values_ND: Tensor) -> None:
        self._sum += values_ND.sum(0)
        self._squares += values_ND.square().sum(0)
        self._count += len(values_ND)

    @property
    def mean(self) -> Tensor:
        return self._sum / self._count

    @property
    def deviation(self) -> Tensor:
        """Root of the mean variance of the components."""
        return (self._squares / self._count - self.mean.square()).mean().clamp(min=1e-12).sqrt()


def _visit(model: Any, router: Router, rows: Rows, see: Callable[[int, Tensor], None]) -> None:
    """Show what each gate reads at the positions whose next token is learnt: its place, and float64 (N, I) on the CPU."""
    chosen_BT = torch.zeros(0, 0, dtype=torch.bool)

    def read(place: int, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        hidden = args[0]
        if hidden.dim() == 2:
            found_NI = hidden[chosen_BT.any(1)]
        elif hidden.shape[:2] == (len(chosen_BT), chosen_BT.shape[1] + 1):
            found_NI = hidden[:, :-1][chosen_BT]
        else:
            return  # response_nll tries a few tokens of a new model
        see(place, found_NI.cpu().double())

    hooks = [gate.register_forward_pre_hook(partial(read, place)) for place, gate in enumerate(router.gates)]
    try:
        with torch.no_grad():
            for batch in OrderedBatches(rows, _BATCH):
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                chosen_BT = batch["labels"][:, 1:] != IGNORED
                response_nll(model, **batch)
    finally:
        for hook in hooks:
            hook.remove()
