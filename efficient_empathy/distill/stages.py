"""Results of long stages, kept in files so that a run that was killed goes on where it was."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from efficient_empathy.manifest import canonical_json, sha256_bytes, write_atomic

_log = logging.getLogger(__name__)


class Stages:
    """A folder of finished stages; a stage is named by what it is and a hash of everything that it depends on."""

    def __init__(self, folder: Path, basis: Mapping[str, Any]):
        """Open the folder.

        Args:
            folder: where results are kept; it is made when the first one is written.
            basis: what every stage depends on: data, options, versions. Anything that JSON can hold.
        """
        self.folder = folder
        self._basis = dict(basis)

    def tensors(
        self, name: str, depends: Mapping[str, Any], make: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Tensors of a finished stage, or make and keep them.

        Args:
            name: of the stage, for its file and the log.
            depends: what this stage depends on beside the basis.
            make: does the work.
        """
        key = sha256_bytes(canonical_json([name, self._basis, dict(depends)]))[:16]
        path = self.folder / f"{name}-{key}.safetensors"
        if path.is_file():
            try:
                found = load_file(path)
            except SafetensorError:
                _log.warning("'%s' cannot be read: this stage is done again", path)
            else:
                _log.info("%s: already done, taken from %s", name, path)
                return found
        made = {key: value.detach().cpu().contiguous() for key, value in make().items()}
        write_atomic(path, save(made))
        return made

    def array(self, name: str, depends: Mapping[str, Any], make: Callable[[], np.ndarray]) -> np.ndarray:
        """As ``tensors``, for one float32 array."""
        return self.tensors(name, depends, lambda: {"array": torch.from_numpy(make())})["array"].numpy()
