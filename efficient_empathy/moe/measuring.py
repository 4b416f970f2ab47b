"""Held-out likelihoods, paired: what one model gains over another on the very same responses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.conversations import conversation_name
from efficient_empathy.distill.quality import Figure
from efficient_empathy.experts.batches import OrderedBatches, Rows
from efficient_empathy.experts.loss import response_nll
from efficient_empathy.experts.statistics import draw, interval


def row_nll(model: Any, rows: Rows, batch_size: int = 16) -> np.ndarray:
    """Negative log-likelihood of each row's response with the end of its turn, in nats, float64 (rows,)."""
    order = np.argsort(-rows.lengths, kind="stable")
    found = np.zeros(len(order))
    with torch.inference_mode():
        for begin, batch in zip(range(0, len(order), batch_size), OrderedBatches(rows, batch_size), strict=True):
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            nll_B, _ = response_nll(model, **inputs, share=True)
            found[order[begin : begin + batch_size]] = nll_B.cpu().numpy()
    return found


def conversations(rows: Rows, examples: Sequence[Example]) -> list[str]:
    """The conversation of each row; rows of one conversation are drawn together."""
    by_id = {example.id: conversation_name(example) for example in examples}
    return [by_id[row.id] for row in rows.rows]


def paired(
    nll: Mapping[str, np.ndarray], rows: Rows, groups: Sequence[str], baseline: str, resamples: int = 1000
) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """Nats a token of each system, and each less the baseline's, with intervals over conversations.

    Args:
        nll: by system, (rows,) as ``row_nll`` gives it; several seeds of a system as (rows, seeds): their mean counts.
        rows: what was measured.
        groups: the conversation of each row.
        baseline: the system that is subtracted.
        resamples: how often conversations are drawn; the same draws for all, so that differences are paired.

    Returns:
        Figures and differences, by system; the baseline has no difference.
    """
    draws = draw(groups, resamples)
    tokens = draws.sums(np.array([row.supervised for row in rows.rows]))
    means = {name: (draws.sums(values).mean(1, keepdims=True) / tokens)[:, 0] for name, values in nll.items()}
    figures = {name: interval(values) for name, values in means.items()}
    differences = {name: interval(values - means[baseline]) for name, values in means.items() if name != baseline}
    return figures, differences
