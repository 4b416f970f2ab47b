"""Seeing what a router does: how much of which expert, how decided, in which layer, and whether it tells the subsets apart."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from efficient_empathy.experts.batches import OrderedBatches, Rows
from efficient_empathy.experts.loss import IGNORED, response_nll
from efficient_empathy.moe.regularisers import entropy
from efficient_empathy.moe.router import Router
from efficient_empathy.scorer.ranks import mean_ranks

SEPARATES = 0.70
"""AUC from which on the gates are said to separate the subsets."""

_SMALL_GAP = 0.02
"""A difference of mean gates that changes next to nothing, however well it sorts rows."""


@dataclass(frozen=True)
class Routings:
    """What the gates said on some rows, at the positions whose next token is learnt."""

    gates: np.ndarray
    """(rows, S, E): mean gate of each row and gate of the router."""
    entropies: np.ndarray
    """(rows, S): mean entropy of a position, in nats."""
    tokens: np.ndarray
    """(rows,): positions of each row."""
    nll: np.ndarray
    """(rows,): summed negative log-likelihood of the row's learnt tokens, in nats."""

    def __add__(self, other: "Routings") -> "Routings":
        """The rows of both."""
        return Routings(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class RouterReport:
    """A router in figures; means are over positions, and over the gates of the router where it has several."""

    mean_gate: dict[str, float]
    """Share of each expert."""
    entropy: float
    """Mean entropy of the gates of a position, in nats: 0 where each is decided."""
    entropy_share: float
    """Of log E, the most there can be."""
    entropy_of_mean: float
    """Entropy of the mean gates, in nats: how evenly the experts are used over all."""
    layers: dict[str, dict[str, float]]
    """Mean gates by layer."""
    sites: dict[str, list[float]]
    """Mean gates of each gate of the router, in the order of the experts."""
    auc: float | None
    """Of a row's mean gate as a classifier of its subset, mean over experts; None where subsets and experts do not pair up."""
    gap: float | None
    """How much higher an expert's mean gate is on its own subset than on the others', mean over experts."""
    rows: int
    """Held-out rows that all this is of."""
    verdict: str
    """What AUC and gap mean."""


def read_routings(model: Any, router: Router, rows: Rows, batch_size: int = 16) -> Routings:
    """Run rows through a model and note what its gates say; rows keep their order."""
    count = len(rows.rows)
    found = Routings(
        gates=np.zeros((count, len(router.names), len(router.experts))),
        entropies=np.zeros((count, len(router.names))),
        tokens=np.array([row.supervised for row in rows.rows], np.int64),
        nll=np.zeros(count),
    )
    order = np.argsort(-rows.lengths, kind="stable")
    with torch.inference_mode():
        for begin, batch in zip(range(0, count, batch_size), OrderedBatches(rows, batch_size), strict=True):
            chosen = order[begin : begin + batch_size]
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            with router.recording() as record:
                nll_B, _ = response_nll(model, **batch)
            found.nll[chosen] = nll_B.cpu().numpy()
            counted_BT = (batch["labels"][:, 1:] != IGNORED).float()
            for place, name in enumerate(router.names):
                gates = record[name].gates
                if gates.dim() == 3:
                    weights_BT1 = (counted_BT / counted_BT.sum(1, keepdim=True).clamp(min=1))[..., None]
                    found.gates[chosen, place] = (gates[:, :-1] * weights_BT1).sum(1).cpu().numpy()
                    found.entropies[chosen, place] = (entropy(gates)[:, :-1] * weights_BT1[..., 0]).sum(1).cpu().numpy()
                else:
                    found.gates[chosen, place] = gates.cpu().numpy()
                    found.entropies[chosen, place] = entropy(gates).cpu().numpy()
    return found


def report(router: Router, subsets: Sequence[Routings]) -> RouterReport:
    """Figures of a router.

    Args:
        router: its names.
        subsets: routings of held-out rows; one of each expert's own subset, in their order, if the AUC is to be told.
    """
    everything = subsets[0]
    for more in subsets[1:]:
        everything += more
    weights = everything.tokens / everything.tokens.sum()
    mean_SE = np.einsum("n,nse->se", weights, everything.gates)
    layers: dict[str, list[int]] = {}
    for place, name in enumerate(router.names):
        number = re.search(r"\.(\d+)(\.|$)", name)
        layers.setdefault(number[1] if number else name, []).append(place)
    most = math.log(len(router.experts))
    mean_entropy = float(weights @ everything.entropies.mean(1))
    auc, gap = subset_auc(subsets), subset_gap(subsets)
    if len(subsets) != len(router.experts):
        auc = gap = None
    return RouterReport(
        mean_gate=_named(router, mean_SE.mean(0)),
        entropy=mean_entropy,
        entropy_share=mean_entropy / most,
        entropy_of_mean=float(-(mean_SE * np.log(mean_SE + 1e-12)).sum(1).mean()),
        layers={layer: _named(router, mean_SE[places].mean(0)) for layer, places in layers.items()},
        sites={name: [round(float(value), 6) for value in mean_SE[place]] for place, name in enumerate(router.names)},
        auc=auc,
        gap=gap,
        rows=len(everything.tokens),
        verdict=verdict(auc, gap),
    )


def subset_auc(subsets: Sequence[Routings]) -> float | None:
    """AUC of each expert's mean gate for its own subset against the others, mean over experts; None if a subset has no rows."""
    found = [auc(own, rest) for own, rest in _own_and_rest(subsets)]
    return float(np.mean(found)) if found else None


def subset_gap(subsets: Sequence[Routings]) -> float | None:
    """Mean gate of an expert on its own subset less that on the others, mean over experts; None if a subset has no rows."""
    found = [float(own.mean() - rest.mean()) for own, rest in _own_and_rest(subsets)]
    return float(np.mean(found)) if found else None


def _own_and_rest(subsets: Sequence[Routings]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each expert's gate on the rows of its own subset, and of the others; nothing where a subset has no rows, or is alone."""
    if len(subsets) < 2 or not all(len(subset.tokens) for subset in subsets):
        return []
    pairs = []
    for expert in range(min(len(subsets), subsets[0].gates.shape[2])):
        scores = [subset.gates[:, :, expert].mean(1) for subset in subsets]
        pairs.append((scores[expert], np.concatenate([*scores[:expert], *scores[expert + 1 :]])))
    return pairs


def auc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """Chance that a positive scores higher than a negative, ties counting half: from the sum of ranks (Mann and Whitney)."""
    n, m = len(positive), len(negative)
    return float((mean_ranks(np.array([*positive, *negative]))[:n].sum() - n * (n + 1) / 2) / (n * m))


def verdict(auc: float | None, gap: float | None) -> str:
    """A sentence on whether the gates tell the subsets apart, and whether that makes a difference."""
    if auc is None or gap is None:
        return (
            "whether the router separates the subsets was not measured: give the subset of each expert, in their order"
        )
    if auc < SEPARATES:
        return f"the router did not separate the subsets: AUC {auc:.2f} on held-out rows, under {SEPARATES:.2f}"
    text = f"the router separates the subsets: AUC {auc:.2f} on held-out rows"
    return f"{text}, but an expert's gate is only {gap:.3f} higher on its own subset" if gap < _SMALL_GAP else text


def _named(router: Router, values: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(router.experts, values, strict=True)}
