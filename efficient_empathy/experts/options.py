"""The options of an expert's training: one object for Python, the command line, the YAML file and the manifest."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.bases import DEFAULT_BASE
from efficient_empathy.experts.rendering import DEFAULT_SYSTEM
from efficient_empathy.ranges import within

Control = Literal["none", "random", "full", "union"]
CONTROLS: tuple[str, ...] = get_args(Control)


@dataclass(frozen=True)
class LoraOptions:
    """The adapter; the defaults are those of the paper's released script."""

    rank: int = 8
    """Rank of the two matrices that stand beside each linear, 1 to 1024."""
    alpha: float = 32.0
    """Their product counts alpha / rank times (alpha / √rank with rsLoRA), over 0."""
    dropout: float = 0.1
    """On what enters the adapter, while training, 0 to 0.9."""
    dora: bool = False
    """Weights split into length and direction (DoRA, Liu et al. 2024); slower, sometimes better at low rank."""
    rslora: bool = False
    """Scaled by √rank (rsLoRA, Kalajdzievski 2023); matters at high ranks."""

    def __post_init__(self) -> None:
        within("lora_rank", self.rank, 1, 1024)
        within("lora_alpha", self.alpha, 1e-3, 1e6)
        within("lora_dropout", self.dropout, 0.0, 0.9)


@dataclass(frozen=True)
class FitOptions:
    """How long and how fast an adapter is trained."""

    epochs: float = 1.0
    """Passes over the training examples, over 0 and up to 100; ``max_steps`` may end it sooner."""
    max_steps: int | None = None
    """Optimiser steps at most, 1 or more; None leaves it to ``epochs``."""
    batch_size: int = 4
    """Examples that go through the model at once, on each device, 1 to 4096; memory grows with it."""
    accumulate: int = 4
    """Batches a step, 1 to 4096: more examples a step in the same memory, with the same gradients as one big batch."""
    learning_rate: float = 5e-4
    """Peak rate, over 0 and up to 1: up over the first tenth of the steps, then down to 0 linearly."""
    weight_decay: float = 0.0
    """AdamW's, 0 to 1."""
    validations: int = 4
    """How often the held-out examples are measured, evenly spread, 1 to 1000; the best state is what is written."""
    patience: int = 2
    """Measurements without a better one before training stops, 1 or more; 0 never stops it early."""
    gradient_checkpointing: bool = False
    """Compute hidden states again instead of keeping them: about a third slower, in a fraction of the memory."""

    def __post_init__(self) -> None:
        within("epochs", self.epochs, 1e-6, 100)
        within("batch_size", self.batch_size, 1, 4096)
        within("accumulate", self.accumulate, 1, 4096)
        within("learning_rate", self.learning_rate, 1e-9, 1.0)
        within("weight_decay", self.weight_decay, 0.0, 1.0)
        within("validations", self.validations, 1, 1000)
        within("patience", self.patience, 0, 1000)
        if self.max_steps is not None:
            within("max_steps", self.max_steps, 1, 10**9)


@dataclass(frozen=True)
class DeviceOptions:
    """Where it runs; no result depends on it but for the last digits."""

    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto``: a GPU where torch sees one."""
    devices: int = 1
    """GPUs on this machine, 1 or more; Lightning's data-parallel strategies share the examples of a step among them."""
    strategy: str = "auto"
    """Lightning's name of the strategy for several GPUs, e.g. ``ddp``."""
    four_bit: bool = False
    """Hold the base in 4 bits (QLoRA); needs a GPU and bitsandbytes."""

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise EmpathyError(f"device must be auto, cpu or cuda, not '{self.device}'.")
        within("devices", self.devices, 1, 1024)


@dataclass(frozen=True)
class ExpertOptions:
    """From a subset to an adapter."""

    base: str = DEFAULT_BASE
    """``smollm2``, a Hub id, a folder with safetensors, or a GGUF file."""
    control: Control = "none"
    """``random``: as many examples drawn from all subsets; ``full``: all subsets; ``union``: all but the discarded. All take the
    steps and the seed that the subset itself would, so what differs is the choice of data alone."""
    system: str | None = DEFAULT_SYSTEM
    """Instruction before every dialogue; None leaves it to the model's template."""
    max_tokens: int = 512
    """Prompt and response together, 32 to 1,000,000; what is longer loses its oldest context."""
    holdout: float = 0.05
    """Share of the conversations that is never trained on, 0.001 to 0.5, the same ones for every subset and control."""
    validation_examples: int = 128
    """Held-out examples that are measured during training, at most, 1 or more."""
    seed: int = 0
    """Of the adapter's first weights, the order of the examples, dropout and the controls' draws, 0 to 2,147,483,647."""
    lora: LoraOptions = field(default_factory=LoraOptions)
    """The adapter."""
    fit: FitOptions = field(default_factory=FitOptions)
    """Length and rate of training."""
    where: DeviceOptions = field(default_factory=DeviceOptions)
    """Where it runs."""

    def __post_init__(self) -> None:
        if self.control not in CONTROLS:
            raise EmpathyError(f"control must be one of {', '.join(CONTROLS)}, not '{self.control}'.")
        within("max_tokens", self.max_tokens, 32, 1_000_000)
        within("holdout", self.holdout, 0.001, 0.5)
        within("validation_examples", self.validation_examples, 1, 10**9)
        within("seed", self.seed, 0, 2**31 - 1)
