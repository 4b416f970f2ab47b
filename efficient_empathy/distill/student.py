"""The student: a tuned encoder that gives every dimension from one forward pass, on the judge's scale."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from efficient_empathy.scorer.artifact import Scale


def exceedances(scores: np.ndarray, scales: tuple[Scale, ...]) -> np.ndarray:
    """Scores as the answers to "is it more than k?", for each whole point k of each scale but its highest.

    Args:
        scores: on the judge's scale, (n, d).
        scales: the dimensions.

    Returns:
        float32 (n, points), 0 or 1; in between for a score between two points. On the scale 0 to 10 a 3 is 1, 1, 1, 0, …
    """
    columns = [np.clip(scores[:, [d]] - np.arange(scale.low, scale.high), 0.0, 1.0) for d, scale in enumerate(scales)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def expected_scores(probabilities: np.ndarray, scales: tuple[Scale, ...]) -> np.ndarray:
    """The scores that answers as those of ``exceedances`` stand for: (n, points) to float (n, d)."""
    columns = split_points(np.asarray(probabilities, np.float64), scales)
    return np.stack([scale.low + column.sum(1) for scale, column in zip(scales, columns, strict=True)], axis=1)


def split_points(values: np.ndarray, scales: tuple[Scale, ...]) -> list[np.ndarray]:
    """What is known of the points of all scales, (n, points), apart for each dimension."""
    ends = np.cumsum([round(scale.high - scale.low) for scale in scales])[:-1]
    return np.split(values, ends, axis=1)


class Student(nn.Module):
    """Encoder, the mean states of context and response side by side, and a probability for each point of each scale.

    A score is the lowest point of its scale plus the probabilities that it is more than each point: the expected score
    (ordinal regression by binary questions; Frank and Hall 2001). Pooling context and response apart lets the head weigh
    what was said against what it answers. All of it goes into the ONNX graph.

    The names' suffixes are B batch, T tokens, H hidden size, D dimensions, P points of all scales.
    """

    middle: Tensor
    cut: Tensor
    below: Tensor
    above: Tensor
    low: Tensor
    high: Tensor
    membership: Tensor

    def __init__(self, encoder: Any, dimensions: tuple[Scale, ...]):
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.dropout = nn.Dropout(0.1)
        low, high = ([getattr(scale, end) for scale in dimensions] for end in ("low", "high"))
        points = [round(scale.high - scale.low) for scale in dimensions]
        self.head = nn.Linear(2 * encoder.config.hidden_size, sum(points))
        membership = torch.zeros(sum(points), len(dimensions))
        membership[torch.arange(sum(points)), torch.arange(len(points)).repeat_interleave(torch.tensor(points))] = 1.0
        self.register_buffer(
            "membership", membership
        )  # (points, dimensions), 1 where a point is of a dimension's scale
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32))
        self.register_buffer("middle", (self.low + self.high) / 2)
        self.register_buffer("cut", self.middle.clone())
        self.register_buffer("below", torch.ones(len(dimensions)))
        self.register_buffer("above", torch.ones(len(dimensions)))
        self._has_segments = getattr(encoder.config, "type_vocab_size", 0) > 1

    def pooled(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """The mean states of context and response side by side, (batch, 2 * hidden).

        ``token_type_ids`` is 0 in the context and 1 in the response, also for encoders that have no such input.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._has_segments:
            inputs["token_type_ids"] = token_type_ids
        hidden_BTH = self.encoder(**inputs).last_hidden_state.float()
        response_BT = attention_mask * token_type_ids
        context_BT = attention_mask - response_BT
        return torch.cat([_mean(hidden_BTH, context_BT), _mean(hidden_BTH, response_BT)], 1)

    def logits(self, pooled_B2H: Tensor) -> Tensor:
        """Log-odds that the score is more than each point, (batch, points): what the loss is taken on."""
        return self.head(self.dropout(pooled_B2H))

    def probabilities(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Probability that the score is more than each point, (batch, points)."""
        return torch.sigmoid(self.logits(self.pooled(input_ids, attention_mask, token_type_ids)))

    def expected(self, probabilities_BP: Tensor) -> Tensor:
        """Expected scores before calibration, (batch, dimensions)."""
        # addmm and not @: exported as Gemm, which int8 leaves alone. This sum must stay exact.
        return torch.addmm(self.low, probabilities_BP, self.membership)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Scores on the judge's scale, (batch, dimensions), within its ends."""
        expected_BD = self.expected(self.probabilities(input_ids, attention_mask, token_type_ids))
        distance_BD = expected_BD - self.cut
        scores_BD = self.middle + torch.relu(distance_BD) * self.above - torch.relu(-distance_BD) * self.below
        return torch.minimum(torch.maximum(scores_BD, self.low), self.high)

    def start_head_at(self, shares: np.ndarray) -> None:
        """Let the head begin by giving every row the shares of the training rows, (points,): an ordinary first guess."""
        odds = torch.from_numpy(np.clip(shares, 0.005, 0.995)).float()
        with torch.no_grad():
            self.head.bias.copy_(torch.logit(odds))

    def set_calibration(self, cut: Tensor, below: Tensor, above: Tensor) -> None:
        """Set how expected scores become final ones: two lines that meet where ``cut`` becomes the middle, with their slopes.

        One number a dimension each.
        """
        self.cut.copy_(cut)
        self.below.copy_(below)
        self.above.copy_(above)


def _mean(hidden_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    mask_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTH.dtype)
    return (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1.0)
