"""Training one student on targets: from encoded rows to tuned weights and its outputs on the validation rows."""

import gc
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from efficient_empathy.distill.batches import EncodedRows, ordered_loader, training_loader
from efficient_empathy.distill.module import Progress, StudentModule
from efficient_empathy.distill.settings import TrainingOptions
from efficient_empathy.distill.student import Student
from efficient_empathy.environment import computes_bf16
from efficient_empathy.gpu_memory import within_memory
from efficient_empathy.scorer.ranks import spearman

_RESAMPLES = 200
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What training gave."""

    outputs: list[np.ndarray]
    """Probabilities of the validation rows after each epoch, each float32 (n, points); empty without such rows."""
    best_epoch: int
    """Index of the epoch whose weights the student now has."""


class _KeepChosen(L.Callback):
    """Keeps the weights of the epoch that ``choose_epoch`` chooses; stops when the figure no longer rises."""

    def __init__(self, scores: np.ndarray, patience: int):
        self.scores, self.patience = scores, patience
        self.expected: list[np.ndarray] = []
        self.figures: list[float] = []
        self.chosen = 0
        self.weights: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Not on_validation_epoch_end: callbacks hear of that before the module has set its outputs aside.
        assert isinstance(module, StudentModule)  # noqa: S101 - narrows the type for the checker
        probabilities = torch.from_numpy(module.epochs[-1]).to(module.device)
        self.expected.append(module.student.expected(probabilities).cpu().numpy())
        self.figures.append(mean_spearman(self.expected[-1], self.scores))
        _log.info("epoch %d: mean Spearman %.3f on the validation rows", len(self.figures), self.figures[-1])
        # Once passed over, an epoch stays so: only a newer one can become the best, and is then chosen itself.
        self.chosen = choose_epoch(self.expected, self.scores)
        if self.chosen == len(self.figures) - 1:
            self.weights = {name: value.detach().clone() for name, value in module.student.state_dict().items()}
        if len(self.figures) - 1 - int(np.argmax(self.figures)) >= self.patience:
            trainer.should_stop = True


def train_student(
    student: Student,
    rows: EncodedRows,
    validation: EncodedRows | None,
    options: TrainingOptions,
    seed: int,
    what: str = "training",
) -> Trained:
    """Tune a student in place.

    Args:
        student: the model; afterwards it has the weights of the epoch that ``choose_epoch`` chooses, or of the last one without
            validation rows.
        rows: what it learns from; targets are ``exceedances`` or probabilities of the same kind. States, where there are any, are
            learnt from too.
        validation: rows that choose the epoch; None trains all epochs.
        options: epochs, rates and the like.
        seed: of the order of rows and of dropout.
        what: names this training in progress lines.
    """
    student.start_head_at(rows.targets.mean(0).numpy())
    module = StudentModule(student, options, 0 if rows.states is None else rows.states.shape[1])
    callbacks: list[L.Callback] = [Progress(what)]
    if validation is not None:
        keep = _KeepChosen(student.expected(validation.targets).numpy(), options.patience)
        callbacks.append(keep)
    loader = training_loader(rows, options.batch_size, seed)
    checks = None if validation is None else ordered_loader(validation, 64)
    fit_quietly(module, loader, checks, options.epochs, seed, callbacks)
    student.cpu().eval()
    if validation is None:
        return Trained([], options.epochs - 1)
    student.load_state_dict(keep.weights)
    return Trained(module.epochs, keep.chosen)


def fit_quietly(
    module: L.LightningModule, loader: Any, validation: Any, epochs: int, seed: int, callbacks: list[L.Callback]
) -> None:
    """Run Lightning's loop on one device, without its files, bars and remarks: progress is our callbacks' matter."""
    with quiet():
        L.seed_everything(seed, workers=True, verbose=False)
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            precision=choose_precision(),
            gradient_clip_val=1.0,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        with interruptible(), within_memory("use a shorter --max-length or a smaller --backbone."):
            trainer.fit(module, loader, validation)
    # Trainer and module hold one another, and with them gradients and optimiser state worth several models.
    trainer = None
    gc.collect()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a training as ``KeyboardInterrupt``: Lightning ends the process by itself, and leaves the signal ignored.

    SIGTERM ends the process with status 143, as it would have without Lightning, whose own end looks like success.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        _log.warning("stopped by SIGTERM before it was done. Run the same command again.")
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from None


def choose_epoch(epochs: Sequence[np.ndarray], scores: np.ndarray) -> int:
    """The last epoch that is not clearly worse than the best: the rate has fallen furthest there.

    A hundred held-out rows rank epochs by chance; the one that happens to lead is often an early one. Clearly worse is: by more
    than one standard error of the difference in mean Spearman, by a bootstrap of the rows (after the one-standard-error rule of
    Breiman et al. 1984).

    Args:
        epochs: outputs for the validation rows after each epoch, each (n, d).
        scores: the judge's scores of the rows, (n, d).

    Returns:
        Its index.
    """
    best = int(np.argmax([mean_spearman(found, scores) for found in epochs]))
    draws = np.random.default_rng(0).integers(0, len(scores), (_RESAMPLES, len(scores)))

    def in_draws(epoch: int) -> np.ndarray:
        return np.array([mean_spearman(epochs[epoch][rows], scores[rows]) for rows in draws])

    for epoch in range(len(epochs) - 1, best, -1):
        behind = mean_spearman(epochs[best], scores) - mean_spearman(epochs[epoch], scores)
        if behind <= (in_draws(best) - in_draws(epoch)).std():
            return epoch
    return best


def mean_spearman(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean over the dimensions of Spearman's rank correlation of two (n, d) arrays."""
    return float(np.mean([spearman(found[:, d], expected[:, d]) for d in range(expected.shape[1])]))


def choose_precision(device: str | None = None) -> Any:
    """Lightning's name of the precision to train in: bf16 where the device computes in it, fp32 elsewhere.

    Args:
        device: ``cpu`` or ``cuda``; None for the GPU where there is one.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16-mixed" if computes_bf16(torch, chosen) else "32-true"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's remarks on devices and workers out of the log; its warnings that matter here are our own checks."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
