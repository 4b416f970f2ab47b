"""The Lightning side of training a student: the module, its optimiser, and progress with an ETA."""

import logging
import math
import time
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from efficient_empathy.distill.batches import Batch
from efficient_empathy.distill.settings import TrainingOptions
from efficient_empathy.distill.student import Student

_log = logging.getLogger(__name__)
_WARMUP_SHARE = 0.1
_LOG_SECONDS = 10.0
_LOSS_SCALE = 0.3
"""Brings the gradient's usual length to about the clipping length of 1."""
_STATE_WEIGHT = 1.0
"""Of the teachers' states in the loss; they have mean 0 and variance 1."""


class StudentModule(L.LightningModule):
    """Trains a student that it is given to say, for each point of each scale, whether the score is more.

    Where teachers' states are given too, a linear layer that is thrown away afterwards has to tell them from the student's: one
    example then says more of what its teachers see in it than its ratings alone (Romero et al. 2015, FitNets).
    """

    def __init__(self, student: Student, options: TrainingOptions, states: int = 0):
        super().__init__()
        self.student = student
        self.options = options
        self.projection = nn.Linear(student.head.in_features, states) if states else None
        if self.projection is not None:
            nn.init.zeros_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        self.epochs: list[np.ndarray] = []
        """Probabilities of the validation rows after each epoch, each float32 (n, points)."""
        self._outputs: dict[int, np.ndarray] = {}

    def on_fit_start(self) -> None:
        """Transformers hands models over in eval mode and Lightning keeps what it finds: dropout would stay off."""
        self.student.train()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Binary cross-entropy summed over the points and averaged over the rows, and the states' squared errors."""
        pooled_B2H = self.student.pooled(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        logits_BP = self.student.logits(pooled_B2H)
        losses_BP = nn.functional.binary_cross_entropy_with_logits(logits_BP, batch["targets"], reduction="none")
        loss = _LOSS_SCALE * losses_BP.sum(1).mean()
        if self.projection is None:
            return loss
        known_BS = ~batch["states"].isnan()
        errors_BS = self.projection(pooled_B2H).float() - batch["states"].nan_to_num()
        return loss + _STATE_WEIGHT * (errors_BS * known_BS).square().mean()

    def validation_step(self, batch: Batch, _: int) -> None:
        """Keep the probabilities of the rows."""
        found = self.student.probabilities(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        for row, values in zip(batch["rows"].tolist(), found.float().cpu().numpy(), strict=True):
            self._outputs[row] = values

    def on_validation_epoch_end(self) -> None:
        """Set the outputs of this epoch aside."""
        if self._outputs:
            self.epochs.append(np.stack([self._outputs[row] for row in sorted(self._outputs)]))
            self._outputs = {}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients; in bf16 Lightning itself refuses to beside a fused optimiser, needlessly."""
        if gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """AdamW, lower layers slower; linear warm-up, then linear to 0."""
        groups = parameter_groups(self.student, self.options)
        if self.projection is not None:
            rate = self.options.head_learning_rate
            groups.append({"params": [*self.projection.parameters()], "lr": rate, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_linear(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warmup_then_linear(steps: int) -> Any:
    """A factor on the peak rate for each step: up over the first tenth, then down to 0."""
    warmup = max(1, math.ceil(_WARMUP_SHARE * steps))
    return lambda step: min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))


def parameter_groups(student: Student, options: TrainingOptions) -> list[dict[str, Any]]:
    """The trainable parameters with their rates: the head fastest, each encoder layer slower than the one above.

    The embeddings stay as they are: with few labels most words are never seen, and the optimiser state of their vectors
    would cost as much as the rest of the model.
    """
    embeddings = getattr(student.encoder, "embeddings", None)
    if embeddings is not None:
        embeddings.requires_grad_(False)
    depth = {id(p): level for level, layer in enumerate(_layers(student.encoder)) for p in layer.parameters()}
    top = max(depth.values(), default=0)
    groups = []
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("head."):
            rate = options.head_learning_rate
        else:
            rate = options.learning_rate * options.layer_decay ** (top - depth.get(id(parameter), 0))
        decay = 0.01 if parameter.ndim > 1 else 0.0
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    return groups


def _layers(encoder: nn.Module) -> list[nn.Module]:
    """The stack of transformer layers, bottom first: the longest list of equal modules in the encoder."""
    stacks = [list(module) for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len, default=[])


class Progress(L.Callback):
    """Says every few seconds how far training is, with rows/s and the time that is left."""

    def __init__(self, what: str):
        self._what = what
        self._start = self._last = 0.0
        self._rows = 0

    def on_train_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, _: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Report, if the last report is some seconds old."""
        self._rows += len(batch["rows"])
        now = time.monotonic()
        if now - self._last < _LOG_SECONDS:
            return
        self._last = now
        steps, elapsed = int(trainer.estimated_stepping_batches), now - self._start
        left = elapsed / trainer.global_step * (steps - trainer.global_step)
        speed = self._rows / elapsed
        _log.info(
            "%s: step %d of %d, %.0f rows/s, at most %.0f s left", self._what, trainer.global_step, steps, speed, left
        )
