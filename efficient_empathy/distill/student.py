"""The student: a tuned encoder that gives every dimension from one forward pass, on the judge's scale."""

from typing import Any

import torch
from torch import Tensor, nn

from efficient_empathy.scorer.artifact import Scale


class Student(nn.Module):
    """Encoder, the mean states of context and response side by side, one linear layer, then the judge's scale.

    All of it goes into the ONNX graph. Pooling the two apart lets the head weigh what was said against what it answers.

    In ``raw`` and ``forward`` the names' suffixes are B batch, T tokens, H hidden size, D dimensions.
    """

    slope: Tensor
    intercept: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, encoder: Any, dimensions: tuple[Scale, ...]):
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(2 * encoder.config.hidden_size, len(dimensions))
        self.register_buffer("slope", torch.ones(len(dimensions)))
        self.register_buffer("intercept", torch.zeros(len(dimensions)))
        self.register_buffer("low", torch.tensor([dimension.low for dimension in dimensions], dtype=torch.float32))
        self.register_buffer("high", torch.tensor([dimension.high for dimension in dimensions], dtype=torch.float32))
        self._has_segments = getattr(encoder.config, "type_vocab_size", 0) > 1

    def raw(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Standardised outputs before calibration, (batch, dimensions): what the loss is taken on.

        ``token_type_ids`` is 0 in the context and 1 in the response, also for encoders that have no such input.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._has_segments:
            inputs["token_type_ids"] = token_type_ids
        hidden_BTH = self.encoder(**inputs).last_hidden_state.float()
        response_BT = attention_mask * token_type_ids
        context_BT = attention_mask - response_BT
        pooled_B2H = torch.cat([_mean(hidden_BTH, context_BT), _mean(hidden_BTH, response_BT)], 1)
        return self.head(self.dropout(pooled_B2H))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Scores on the judge's scale, (batch, dimensions), within its ends."""
        scores_BD = self.raw(input_ids, attention_mask, token_type_ids) * self.slope + self.intercept
        return torch.minimum(torch.maximum(scores_BD, self.low), self.high)

    def set_calibration(self, slope: Tensor, intercept: Tensor) -> None:
        """Set how raw outputs become scores: ``raw * slope + intercept``, one number a dimension each."""
        self.slope.copy_(slope)
        self.intercept.copy_(intercept)


def _mean(hidden_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    mask_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTH.dtype)
    return (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1.0)
