"""Lightning's checkpoints without pickle: tensors and JSON in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import write_atomic

_PLAIN = (str, int, float, bool, type(None))


class SafeCheckpointIO(CheckpointIO):
    """Writes what Lightning wants kept as safetensors; the structure around the tensors is JSON in the file's header."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint whole or not at all.

        Raises:
            TypeError: it holds something that is neither a tensor nor plain data.
        """
        tensors: dict[str, torch.Tensor] = {}
        structure = _pack(checkpoint, tensors)
        write_atomic(Path(path), save(tensors, {"structure": json.dumps(structure)}))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; nothing in it can run.

        Raises:
            EmpathyError: the file cannot be read.
        """
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                structure = json.loads(file.metadata()["structure"])
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise EmpathyError(f"the checkpoint '{path}' cannot be read ({error}); remove it to start over.") from error
        return _unpack(structure, tensors)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors):05d}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_pack(item, tensors) for item in value]}
    if isinstance(value, _PLAIN):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}: tensors and plain data only")


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "items":
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in inner}
    items = [_unpack(item, tensors) for item in inner]
    return tuple(items) if kind == "tuple" else items
