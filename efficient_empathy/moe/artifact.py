"""The folder of a mixture: the router, the experts as they were, how it was made, and the hash of every file."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from safetensors.torch import load, save
from torch import Tensor

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.artifact import CARD_FILE, LOG_FILE, base_of, renderer_of
from efficient_empathy.experts.bases import load_base
from efficient_empathy.experts.models import LanguageModel
from efficient_empathy.manifest import (
    MANIFEST,
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
from efficient_empathy.moe.adapters import Adapter, read_adapters
from efficient_empathy.moe.options import RouterOptions
from efficient_empathy.moe.router import Router, attach, fold

KIND = "mixture"
MIXTURE_FILE = "moe.json"
ROUTER_FILE = "router.safetensors"
EXPERTS_FOLDER = "experts"
_PACKAGES = ("torch", "transformers", "peft", "lightning", "safetensors")


@dataclass(frozen=True)
class Mixture:
    """What ``moe.json`` holds."""

    base: dict[str, Any]
    """Name, how it was named on the command line, hash."""
    renderer: dict[str, Any]
    """Template hash, instruction, token limit; the experts' own."""
    experts: list[dict[str, Any]]
    """Name and hash of the adapter of each, in the order of the gates."""
    router: dict[str, Any]
    """``RouterOptions``."""
    options: dict[str, Any]
    """The rest of ``MixtureOptions``."""
    data: dict[str, Any]
    """What was read, used, refused and cut."""
    result: dict[str, Any]
    """Steps, held-out figures before and after, parameters."""
    routing: dict[str, Any]
    """What the gates do on held-out examples; see ``seeing.Routings``."""


def write_mixture(
    router: Router, mixture: Mixture, adapters: Sequence[Adapter], card: str, out: Path, log: Path
) -> None:
    """Write the folder whole or not at all."""
    with atomic_folder(out) as folder:
        shutil.copy(log, folder / LOG_FILE)
        write_atomic(folder / ROUTER_FILE, save(router_tensors(router)))
        write_atomic(folder / MIXTURE_FILE, pretty_json(asdict(mixture)))
        write_atomic(folder / CARD_FILE, card.encode())
        files = [ROUTER_FILE, MIXTURE_FILE, CARD_FILE, LOG_FILE]
        for adapter in adapters:
            target = folder / EXPERTS_FOLDER / adapter.name
            target.mkdir(parents=True)
            for name in [*read_manifest(adapter.folder)["files"], MANIFEST]:
                shutil.copy(adapter.folder / name, target / name)
                files.append(f"{EXPERTS_FOLDER}/{adapter.name}/{name}")
        write_manifest(folder, KIND, {"versions": versions(*_PACKAGES)}, files)


def router_tensors(router: Router) -> dict[str, Tensor]:
    """The gates' parameters, by the gate's name."""
    return {
        f"{name}.{kind}": parameter.detach().cpu().contiguous()
        for name, gate in zip(router.names, router.gates, strict=True)
        for kind, parameter in gate.named_parameters()
    }


def read_mixture(folder: Path) -> tuple[Mixture, str]:
    """What a mixture says of itself, and the SHA-256 of its router.

    Raises:
        EmpathyError: it is no such folder, or a file of it has changed or is missing.
    """
    read_manifest(folder, KIND)
    check_unchanged(folder, "Train it again, or copy it again.")
    return Mixture(**orjson.loads((folder / MIXTURE_FILE).read_bytes())), sha256_file(folder / ROUTER_FILE)


def load_mixture(folder: Path, given_base: str | None, device: str) -> LanguageModel:
    """Load a mixture as a model that is asked: what is not routed is added to the base's weights.

    Args:
        folder: as ``train-moe`` writes it.
        given_base: where its base is, if not where it was.
        device: a torch device.

    Raises:
        EmpathyError: a file has changed or is missing, the base is another one, or parts do not fit each other.
    """
    folder = Path(folder)
    mixture, digest = read_mixture(folder)
    adapters = read_adapters([folder / EXPERTS_FOLDER / expert["name"] for expert in mixture.experts])
    for adapter, expert in zip(adapters, mixture.experts, strict=True):
        if adapter.digest != expert["adapter"]:
            raise EmpathyError(
                f"the expert '{adapter.name}' in '{folder}' is not the one that its router was trained with."
            )
    base = base_of(mixture.base, given_base, folder)
    model, tokenizer = load_base(base, device)
    renderer = renderer_of(mixture.renderer, tokenizer, folder)
    router = attach(model, adapters, RouterOptions(**mixture.router))
    _load_router(router, load((folder / ROUTER_FILE).read_bytes()), folder)
    fold(model, router)
    description = {
        "kind": KIND,
        "router": digest,
        **({"origin": origin} if (origin := read_origin(folder)) else {}),
        "experts": mixture.experts,
        "gates": mixture.router,
        "control": mixture.options["data_control"],
        "seed": mixture.options["seed"],
        "selection": mixture.data["selection"],
        "base": base.describe(),
    }
    return LanguageModel(folder.resolve().name, model.eval(), renderer, description)


def _load_router(router: Router, tensors: dict[str, Tensor], folder: Path) -> None:
    """Give the gates their weights; names and shapes must be exactly theirs."""
    wanted = {name: tensor.shape for name, tensor in router_tensors(router).items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if differing := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise EmpathyError(f"{ROUTER_FILE} of '{folder}' does not fit its experts: {differing[0]} differs.")
    for name, gate in zip(router.names, router.gates, strict=True):
        gate.load_state_dict({kind: tensors[f"{name}.{kind}"] for kind, _ in gate.named_parameters()})
