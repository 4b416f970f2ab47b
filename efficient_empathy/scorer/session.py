"""ONNX Runtime sessions: which device runs, and saying so when it is not the one asked for."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficient_empathy.errors import EmpathyError, MissingExtraError
from efficient_empathy.scorer.batching import OutOfMemoryError

DEVICES = ("auto", "cpu", "cuda")
# Of the CPU's arena, the C++ library, CUDA and cuBLAS.
_OUT_OF_MEMORY = re.compile("failed to allocate|bad_?.?alloc|out of memory|alloc_failed", re.IGNORECASE)
_log = logging.getLogger(__name__)


def open_session(model: Path, device: str = "auto", threads: int | None = None) -> Any:
    """Open an ONNX file on a device.

    Args:
        model: the ``.onnx`` file.
        device: ``cpu``; ``cuda``, which fails unless the session really is on CUDA; ``auto``, which tries CUDA where this
            build of ONNX Runtime offers it and falls back to the CPU with a warning.
        threads: threads inside one operator; None takes all cores this process may use.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        EmpathyError: the device is unknown or cannot be had, or the file cannot be read.
    """
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "ONNX Runtime is not installed. Install it with: pip install 'efficient-empathy[cpu]' (or [gpu], never both)."
        ) from error
    check_device(device)
    offered = ort.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in offered:
        raise EmpathyError(
            f"--device cuda: this ONNX Runtime has no CUDA provider (it has {', '.join(offered)}). "
            "Install the [gpu] extra instead of [cpu], or use --device cpu. 'ee-cli doctor' shows what is there."
        )
    wanted = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in offered:
        wanted.insert(0, "CUDAExecutionProvider")
    session = _create(ort, model, wanted, threads)
    if wanted[0] not in session.get_providers():
        if device == "cuda":
            raise EmpathyError(
                "--device cuda: the CUDA provider is installed but did not start (driver, CUDA or cuDNN version). "
                "See the warning above and 'ee-cli doctor', or use --device cpu."
            )
        _log.warning(
            "CUDA is offered by ONNX Runtime but did not start: scoring on the CPU. 'ee-cli doctor' says more."
        )
    return session


def check_device(device: str) -> None:
    """Raise EmpathyError for a device that is none of ``DEVICES``."""
    if device not in DEVICES:
        raise EmpathyError(f"device must be one of {', '.join(DEVICES)}, not '{device}'.")


def _create(ort: Any, model: Path, providers: Sequence[str], threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    # Spinning threads steal the core from the reader, the tokenizer and neighbouring workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(model), options, providers=list(providers))
    except Exception as error:
        raise EmpathyError(f"ONNX Runtime {ort.__version__} cannot open '{model}': {error}") from error


def usable_cores() -> int:
    """Cores this process may run on: containers and job schedulers often grant fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_batch(session: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Scores of one padded batch, float32 (rows, dimensions); inputs that the graph does not have are left out.

    Raises:
        OutOfMemoryError: memory does not suffice for this batch.
    """
    names = {argument.name for argument in session.get_inputs()}
    try:
        return session.run(None, {name: value for name, value in batch.items() if name in names})[0]
    except Exception as error:  # ONNX Runtime's own classes have no other base, and only the text tells them apart
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise OutOfMemoryError(str(error).strip()) from error
