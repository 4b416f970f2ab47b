"""The scorer folder: what is in it, reading it, and refusing one that was changed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import (
    check_unchanged,
    manifest_digest,
    pretty_json,
    read_manifest,
    write_atomic,
)
from efficient_empathy.scorer.encoding import EncodingSpec, spec_from_json
from efficient_empathy.scorer.fast import FastSpec

FORMAT = 1
KIND = "scorer"
SPEC_FILE = "scorer.json"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Scale:
    """A dimension that is scored, and the ends of its scale."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class ScorerSpec:
    """What ``scorer.json`` says: everything that is needed to score with the folder, and how good it was measured to be."""

    dimensions: tuple[Scale, ...]
    encoding: EncodingSpec
    tiers: Mapping[str, Mapping[str, str]]
    """ONNX file of each precision of each tier: ``{"transformer": {"fp32": "transformer.fp32.onnx", …}}``."""
    fast: FastSpec | None = None
    """How the fast tier reads examples, where there is one."""
    cascade: Mapping[str, Any] = field(default_factory=dict)
    """File of the held-out rows that both tiers have rated, how many they are, and the transformer's precision there."""
    rubric: Mapping[str, Any] = field(default_factory=dict)
    """Name and hash of the rubric that the labels were judged by."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """How raw outputs became scores; it is part of the ONNX graph and stands here for the reader."""
    parity: Mapping[str, Any] = field(default_factory=dict)
    """What the export was checked against, and by how much each precision differs."""
    quality: Mapping[str, Any] = field(default_factory=dict)
    """Measured on held-out rows, with intervals and baselines."""
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The bytes of ``scorer.json``."""
        return pretty_json({"format": FORMAT, **asdict(self)})


def write_spec(folder: Path, spec: ScorerSpec) -> None:
    """Write ``scorer.json`` into a scorer folder."""
    write_atomic(Path(folder) / SPEC_FILE, spec.to_json())


def read_artifact(folder: Path) -> tuple[ScorerSpec, str]:
    """Read a scorer folder after checking every file in it.

    Returns:
        What ``scorer.json`` says, and the folder's digest: the SHA-256 of its manifest, which holds the hash of every file.

    Raises:
        EmpathyError: it is not a scorer folder, a file was changed or is missing, or a newer version wrote it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EmpathyError(f"there is no scorer folder '{folder}'. Make one with: ee-cli distill … -o {folder}")
    hashed = read_manifest(folder, KIND).get("files", {})
    if SPEC_FILE not in hashed:
        raise EmpathyError(f"the manifest of '{folder}' does not vouch for {SPEC_FILE}. Copy or distil it again.")
    check_unchanged(folder, "Copy or distil it again.")
    record = orjson.loads((folder / SPEC_FILE).read_bytes())
    if (found := record.pop("format", None)) != FORMAT:
        raise EmpathyError(
            f"'{folder}' has scorer format {found}, this version reads format {FORMAT}: update efficient-empathy."
        )
    record["dimensions"] = tuple(Scale(**dimension) for dimension in record["dimensions"])
    record["encoding"] = spec_from_json(record["encoding"])
    record["fast"] = FastSpec.from_dict(record["fast"]) if record.get("fast") else None
    spec = ScorerSpec(**record)
    if "fast" in spec.tiers and spec.fast is None:
        raise EmpathyError(f"'{folder}' has a fast tier but does not say how it reads examples. Distil it again.")
    needed = {TOKENIZER_FILE, *(name for files in spec.tiers.values() for name in files.values())}
    needed |= {spec.cascade["file"]} if spec.cascade else set()
    if unhashed := sorted(needed - set(hashed)):
        raise EmpathyError(
            f"the manifest of '{folder}' does not vouch for {', '.join(unhashed)}. Copy or distil it again."
        )
    return spec, manifest_digest(folder)
