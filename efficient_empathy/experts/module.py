"""The Lightning side of an expert: the module, the data, and what watches a training."""

import csv
import io
import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from efficient_empathy.distill.module import warmup_then_linear
from efficient_empathy.experts.batches import Batch, OrderedBatches, Plan, PlannedBatches, Rows
from efficient_empathy.experts.loss import response_nll
from efficient_empathy.experts.options import FitOptions
from efficient_empathy.manifest import write_atomic

_log = logging.getLogger(__name__)
_LOG_SECONDS = 15.0
VALIDATION = "val/nll"
"""Mean negative log-likelihood a supervised token of the held-out examples, in nats."""


class TokenSums:
    """Sums of log-likelihood and tokens: a mean over tokens is not the mean of batches' means where these are ragged."""

    def __init__(self) -> None:
        self.nll, self.tokens = 0.0, 0

    def add(self, nll_B: Tensor, tokens_B: Tensor) -> None:
        """Count the rows of a batch."""
        self.nll += float(nll_B.sum())
        self.tokens += int(tokens_B.sum())

    def take(self) -> tuple[float, int]:
        """Both sums, and start again."""
        found = self.nll, self.tokens
        self.nll, self.tokens = 0.0, 0
        return found


class ResponseModule(L.LightningModule):
    """Trains whatever requires gradients in a causal language model that it is given, on responses alone."""

    def __init__(self, model: torch.nn.Module, options: FitOptions, seed: int):
        super().__init__()
        self.model, self.options, self.seed = model, options, seed
        self.sums, self._checked = TokenSums(), TokenSums()
        self.shares = True
        """Whether what all rows of a batch begin with is read once."""
        # Frozen weights are not in the checkpoints, so a strict load would miss them; what must be there is checked on loading.
        self.strict_loading = False

    def on_fit_start(self) -> None:
        """The mode is set here, not left to how the model was loaded: adapters' dropout is on, a base's own too if it has any."""
        self.model.train()

    def _nll(self, batch: Batch, share: bool) -> tuple[Tensor, Tensor]:
        return response_nll(self.model, batch["input_ids"], batch["attention_mask"], batch["labels"], share)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that move, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The batch's share of the mean over all supervised tokens of its step."""
        # Dropout depends on the batch's place alone, so that a resumed run draws what an uninterrupted one would.
        torch.manual_seed((self.seed * 1_000_003 + index) * 4096 + self.global_rank)
        nll_B, tokens_B = self._nll(batch, self.shares)
        self.sums.add(nll_B.detach(), tokens_B)
        # A batch without rows, at the end of an epoch, has its backward pass like the others.
        if not int(tokens_B.sum()):
            nll_B = nll_B + sum(parameter.sum() * 0.0 for parameter in self.trained().values())
        # Lightning divides by the batches of a step and takes the mean over devices: undone, to divide by the tokens of the step.
        return nll_B.sum() * (self.options.accumulate * self.trainer.world_size / batch["step_tokens"])

    def validation_step(self, batch: Batch, _: int) -> None:
        """Sum the held-out log-likelihood."""
        self._checked.add(*self._nll(batch, share=True))

    def on_validation_epoch_end(self) -> None:
        """Mean over the tokens of all batches and devices."""
        sums = torch.tensor(self._checked.take(), dtype=torch.float64, device="cpu").to(self.device, torch.float32)
        nll, tokens = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.log(VALIDATION, nll / tokens, sync_dist=False)

    def configure_optimizers(self) -> Any:
        """AdamW on what is trained; linear warm-up, then linear to 0."""
        options = self.options
        # Not fused: Lightning does not clip beside that in bf16, and an adapter is too small to feel it.
        optimizer = torch.optim.AdamW(
            self.trained().values(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_linear(int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained; the frozen base is where it was."""
        kept = self.trained()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A load that is not strict hides missing names: those that are trained must all be there."""
        missing = self.trained().keys() - checkpoint["state_dict"].keys()
        if missing:
            raise KeyError(f"the checkpoint lacks {len(missing)} trained parameters, e.g. {min(missing)}")


class ResponseData(L.LightningDataModule):
    """Rendered rows as the batches of every step."""

    def __init__(self, train: Rows, held_out: Rows, plan: Plan, steps: int):
        super().__init__()
        self.train, self.held_out, self.plan, self.steps = train, held_out, plan, steps

    def train_dataloader(self) -> PlannedBatches:
        """All steps of the training, as one pass that Lightning can go on with in its middle."""
        return PlannedBatches(self.train, self.plan, self.steps, self._rank)

    def val_dataloader(self) -> OrderedBatches:
        """The held-out rows once."""
        return OrderedBatches(self.held_out, self.plan.batch_size, self._rank, self.plan.ranks)

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0


class Resumable(L.Callback):
    """Writes a checkpoint every so often, between steps; where a validation follows a step, after it and with its figure."""

    def __init__(self, path: Path, seconds: float, validate_every: int):
        self._path, self._seconds, self._every = path, seconds, validate_every
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Save, if it is time."""
        step = trainer.global_step
        between = trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches == (
            trainer.accumulate_grad_batches - 1
        )
        if between and step % self._every:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save, if it is time; but not where the training was just ended, since a run that goes on would not know it."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.should_stop:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        # One clock decides for all devices: saving waits for every one of them.
        if not trainer.strategy.broadcast(time.monotonic() - self._last >= self._seconds):
            return
        self._last = time.monotonic()
        trainer.save_checkpoint(self._path)


class KeepBest(L.Callback):
    """Keeps the trained weights with the lowest held-out figure, and stops when it no longer falls."""

    def __init__(self, patience: int):
        self._patience = patience
        self.figures: list[tuple[int, float]] = []
        """Step and held-out figure of each measurement."""
        self._best: dict[str, Tensor] = {}

    @property
    def best(self) -> tuple[int, float]:
        """Step and figure of the best measurement."""
        return min(self.figures, key=lambda found: (found[1], found[0]))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Compare the new figure."""
        assert isinstance(module, ResponseModule)  # noqa: S101 - narrows the type for the checker
        figure = float(trainer.callback_metrics[VALIDATION])
        self.figures.append((trainer.global_step, figure))
        _log.info("step %d: %.4f nats a held-out token (perplexity %.2f)", *self.figures[-1], math.exp(figure))
        since = len(self.figures) - 1 - self.figures.index(self.best)
        if since == 0:
            self._best = {name: p.detach().clone() for name, p in module.trained().items()}
        if self._patience and since >= self._patience:
            trainer.should_stop = True

    def restore(self, module: ResponseModule) -> None:
        """Give the module its best weights."""
        with torch.no_grad():
            for name, parameter in module.trained().items():
                parameter.copy_(self._best[name])

    def state_dict(self) -> dict[str, Any]:
        """Figures and weights, for the checkpoint."""
        return {"figures": list(self.figures), "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Figures and weights of the run that is continued."""
        self.figures, self._best = [(step, figure) for step, figure in state["figures"]], state["best"]


@dataclass(frozen=True)
class _Line:
    step: int
    train_nll: float
    tokens: int
    learning_rate: float
    tokens_per_second: float


class CsvLog(L.Callback):
    """A line a step in ``log.csv``, and every few seconds a word on how far it is, with tokens/s and the time that is left."""

    def __init__(self, path: Path, steps: int, what: str):
        self._path, self._steps, self._what = path, steps, what
        self._lines: list[_Line] = []
        self._clock = self._spoken = time.monotonic()
        self._begun: tuple[float, int] = (self._clock, 0)

    def on_train_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """Start the clock."""
        self._clock = self._spoken = time.monotonic()
        self._begun = (self._clock, trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """Do not count the time of a validation as training."""
        self._clock = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        """Note the step."""
        assert isinstance(module, ResponseModule)  # noqa: S101 - narrows the type for the checker
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        now = time.monotonic()
        nll, tokens = module.sums.take()
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._lines.append(_Line(trainer.global_step, nll / max(1, tokens), tokens, rate, tokens / (now - self._clock)))
        self._clock = now
        module.log("train/nll", nll / max(1, tokens), on_step=True, on_epoch=False, batch_size=1)
        if now - self._spoken >= _LOG_SECONDS:
            self._spoken = now
            self._say(trainer.global_step, now)

    def _say(self, step: int, now: float) -> None:
        begun, first = self._begun
        left = (now - begun) / max(1, step - first) * (self._steps - step)
        recent = self._lines[-20:]
        nll = sum(line.train_nll * line.tokens for line in recent) / max(1, sum(line.tokens for line in recent))
        text = "%s: step %d of %d, %.3f nats a token, %.0f supervised tokens/s, at most %.0f s left"
        _log.info(text, self._what, step, self._steps, nll, recent[-1].tokens_per_second, left)

    def on_train_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """Write the file."""
        if trainer.is_global_zero:
            write_atomic(self._path, self._text())

    def _text(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", "train/nll", "supervised_tokens", "learning_rate", "tokens_per_second"])
        for line in self._lines:
            rate, speed = f"{line.learning_rate:.8g}", f"{line.tokens_per_second:.1f}"
            writer.writerow([line.step, f"{line.train_nll:.8f}", line.tokens, rate, speed])
        return text.getvalue().encode()

    def state_dict(self) -> dict[str, Any]:
        """The lines so far, for the checkpoint."""
        return {"lines": [list(vars(line).values()) for line in self._lines]}

    def load_state_dict(self, state: Mapping[str, Iterable[Any]]) -> None:
        """The lines of the run that is continued."""
        self._lines = [_Line(*values) for values in state["lines"]]
