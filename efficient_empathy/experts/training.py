"""``train-expert``: from a subset to an adapter that anyone can load with PEFT."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.artifact import LOG_FILE, Expert, write_expert
from efficient_empathy.experts.bases import find_base, load_base
from efficient_empathy.experts.card import expert_card
from efficient_empathy.experts.dropout import draw_bytes
from efficient_empathy.experts.fitting import (
    SAVE_SECONDS,
    Prepared,
    Run,
    data_facts,
    fit_module,
    prepare_rows,
    result_facts,
)
from efficient_empathy.experts.models import choose_device, linears_beside_text
from efficient_empathy.experts.module import ResponseModule
from efficient_empathy.experts.options import ExpertOptions, LoraOptions
from efficient_empathy.experts.rendering import Renderer
from efficient_empathy.experts.subsets import choose


@dataclass(frozen=True)
class ExpertRequest:
    """What ``ee-cli train-expert`` was asked for."""

    data: tuple[str, ...]
    """A subset folder, or dialogues of any kind."""
    out: Path
    """The expert folder to write."""
    options: ExpertOptions = field(default_factory=ExpertOptions)
    """How to train."""
    save_seconds: float = SAVE_SECONDS
    """Seconds between the checkpoints that a killed run goes on from."""


def train_expert(request: ExpertRequest) -> Expert | None:
    """Train an adapter and write its folder.

    Run again after a kill, it goes on from the last checkpoint, step for step as if it had not been killed.

    Returns:
        What the folder says of the expert; None in all but one of the processes of several devices.

    Raises:
        EmpathyError: the folder exists already, there is nothing to train on, the base cannot be loaded, or it reads fewer tokens
            than an example may have.
    """
    if request.out.exists():
        raise EmpathyError(f"'{request.out}' is already there. Choose another folder with -o, or remove it first.")
    prepared = prepare(request)
    run = Run(request.out, request.options, request.save_seconds)
    module = ResponseModule(prepared.model, request.options.fit, request.options.seed)
    best, first = fit_module(run, prepared, module)
    expert = Expert(
        base=prepared.base.describe(),
        renderer=prepared.renderer.describe(),
        options=asdict(request.options),
        data=data_facts(request.data, prepared),
        result=result_facts(prepared, module, best),
    )
    if not first:
        return None  # another device's process writes it
    write_expert(module.model, expert, expert_card(expert, request.out.name), request.out, run.work / LOG_FILE)
    shutil.rmtree(run.work)
    return expert


def prepare(request: ExpertRequest) -> Prepared:
    """Read, render and plan; load the base and put a fresh adapter on it.

    Raises:
        EmpathyError: as ``choose``, ``load_base`` and ``prepare_rows`` do.
    """
    options = request.options
    base = find_base(options.base)
    chosen = choose(request.data, options.control, options.holdout, options.seed)
    model, tokenizer = load_base(base, choose_device(options.where.device), options.where.four_bit)
    renderer = Renderer(tokenizer, options.max_tokens, options.system)
    return prepare_rows(base, chosen, add_adapter(model, options.lora, options), renderer, options)


def add_adapter(model: Any, lora: LoraOptions, options: ExpertOptions) -> Any:
    """Put a LoRA adapter on all linears of a model that see text but its head; nothing else is trained.

    Its first weights are drawn from the seed.

    Raises:
        EmpathyError: PEFT has no adapter for such a model.
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
        exclude_modules=linears_beside_text(model) or None,
        task_type="CAUSAL_LM",
    )
    model.config.use_cache = False
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise EmpathyError(
            f"--base: PEFT cannot put an adapter on all linears of this model: {error} Choose another base."
        ) from error
    if adapted.device.type == "cpu":
        draw_bytes(adapted)
    return adapted
