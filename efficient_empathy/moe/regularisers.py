"""What gates are asked for beside a low loss. Shapes: S gates, N positions that count, E experts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from efficient_empathy.moe.routed import Routing

_TINY = 1e-9


def at_positions(routings: Sequence[Routing], chosen_BT: Tensor) -> Routing:
    """What the gates said where it counts, (S, N, E); a gate of whole answers counts once a row that has such a position.

    Args:
        routings: of each gate, (B, T + 1, E), or (B, E) of whole answers.
        chosen_BT: positions whose next token is learnt; the last position has none.
    """

    def taken(part: Tensor) -> Tensor:
        return part[chosen_BT.any(1)] if part.dim() == 2 else part[:, :-1][chosen_BT]

    return Routing(*(torch.stack([taken(part) for part in parts]) for parts in zip(*routings, strict=True)))


def entropy(gates: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats."""
    return -(gates * (gates + _TINY).log()).sum(-1)


def mutual_information(gates_SNE: Tensor) -> Tensor:
    """Mean entropy of a position less the entropy of the mean gate: the negative mutual information of positions and experts.

    Low where each position is decided and all together use every expert: at least −log E, and 0 where all positions are alike.
    """
    return (entropy(gates_SNE).mean(1) - entropy(gates_SNE.mean(1))).mean()


def kl_prior(gates_SNE: Tensor, prior_E: Tensor) -> Tensor:
    """KL(mean gate ‖ prior), in nats, mean over gates."""
    mean_SE = gates_SNE.mean(1)
    return (mean_SE * ((mean_SE + _TINY).log() - prior_E.log())).sum(-1).mean()


def load_balancing(routing: Routing) -> Tensor:
    """E · Σ f_e P_e: f_e the share of choices that fell on an expert, P_e its mean softmax; 1 where balanced.

    Switch transformers (Fedus et al. 2021), section 2.2, equation 4. Where every position chooses all experts, f_e is 1/E and the
    sum is 1 whatever the gates are.
    """
    chosen_SNE = (routing.gates > 0).float()
    share_SE = chosen_SNE.mean(1) / chosen_SNE.sum(-1).mean()
    experts = routing.shares.shape[-1]
    return experts * (share_SE * routing.shares.mean(1)).sum(-1).mean()
