"""Devices by name: the execution provider behind each, its options, how to install it, and the shapes a GPU is given."""

import functools
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.environment import cache_folder, onnx_runtime
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import sha256_file

CPU_PROVIDER = "CPUExecutionProvider"
GPU_BATCH_TOKENS = 16_384
"""Tokens in one batch on a GPU: enough that starting a kernel is short beside running it; not yet measured on one."""
_STEP = 16


@dataclass(frozen=True)
class _Device:
    provider: str
    install: str
    """What to do where ONNX Runtime lacks the provider."""
    gpu: bool = False


_KNOWN = {
    "cpu": _Device(CPU_PROVIDER, "Install the [cpu] extra."),
    "cuda": _Device("CUDAExecutionProvider", "Install the [gpu] extra instead of [cpu]", gpu=True),
    "tensorrt": _Device(
        "TensorrtExecutionProvider",
        "Install the [gpu] extra instead of [cpu], and the TensorRT version that it was built with",
        gpu=True,
    ),
    "openvino": _Device(
        "OpenVINOExecutionProvider",
        "Replace onnxruntime: pip uninstall -y onnxruntime, then pip install onnxruntime-openvino",
    ),
}
DEVICES = ("auto", *_KNOWN)
_GPU_PROVIDERS = frozenset(device.provider for device in _KNOWN.values() if device.gpu)


def check_device(device: str) -> None:
    """Raise EmpathyError for a device that is none of ``DEVICES``."""
    if device not in DEVICES:
        raise EmpathyError(f"device must be one of {', '.join(DEVICES)}, not '{device}'.")


def check_offered(device: str, offered: Sequence[str]) -> None:
    """Raise EmpathyError, with how to install it, for a device whose provider ONNX Runtime does not have."""
    if device != "auto" and (known := _KNOWN[device]).provider not in offered:
        raise EmpathyError(
            f"--device {device}: this ONNX Runtime has no {known.provider} (it has {', '.join(offered)}). "
            f"{known.install}, or use --device cpu. 'ee-cli doctor' shows what is there."
        )


def first_choice(device: str) -> str:
    """The device that is tried first: what ``auto`` means here, any other as it is."""
    if device != "auto":
        return device
    ort = onnx_runtime()
    return "cuda" if ort is not None and _KNOWN["cuda"].provider in ort.get_available_providers() else "cpu"


def is_gpu(device: str) -> bool:
    """Whether a device, other than ``auto``, is a GPU."""
    return device in _KNOWN and _KNOWN[device].gpu


def provider_of(device: str) -> str:
    """ONNX Runtime's name of a device other than ``auto``."""
    return _KNOWN[device].provider


def on_gpu(session: Any) -> bool:
    """Whether a session's first choice is a GPU."""
    return session.get_providers()[0] in _GPU_PROVIDERS


def int8_saturates(machine: str, cpuinfo: str) -> bool:
    """Whether a processor adds two products of bytes in 16 bits, where their sum may not fit: an x86 without VNNI.

    Args:
        machine: as ``platform.machine()`` names it.
        cpuinfo: the text of Linux's ``/proc/cpuinfo``; with another text nothing is known, and the answer is False.
    """
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    x86 = machine.lower() in ("x86_64", "amd64", "i386", "i686")
    return x86 and flags is not None and not {"avx512_vnni", "avx_vnni"} & set(flags[1].split())


@functools.cache
def int8_saturates_here() -> bool:
    """``int8_saturates`` of this machine's processor; False where nothing is known of it."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return False
    return int8_saturates(platform.machine(), cpuinfo)


def providers_for(
    device: str, model: Path, offered: Sequence[str], threads: int, fp16: bool
) -> list[tuple[str, dict[str, str]]]:
    """Providers and their options for a device other than ``auto``; each takes what those before it leave.

    Args:
        device: a name in ``DEVICES``.
        model: the ONNX file.
        offered: the providers of this ONNX Runtime.
        threads: threads inside one operator.
        fp16: whether the file is in half precision.
    """
    found: list[tuple[str, dict[str, str]]] = []
    if device == "tensorrt":
        found.append((provider_of(device), _tensorrt_options(model, fp16)))
    if is_gpu(device) and provider_of("cuda") in offered:
        # An arena that grows by what is asked for leaves room to the neighbours on the same GPU. TF32 has the mantissa of
        # fp16: whoever wants that asks for fp16, whose parity was measured.
        found.append((provider_of("cuda"), {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}))
    if device == "openvino":
        # Else OpenVINO computes fp32 files in bf16 on CPUs that can, which no parity was measured for.
        options = {"device_type": "CPU", "precision": "FP32", "num_of_threads": str(threads)}
        found.append((provider_of(device), options))
    return [*found, (CPU_PROVIDER, {})]


def _tensorrt_options(model: Path, fp16: bool) -> dict[str, str]:
    # ONNX Runtime names an engine by the file's name and the graph, not by the weights: another scorer's engine would fit.
    folder = cache_folder() / "tensorrt" / sha256_file(model)[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmpathyError(
            f"cannot keep TensorRT's engines in '{folder}': {error.strerror}. Set EE_CACHE to a folder that can be written to."
        ) from error
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": str(int(fp16)),
    }


def bucket(length: int, longest: int) -> int:
    """The padded length of a batch on a GPU: the next of 16, 32, 48, …, 128, 160, …, 256, 320, …, but not over ``longest``.

    Few different shapes let kernels, engines and allocations be used again. Steps are 16, which suits fp16, or an eighth of
    the next power of two.
    """
    step = max(_STEP, 1 << max(0, length - 1).bit_length() >> 3)
    return min(longest, max(_STEP, -(-length // step) * step))
