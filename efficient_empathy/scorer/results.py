"""What rating a unit came to: the counts that are kept on disk, and their sums."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from efficient_empathy.dialogues import Reject, Unit
from efficient_empathy.dialogues.paths import kept_name, shown_path
from efficient_empathy.manifest import pretty_json, write_atomic
from efficient_empathy.scorer.runfolder import record_path


@dataclass
class UnitResult:
    """Counts of one unit, and the files it became."""

    unit: dict[str, Any]
    """Which piece of which input it is."""
    rows: int = 0
    """Rows read, those that could not be read included."""
    examples: dict[str, int] = field(default_factory=dict)
    """Examples in each subset."""
    sums: dict[str, list[float]] = field(default_factory=dict)
    """Sum of each dimension's scores in each subset."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejected rows by reason."""
    first_rejected: dict[str, str] = field(default_factory=dict)
    """Where each reason was met first, as ``file:line``."""
    tallies: dict[str, int] = field(default_factory=dict)
    """What the policy counts, e.g. ties at the threshold."""
    tiers: dict[str, int] = field(default_factory=dict)
    """Examples that each tier of a cascade decided; empty for a single tier."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Name, bytes and SHA-256 of each file."""
    providers: list[str] = field(default_factory=list)
    """What the scorer really ran on."""
    tokenizer: str = ""
    """The library that tokenised, where the scorer names one."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that the bytes depend on, where the unit was written."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens that the scorer computed: ``real``, and ``computed`` with padding; empty where it does not count them."""

    @classmethod
    def of(cls, unit: Unit, subsets: Iterable[str], dimensions: int) -> "UnitResult":
        """A result in which nothing is counted yet."""
        names = list(subsets)
        return cls(_kept(unit), examples=dict.fromkeys(names, 0), sums={name: [0.0] * dimensions for name in names})

    def count_rejected(self, reject: Reject) -> None:
        """Count one row that could not be read."""
        self.rows += 1
        self.rejected[reject.reason] = self.rejected.get(reject.reason, 0) + 1
        self.first_rejected.setdefault(reject.reason, f"{shown_path(reject.path)}:{reject.line}")

    def count_scored(self, subset: str, scores: np.ndarray) -> None:
        """Count examples that went to a subset, by their scores (n, d)."""
        self.examples[subset] += len(scores)
        self.sums[subset] = [
            total + float(more) for total, more in zip(self.sums[subset], scores.sum(axis=0), strict=True)
        ]

    def write(self, out: Path) -> None:
        """Write the record that makes the unit done."""
        write_atomic(record_path(out, self.unit["index"]), pretty_json(asdict(self)))


def read_result(out: Path, unit: Unit) -> UnitResult | None:
    """The result of a unit that is done; None if it is not, or if a file of it is missing or of another size."""
    try:
        result = UnitResult(**orjson.loads(record_path(out, unit.index).read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None
    if result.unit != _kept(unit):
        return None
    for part in result.parts:
        path = out / part["file"]
        if not path.is_file() or path.stat().st_size != part["bytes"]:
            return None
    return result


def _kept(unit: Unit) -> dict[str, Any]:
    return {**asdict(unit), "path": kept_name(unit.path)}


def add_up(results: Iterable[UnitResult], dimensions: Iterable[str]) -> dict[str, Any]:
    """Counts of a whole run, from its units in input order.

    Returns:
        For the manifest: ``counts`` (rows, rejected, examples, …), ``subsets`` (examples, share, mean scores),
        ``mean`` (of all), and for a cascade ``tiers`` (examples that each decided).
    """
    names = list(dimensions)
    rejected: Counter[str] = Counter()
    tallies: Counter[str] = Counter()
    tiers: Counter[str] = Counter()
    examples: Counter[str] = Counter()
    sums: dict[str, np.ndarray] = {}
    rows = 0
    for result in results:
        rows += result.rows
        rejected.update(result.rejected)
        tallies.update(result.tallies)
        tiers.update(result.tiers)
        for subset, count in result.examples.items():
            examples[subset] += count
            sums[subset] = sums.get(subset, np.zeros(len(names))) + np.asarray(result.sums[subset])
    total = sum(examples.values())
    return {
        "counts": {
            "rows": rows,
            "rejected": sum(rejected.values()),
            "rejected_by_reason": dict(sorted(rejected.items())),
            "examples": total,
            **dict(sorted(tallies.items())),
        },
        "subsets": {subset: _subset(count, total, sums[subset], names) for subset, count in examples.items()},
        "mean": _means(total, sum(sums.values(), np.zeros(len(names))), names),
        **({"tiers": dict(sorted(tiers.items()))} if tiers else {}),
    }


def _subset(count: int, total: int, sums: np.ndarray, names: list[str]) -> dict[str, Any]:
    return {"examples": count, "share": round(count / total, 6) if total else 0.0, "mean": _means(count, sums, names)}


def _means(count: int, sums: np.ndarray, names: list[str]) -> dict[str, float | None]:
    return {name: round(float(value) / count, 4) if count else None for name, value in zip(names, sums, strict=True)}


def versions_of(results: Iterable[UnitResult]) -> dict[str, str]:
    """What the units were written with: of a run that went on after an upgrade, each version."""
    found: dict[str, set[str]] = {}
    for result in results:
        for name, version in result.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(some)) for name, some in sorted(found.items())}


def most_common_reject(results: Iterable[UnitResult]) -> tuple[str, int, str]:
    """The reason met most often, how often, and where first as ``file:line``."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for result in results:
        counts.update(result.rejected)
        first = {**result.first_rejected, **first}
    reason, count = counts.most_common(1)[0]
    return reason, count, first[reason]


def progress_counts(results: Iterable[UnitResult]) -> Mapping[str, int]:
    """Examples in each subset so far."""
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.examples)
    return counts
