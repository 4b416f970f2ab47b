"""Reading experts to be mixed: their low-rank matrices by the linear they belong to, checked against each other."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from safetensors.torch import load_file
from torch import Tensor

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.artifact import Expert, read_expert

PREFIX = "base_model.model."
"""What PEFT puts before the name of a linear."""
_PLAIN: Mapping[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""What an adapter must have to be a pair of matrices a linear and one scale; by PEFT's names."""


@dataclass(frozen=True)
class Adapter:
    """An expert's adapter, as it was read."""

    name: str
    folder: Path
    digest: str
    """SHA-256 of its weights."""
    expert: Expert
    pairs: Mapping[str, tuple[Tensor, Tensor]] = field(repr=False)
    """By the linear's name in the base: A (rank, in), and B times the adapter's scale (out, rank)."""

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(a.numel() + b.numel() for a, b in self.pairs.values())


def read_adapters(folders: Sequence[Path]) -> list[Adapter]:
    """Read experts that are to be mixed.

    Args:
        folders: expert folders, in the order of the gates.

    Raises:
        EmpathyError: a file has changed, an adapter is not plain LoRA, or experts differ in base or prompt or share a name.
    """
    adapters = [_read(Path(folder)) for folder in folders]
    names = Counter(adapter.name for adapter in adapters)
    if twice := [name for name, count in names.items() if count > 1]:
        raise EmpathyError(f"two experts are called '{twice[0]}': rename one of their folders, they go by these names.")
    for adapter in adapters[1:]:
        _same(adapters[0], adapter)
    return adapters


def _read(folder: Path) -> Adapter:
    expert, digest = read_expert(folder)
    config = orjson.loads((folder / "adapter_config.json").read_bytes())
    if config.get("use_dora"):
        raise EmpathyError(
            f"'{folder}' is a DoRA adapter: it rescales the base's own weights, so it cannot stand beside another one. "
            "Train it without --dora."
        )
    if odd := [name for name, plain in _PLAIN.items() if (config.get(name) or plain) != plain]:
        raise EmpathyError(
            f"'{folder}' is not a plain LoRA adapter (its {odd[0]} is {config[odd[0]]}): it cannot be mixed."
        )
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    tensors = load_file(folder / "adapter_model.safetensors")
    pairs = {}
    for key in sorted(tensors):
        name, found, _ = key.removeprefix(PREFIX).partition(".lora_A.")
        if found:
            pairs[name] = (tensors[key], scale * tensors[key.replace(".lora_A.", ".lora_B.")])
    if 2 * len(pairs) != len(tensors):
        raise EmpathyError(f"'{folder}' holds more than LoRA matrices of linears: it cannot be mixed.")
    return Adapter(folder.resolve().name, folder, digest, expert, pairs)


def _same(first: Adapter, other: Adapter) -> None:
    ours, theirs = first.expert.base, other.expert.base
    if ours["digest"] != theirs["digest"]:
        raise EmpathyError(
            f"'{first.folder}' and '{other.folder}' were trained on different bases: '{ours['name']}' ({ours['digest'][:12]}…) and "
            f"'{theirs['name']}' ({theirs['digest'][:12]}…). Experts of a mixture share one."
        )
    if first.expert.renderer["template_hash"] != other.expert.renderer["template_hash"]:
        raise EmpathyError(
            f"'{first.folder}' and '{other.folder}' were trained with different prompts (chat template or --system). "
            "Experts of a mixture share one."
        )
