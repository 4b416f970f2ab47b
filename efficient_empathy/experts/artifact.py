"""The folder of an expert: a PEFT adapter that anyone can load, how it was made, and the hash of every file."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.bases import Base, find_base, load_base
from efficient_empathy.experts.rendering import Renderer
from efficient_empathy.manifest import (
    atomic_folder,
    check_unchanged,
    pretty_json,
    read_manifest,
    read_origin,
    sha256_file,
    versions,
    write_atomic,
    write_manifest,
)

KIND = "expert"
EXPERT_FILE = "expert.json"
CARD_FILE = "README.md"
LOG_FILE = "log.csv"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_PACKAGES = ("torch", "transformers", "peft", "lightning", "safetensors")


@dataclass(frozen=True)
class Expert:
    """What ``expert.json`` holds."""

    base: dict[str, Any]
    """Name, how it was named on the command line, hash."""
    renderer: dict[str, Any]
    """Template hash, instruction, token limit."""
    options: dict[str, Any]
    """``ExpertOptions``."""
    data: dict[str, Any]
    """What was read, used, refused and cut."""
    result: dict[str, Any]
    """Steps, tokens, held-out figures before and after."""


def write_expert(model: Any, expert: Expert, card: str, out: Path, log: Path) -> None:
    """Write adapter, description, card and log of a trained model: the folder whole or not at all."""
    with atomic_folder(out) as folder:
        shutil.copy(log, folder / LOG_FILE)
        model.save_pretrained(str(folder), safe_serialization=True)
        write_atomic(folder / EXPERT_FILE, pretty_json(asdict(expert)))
        write_atomic(folder / CARD_FILE, card.encode())
        files = [*ADAPTER_FILES, EXPERT_FILE, CARD_FILE, LOG_FILE]
        write_manifest(folder, KIND, {"versions": versions(*_PACKAGES)}, files)


def read_expert(folder: Path) -> tuple[Expert, str]:
    """What an expert folder says of itself, and the SHA-256 of its adapter.

    Raises:
        EmpathyError: it is no such folder, or a file of it has changed or is missing.
    """
    read_manifest(folder, KIND)
    check_unchanged(folder, "Train it again, or copy it again.")
    return Expert(**orjson.loads((folder / EXPERT_FILE).read_bytes())), sha256_file(folder / ADAPTER_FILES[1])


def base_of(recorded: dict[str, Any], given: str | None, folder: Path) -> Base:
    """The base that an adapter belongs to.

    Raises:
        EmpathyError: what is found is not what the adapter was trained on.
    """
    base = find_base(given or recorded["given"])
    if base.digest != recorded["digest"]:
        raise EmpathyError(
            f"'{folder}' was trained on '{recorded['name']}' (SHA-256 {recorded['digest'][:12]}…), but '{base.given}' is another "
            f"model ({base.digest[:12]}…). Name the right one with --base."
        )
    return base


def renderer_of(recorded: dict[str, Any], tokenizer: Any, folder: Path) -> Renderer:
    """The renderer that something was trained with.

    Raises:
        EmpathyError: the tokenizer has another template now, or it is rendered in another way.
    """
    renderer = Renderer(tokenizer, recorded["max_tokens"], recorded["system"])
    if renderer.template_hash != recorded["template_hash"]:
        raise EmpathyError(
            f"'{folder}' was trained with another chat template than its base has now. Use the base as it was then, "
            "or train it again."
        )
    return renderer


def attach_expert(folder: Path, given_base: str | None, device: str) -> tuple[Any, Renderer, dict[str, Any]]:
    """Load an expert with its adapter merged into the base's weights: as fast as the base.

    Returns:
        The model, the renderer that it was trained with, and its description for manifests.
    """
    from peft import PeftModel

    expert, digest = read_expert(folder)
    base = base_of(expert.base, given_base, folder)
    model, tokenizer = load_base(base, device)
    merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    renderer = renderer_of(expert.renderer, tokenizer, folder)
    description = {
        "kind": KIND,
        "adapter": digest,
        **({"origin": origin} if (origin := read_origin(folder)) else {}),
        "control": expert.options["control"],
        "seed": expert.options["seed"],
        "selection": expert.data["selection"],
        "base": base.describe(),
    }
    return merged.eval(), renderer, description
