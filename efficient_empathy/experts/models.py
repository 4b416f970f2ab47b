"""Language models as every other part takes them: a base, an expert or a mixture, with the renderer that goes with it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.artifact import KIND as EXPERT
from efficient_empathy.experts.artifact import attach_expert
from efficient_empathy.experts.bases import DEFAULT_BASE, find_base, load_base
from efficient_empathy.experts.rendering import DEFAULT_SYSTEM, Renderer
from efficient_empathy.manifest import MANIFEST, read_manifest

_LOADERS = {
    EXPERT: "efficient_empathy.experts.models:_load_expert",
    "mixture": "efficient_empathy.moe.artifact:load_mixture",
}
"""What reads a folder of each kind; named and not imported, since the mixture stands on this package."""


@dataclass
class LanguageModel:
    """A model that can be asked for answers and for likelihoods."""

    name: str
    """Shown in tables: the name of the folder or of the base."""
    model: Any
    """Called as a causal language model of transformers; in eval mode."""
    renderer: Renderer
    """From turns to its tokens."""
    description: dict[str, Any]
    """Kind, name and hashes, for manifests."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded."""

    base: str | None = None
    """Where the base of an expert or mixture is, if not where it was when these were trained."""
    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto``: a GPU where torch sees one."""
    system: str | None = DEFAULT_SYSTEM
    """Instruction of a base model; experts and mixtures bring the one that they were trained with."""
    max_tokens: int = 512
    """Prompt and answer together, for a base model."""


def load_language_model(source: str = DEFAULT_BASE, options: LoadOptions | None = None) -> LanguageModel:
    """Load a base model by name, or an expert or a mixture from its folder.

    Args:
        source: a folder written by ``train-expert`` or ``train-moe``; or what ``find_base`` takes.
        options: base, device, instruction.

    Raises:
        EmpathyError: a file of the folder has changed, the base is another than it was trained on, or nothing can be loaded.
    """
    options = options or LoadOptions()
    device = choose_device(options.device)
    folder = Path(source)
    if (folder / MANIFEST).is_file():
        kind = str(read_manifest(folder)["kind"])
        if kind not in _LOADERS:
            raise EmpathyError(f"'{source}' is a folder of kind '{kind}': expected one of {', '.join(_LOADERS)}.")
        module, _, function = _LOADERS[kind].partition(":")
        load: Callable[[Path, str | None, str], LanguageModel] = getattr(importlib.import_module(module), function)
        return load(folder, options.base, device)
    if options.base not in (None, source):
        raise EmpathyError(
            f"--base {options.base}: that is what an expert or a mixture stands on, and '{source}' is neither. Name a base model "
            "with --model."
        )
    base = find_base(source)
    model, tokenizer = load_base(base, device)
    renderer = Renderer(tokenizer, options.max_tokens, options.system)
    return LanguageModel(base.name, model, renderer, {"kind": "base", "base": base.describe()})


def position_limit(model: Any) -> int | None:
    """Tokens that a model of transformers can read at most; None where its configuration does not say."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


def linears_beside_text(model: Any) -> list[str]:
    """Names of a model's linears that never see text, such as those of its image tower; without the head over the vocabulary."""
    inside, head = set(model.get_decoder().modules()), model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module not in inside and module is not head
    ]


def choose_device(device: str) -> str:
    """The torch device that a choice of ``auto``, ``cpu`` or ``cuda`` means here.

    Raises:
        EmpathyError: CUDA was asked for, and torch sees no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EmpathyError(
            f"--device cuda: torch {torch.__version__} sees no GPU here. Use --device cpu, or install a CUDA build of torch."
        )
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _load_expert(folder: Path, given_base: str | None, device: str) -> LanguageModel:
    model, renderer, description = attach_expert(folder, given_base, device)
    return LanguageModel(folder.resolve().name, model, renderer, description)
