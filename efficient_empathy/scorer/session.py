"""ONNX Runtime sessions: which device runs, and saying so when it is not the one asked for."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efficient_empathy.environment import onnx_runtime, usable_cores
from efficient_empathy.errors import EmpathyError, MissingExtraError
from efficient_empathy.scorer.batching import OutOfMemoryError
from efficient_empathy.scorer.devices import (
    check_device,
    check_offered,
    first_choice,
    int8_saturates_here,
    is_gpu,
    provider_of,
    providers_for,
)

# Of the CPU's arena, the C++ library, CUDA and cuBLAS.
_OUT_OF_MEMORY = re.compile("failed to allocate|bad_?.?alloc|out of memory|alloc_failed", re.IGNORECASE)
EXACT_INT8 = "session.x64quantprecision"
"""ONNX Runtime's entry that has signed weights become unsigned, whose products it adds in 32 bits."""
_log = logging.getLogger(__name__)


def open_session(model: Path, device: str = "auto", threads: int | None = None, fp16: bool = False) -> Any:
    """Open an ONNX file on a device.

    On x86 processors without VNNI ONNX Runtime is told to multiply bytes exactly (``session.x64quantprecision``): its faster way
    there may overflow, so that int8 files would give other scores than those that passed the parity gate. It costs speed, in int8
    files alone.

    Args:
        model: the ``.onnx`` file.
        device: ``cpu``, ``cuda``, ``tensorrt`` or ``openvino``, which fails unless the session really is there; ``auto``,
            which tries CUDA where this build of ONNX Runtime offers it and falls back to the CPU with a warning.
        threads: threads inside one operator; None takes all cores this process may use.
        fp16: whether the file is in half precision, which TensorRT has to be told.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        EmpathyError: it is broken, the device is unknown or cannot be had, or the file cannot be read.
    """
    ort = onnx_runtime()
    if ort is None:
        raise MissingExtraError(
            "ONNX Runtime is not installed. Install it with: pip install 'efficient-empathy[cpu]' (or [gpu], never both)."
        )
    check_device(device)
    check_offered(device, ort.get_available_providers())
    chosen = first_choice(device)
    if chosen == "cpu":
        return _create(ort, model, chosen, threads, fp16)
    try:
        session = _create(ort, model, chosen, threads, fp16)
        fault = "see the warning above"
    except EmpathyError as error:
        session, fault = None, str(error)
    if session is not None and provider_of(chosen) in session.get_providers():
        return session
    if device != "auto":
        raise EmpathyError(
            f"--device {device}: {provider_of(device)} is installed but did not start (driver, or versions of its "
            f"libraries): {fault}. 'ee-cli doctor' says more; or use --device cpu."
        )
    _log.warning(
        "%s is offered by ONNX Runtime but did not start: scoring on the CPU. 'ee-cli doctor' says more. (%s)",
        chosen.upper(),
        fault,
    )
    return _create(ort, model, "cpu", threads, fp16)


def _create(ort: Any, model: Path, device: str, threads: int | None, fp16: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    # Spinning threads steal the core from the reader, the tokenizer and neighbouring workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if int8_saturates_here():
        options.add_session_config_entry(EXACT_INT8, "1")
    options.log_severity_level = 3
    if is_gpu(device):
        _load_cuda(ort)
    providers = providers_for(device, model, ort.get_available_providers(), options.intra_op_num_threads, fp16)
    try:
        # Its own falling back prints to stdout, where results go.
        return ort.InferenceSession(str(model), options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise EmpathyError(f"ONNX Runtime {ort.__version__} cannot open '{model}': {error}") from error


def _load_cuda(ort: Any) -> None:
    """Load CUDA and cuDNN where they were installed as wheels, whose folders the system does not search."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    _log.debug("CUDA libraries: %s", said.getvalue())


def run_batch(session: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Scores of one padded batch, float32 (rows, dimensions); inputs that the graph does not have are left out.

    Raises:
        OutOfMemoryError: memory does not suffice for this batch.
    """
    with _memory_faults():
        return session.run(None, _inputs(session, batch))[0]


def run_bound(session: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """The same through IO binding: inputs go to the device once, and only the scores come back.

    Raises:
        OutOfMemoryError: memory does not suffice for this batch.
    """
    with _memory_faults():
        binding = session.io_binding()
        for name, value in _inputs(session, batch).items():
            binding.bind_cpu_input(name, value)  # which copies to where the graph wants it
        binding.bind_output(session.get_outputs()[0].name, "cpu")
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]


def _inputs(session: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {argument.name for argument in session.get_inputs()}
    return {name: value for name, value in batch.items() if name in names}


@contextlib.contextmanager
def _memory_faults() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime's own classes have no other base, and only the text tells them apart
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise OutOfMemoryError(str(error).strip()) from error
