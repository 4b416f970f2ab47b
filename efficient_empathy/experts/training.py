"""``train-expert``: from a subset to an adapter that anyone can load with PEFT."""

import gc
import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L

from efficient_empathy.distill.training import choose_precision, quiet
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.artifact import LOG_FILE, Expert, write_expert
from efficient_empathy.experts.bases import Base, find_base, load_base
from efficient_empathy.experts.batches import Plan, Rows
from efficient_empathy.experts.card import expert_card
from efficient_empathy.experts.checkpoints import SafeCheckpointIO
from efficient_empathy.experts.dropout import draw_bytes
from efficient_empathy.experts.models import choose_device
from efficient_empathy.experts.module import CsvLog, KeepBest, ResponseData, ResponseModule, Resumable
from efficient_empathy.experts.options import ExpertOptions, LoraOptions
from efficient_empathy.experts.rendering import Renderer
from efficient_empathy.experts.subsets import Chosen, choose
from efficient_empathy.manifest import canonical_json, sha256_bytes, versions

_log = logging.getLogger(__name__)
_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class ExpertRequest:
    """What ``ee-cli train-expert`` was asked for."""

    data: tuple[str, ...]
    """A subset folder, or dialogues of any kind."""
    out: Path
    """The expert folder to write."""
    options: ExpertOptions = field(default_factory=ExpertOptions)
    """How to train."""
    save_seconds: float = _SAVE_SECONDS
    """Seconds between the checkpoints that a killed run goes on from."""

    @property
    def work(self) -> Path:
        """Where checkpoints are kept until the expert is there."""
        return self.out.with_name(self.out.name + ".work")


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
    """The base with a fresh adapter."""
    renderer: Renderer


def train_expert(request: ExpertRequest) -> Expert:
    """Train an adapter and write its folder.

    Run again after a kill, it goes on from the last checkpoint, step for step as if it had not been killed.

    Raises:
        EmpathyError: the folder exists already, there is nothing to train on, or the base cannot be loaded.
    """
    if request.out.exists():
        raise EmpathyError(f"'{request.out}' is already there. Choose another folder with -o, or remove it first.")
    prepared = prepare(request)
    module, best, first = _fit(request, prepared)
    expert = Expert(
        base=prepared.base.describe(),
        renderer=prepared.renderer.describe(),
        options=asdict(request.options),
        data=_data_facts(request, prepared),
        result=_result(prepared, module, best),
    )
    if not first:
        return expert  # another device's process writes it
    request.out.mkdir(parents=True)
    shutil.copy(request.work / LOG_FILE, request.out / LOG_FILE)
    write_expert(module.model, expert, expert_card(expert, request.out.name), request.out)
    shutil.rmtree(request.work)
    return expert


def prepare(request: ExpertRequest) -> Prepared:
    """Read, render and plan; load the base and put a fresh adapter on it."""
    options, fit = request.options, request.options.fit
    base = find_base(options.base)
    chosen = choose(request.data, options.control, options.holdout, options.seed)
    device = choose_device(options.where.device)
    model, tokenizer = load_base(base, device, options.where.four_bit)
    renderer = Renderer(tokenizer, options.max_tokens, options.system)
    train = Rows.render(chosen.train, renderer)
    held_out = Rows.render(_measured(chosen, options), renderer)
    if not train.rows or not held_out.rows:
        side = "train on" if not train.rows else "measure on: raise --holdout"
        raise EmpathyError(
            f"of {len(chosen.train)} examples and {len(chosen.held_out)} held out none is left to {side} "
            f"(refused: {train.refused or held_out.refused or 'none'})."
        )
    ranks = options.where.devices
    plan = Plan(train.lengths, fit.batch_size, fit.accumulate, options.seed, ranks)
    per_epoch = -(-chosen.own_train // (fit.batch_size * fit.accumulate * ranks))
    steps = max(1, math.ceil(per_epoch * fit.epochs))
    steps = min(steps, fit.max_steps or steps)
    return Prepared(base, chosen, train, held_out, plan, steps, add_adapter(model, options.lora, options), renderer)


def add_adapter(model: Any, lora: LoraOptions, options: ExpertOptions) -> Any:
    """Put a LoRA adapter on all linears of a model but its head; nothing else is trained.

    Its first weights are drawn from the seed.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    L.seed_everything(options.seed, workers=True, verbose=False)
    checkpointing = {"use_reentrant": False}
    if options.where.four_bit:
        model = prepare_model_for_kbit_training(
            model, options.fit.gradient_checkpointing, gradient_checkpointing_kwargs=checkpointing
        )
    elif options.fit.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model.config.use_cache = False
    adapted = get_peft_model(model, config)
    if adapted.device.type == "cpu":
        draw_bytes(adapted)
    return adapted


def _measured(chosen: Chosen, options: ExpertOptions) -> Sequence[Any]:
    """Some of the held-out examples, the same ones for any seed."""
    ranked = sorted(chosen.held_out, key=lambda example: sha256_bytes(example.id.encode()))
    return ranked[: options.validation_examples]


def _fit(request: ExpertRequest, prepared: Prepared) -> tuple[ResponseModule, KeepBest, bool]:
    options, fit, where = request.options, request.options.fit, request.options.where
    module = ResponseModule(prepared.model, fit, options.seed)
    data = ResponseData(prepared.train, prepared.held_out, prepared.plan, prepared.steps)
    validate_every = max(1, prepared.steps // fit.validations)
    checkpoint = request.work / f"last-{_key(request, prepared)}.safetensors"
    best = KeepBest(fit.patience)
    request.work.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_file():
        _log.info("going on from %s", checkpoint)
    elif leftovers := list(request.work.glob("last-*.safetensors")):
        _log.warning("%s is of another run (data, options or versions differ): starting over", leftovers[0])
    with quiet():
        trainer = L.Trainer(
            max_steps=prepared.steps,
            max_epochs=1,
            accelerator="gpu" if choose_device(where.device) == "cuda" else "cpu",
            devices=where.devices,
            strategy=where.strategy,
            precision=choose_precision() if choose_device(where.device) == "cuda" else _cpu_precision(),
            accumulate_grad_batches=fit.accumulate,
            gradient_clip_val=1.0,
            val_check_interval=validate_every * fit.accumulate,
            use_distributed_sampler=False,
            callbacks=[
                CsvLog(request.work / LOG_FILE, prepared.steps, request.out.name),
                best,
                Resumable(checkpoint, request.save_seconds, validate_every),
            ],
            plugins=[SafeCheckpointIO()],
            logger=_tensorboard(request.work),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        if checkpoint.is_file():
            trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint))
        else:
            trainer.validate(
                module, datamodule=data, verbose=False
            )  # a fresh adapter changes nothing: this is the base
            trainer.fit(module, datamodule=data)
        if best.figures[-1][0] != trainer.global_step:
            trainer.validate(module, datamodule=data, verbose=False)
        first = trainer.is_global_zero
    trainer = None
    gc.collect()
    best.restore(module)
    module.model.eval()
    return module, best, first


def _cpu_precision() -> Any:
    """bf16 where this CPU computes in it."""
    import torch

    return "32-true" if torch.cuda.is_available() else choose_precision()


def _key(request: ExpertRequest, prepared: Prepared) -> str:
    """Hash of everything that a checkpoint must have been made with to be gone on from."""
    depends = {
        "options": asdict(request.options),
        "data": prepared.chosen.digest,
        "base": prepared.base.digest,
        "template": prepared.renderer.template_hash,
        "versions": versions("torch", "transformers", "peft", "lightning"),
    }
    return sha256_bytes(canonical_json(json.loads(json.dumps(depends))))[:16]


def _tensorboard(folder: Path) -> Any:
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(str(folder), name="tensorboard", version="")
    except ModuleNotFoundError:
        return False


def _data_facts(request: ExpertRequest, prepared: Prepared) -> dict[str, Any]:
    return {
        "from": [Path(name).name or name for name in request.data],
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


def _result(prepared: Prepared, module: ResponseModule, best: KeepBest) -> dict[str, Any]:
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
