"""What trainings of language models share: rows and steps, Lightning's loop with checkpoints, and what is said of it afterwards."""

import gc
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning as L

from efficient_empathy.distill.training import choose_precision, interruptible, quiet
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.artifact import LOG_FILE
from efficient_empathy.experts.bases import Base
from efficient_empathy.experts.batches import Plan, Rows
from efficient_empathy.experts.checkpoints import SafeCheckpointIO
from efficient_empathy.experts.cpu_training import faster_on_cpu
from efficient_empathy.experts.models import choose_device, position_limit
from efficient_empathy.experts.module import CsvLog, KeepBest, ResponseData, ResponseModule, Resumable
from efficient_empathy.experts.options import DeviceOptions, FitOptions
from efficient_empathy.experts.rendering import Renderer
from efficient_empathy.experts.subsets import Chosen, data_name, some
from efficient_empathy.gpu_memory import within_memory
from efficient_empathy.manifest import canonical_json, sha256_bytes, versions

_log = logging.getLogger(__name__)
_SMALLER = (
    "lower --batch-size and raise --accumulate by as much, which trains the same; or try --gradient-checkpointing or "
    "--load-in-4bit."
)
SAVE_SECONDS = 60.0
"""Between the checkpoints that a killed run goes on from."""


class TrainingOptions(Protocol):
    """What the options of every training hold."""

    @property
    def fit(self) -> FitOptions:
        """Length and rate."""

    @property
    def where(self) -> DeviceOptions:
        """Where it runs."""

    @property
    def seed(self) -> int:
        """Of whatever is drawn."""

    @property
    def validation_examples(self) -> int:
        """Held-out examples that are measured, at most."""


@dataclass(frozen=True)
class Run:
    """One training: what it is called, how, and where it keeps its checkpoints."""

    out: Path
    """The folder that it will write."""
    options: Any
    """A dataclass that has all of ``TrainingOptions``."""
    save_seconds: float = SAVE_SECONDS
    """Seconds between checkpoints."""
    beside: tuple[str, ...] = ()
    """Hashes of what it depends on beside options, data, base and template."""

    @property
    def work(self) -> Path:
        """Where checkpoints are kept until the folder is there."""
        return self.out.with_name(self.out.name + ".work")


@dataclass(frozen=True)
class Planned:
    """Rendered rows, and which of them go through the model when."""

    train: Rows
    held_out: Rows
    plan: Plan
    steps: int


@dataclass(frozen=True)
class Prepared:
    """Everything of a training but the weights."""

    base: Base
    chosen: Chosen
    train: Rows
    held_out: Rows
    plan: Plan
    steps: int
    model: Any
    """The base with what is to be trained in it."""
    renderer: Renderer


def prepare_rows(base: Base, chosen: Chosen, model: Any, renderer: Renderer, options: TrainingOptions) -> Prepared:
    """Render what was chosen, and plan the steps; see ``plan_rows``.

    Raises:
        EmpathyError: examples may be longer than what the model reads, or nothing is left to train on or to measure on.
    """
    limit = position_limit(model)
    if limit is not None and renderer.max_tokens > limit:
        raise EmpathyError(
            f"prompt and response together may have {renderer.max_tokens} tokens, but '{base.name}' reads {limit} at most. "
            f"Train experts on it with --max-length {limit}."
        )
    found = plan_rows(chosen, renderer, options)
    return Prepared(base=base, chosen=chosen, model=model, renderer=renderer, **vars(found))


def plan_rows(chosen: Chosen, renderer: Renderer, options: TrainingOptions) -> Planned:
    """Render what was chosen, and plan the steps.

    Raises:
        EmpathyError: nothing is left to train on or to measure on.
    """
    fit, ranks = options.fit, options.where.devices
    train = Rows.render(chosen.train, renderer)
    held_out = Rows.render(some(chosen.held_out, options.validation_examples), renderer)
    if not train.rows or not held_out.rows:
        side = (
            "train on" if not train.rows else "measure on: raise --holdout, or name the rows' conversations (conv_id)"
        )
        raise EmpathyError(
            f"of {len(chosen.train)} examples and {len(chosen.held_out)} held out none is left to {side} "
            f"(refused: {train.refused or held_out.refused or 'none'})."
        )
    plan = Plan(train.lengths, fit.batch_size, fit.accumulate, options.seed, ranks)
    per_epoch = -(-chosen.own_train // (fit.batch_size * fit.accumulate * ranks))
    steps = max(1, math.ceil(per_epoch * fit.epochs))
    return Planned(train, held_out, plan, min(steps, fit.max_steps or steps))


def fit_module(run: Run, prepared: Prepared, module: ResponseModule) -> tuple[KeepBest, bool]:
    """Train what the module trains; afterwards it has its best weights, in eval mode.

    Run again after a kill, it goes on from the last checkpoint, step for step as if it had not been killed.

    Returns:
        The held-out figures, and whether this process is the one that writes: of several devices the first.
    """
    fit, where = run.options.fit, run.options.where
    data = ResponseData(prepared.train, prepared.held_out, prepared.plan, prepared.steps)
    validate_every = max(1, prepared.steps // fit.validations)
    checkpoint = run.work / f"last-{_key(run, prepared)}.safetensors"
    best = KeepBest(fit.patience)
    run.work.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_file():
        _log.info("going on from %s", checkpoint)
    elif leftovers := list(run.work.glob("last-*.safetensors")):
        _log.warning("%s is of another run (data, options or versions differ): starting over", leftovers[0])
    device = choose_device(where.device)
    precision = choose_precision(device)
    with quiet(), faster_on_cpu(module.model, precision == "bf16-mixed"):
        trainer = L.Trainer(
            max_steps=prepared.steps,
            max_epochs=1,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=where.devices,
            strategy=where.strategy,
            precision=precision,
            accumulate_grad_batches=fit.accumulate,
            gradient_clip_val=1.0,
            val_check_interval=validate_every * fit.accumulate,
            use_distributed_sampler=False,
            callbacks=[
                CsvLog(run.work / LOG_FILE, prepared.steps, run.out.name),
                best,
                Resumable(checkpoint, run.save_seconds, validate_every),
            ],
            plugins=[SafeCheckpointIO()],
            logger=_tensorboard(run.work),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        with interruptible(), within_memory(_SMALLER):
            if checkpoint.is_file():
                trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint))
            else:
                # A fresh adapter changes nothing: this is the base.
                trainer.validate(module, datamodule=data, verbose=False)
                trainer.fit(module, datamodule=data)
            if best.figures[-1][0] != trainer.global_step:
                trainer.validate(module, datamodule=data, verbose=False)
        first = trainer.is_global_zero
    trainer = None
    gc.collect()
    best.restore(module)
    module.model.eval()
    return best, first


def _key(run: Run, prepared: Prepared) -> str:
    """Hash of everything that a checkpoint must have been made with to be gone on from."""
    depends = {
        "options": asdict(run.options),
        "data": prepared.chosen.digest,
        "base": prepared.base.digest,
        "template": prepared.renderer.template_hash,
        "beside": list(run.beside),
        "versions": versions("torch", "transformers", "peft", "lightning"),
    }
    return sha256_bytes(canonical_json(depends))[:16]


def _tensorboard(folder: Path) -> Any:
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(str(folder), name="tensorboard", version="")
    except ModuleNotFoundError:
        return False


def data_facts(data: Sequence[str], prepared: Prepared) -> dict[str, Any]:
    """What a training read, used, refused and cut."""
    return {
        "from": [data_name(name) for name in data],
        "read": prepared.chosen.read,
        "rejected": prepared.chosen.rejected,
        "selection": prepared.chosen.selection,
        "digest": prepared.chosen.digest,
        "examples": len(prepared.train.rows),
        "held_out": len(prepared.chosen.held_out),
        "measured": len(prepared.held_out.rows),
        "refused": prepared.train.refused,
        "cut": prepared.train.cut,
        "supervised_tokens": prepared.train.supervised,
        "tokens": int(prepared.train.lengths.sum()),
    }


def result_facts(prepared: Prepared, module: ResponseModule, best: KeepBest) -> dict[str, Any]:
    """Steps, and held-out figures before and after."""
    trained = sum(p.numel() for p in module.trained().values())
    everything = sum(p.numel() for p in module.model.parameters())
    step, figure = best.best
    return {
        "steps": best.figures[-1][0],
        "planned_steps": prepared.steps,
        "best_step": step,
        "base_val_nll": best.figures[0][1],
        "val_nll": figure,
        "val_perplexity": math.exp(figure),
        "measurements": [list(found) for found in best.figures],
        "trained_parameters": trained,
        "base_parameters": everything - trained,
    }
