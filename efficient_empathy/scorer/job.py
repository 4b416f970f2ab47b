"""What a run over many dialogues is told: the job, and what it needs of a scorer and of a policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from efficient_empathy.dialogues.examples import EXAMPLE_MODES, ExampleMode
from efficient_empathy.dialogues.types import Example
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import check_local, read_origin
from efficient_empathy.scorer.cascade import describe
from efficient_empathy.scorer.ray_options import RayOptions

OutputFormat = Literal["jsonl", "parquet"]
OUTPUT_FORMATS: tuple[str, ...] = get_args(OutputFormat)
SCORED = "examples"
"""The one folder of parts of a run without a policy."""
FIELDS_OF_OUR_OWN = frozenset({"id", "turn", "subset", "tier", "reject"})
"""What stands behind ``ee_`` in a scored row beside the scores: no dimension may be called so."""
VERSIONED = ("numpy", "orjson", "pyarrow", "tokenizers", "tokie", "onnxruntime", "onnxruntime-gpu")
"""Packages that the written bytes may depend on: the manifest says their versions."""


class RatesExamples(Protocol):
    """What the engine needs of a scorer; ``Scorer`` is one."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the score columns, in order."""

    @property
    def digest(self) -> str:
        """Names this very scorer: equal digests give equal scores."""

    def score(self, examples: Sequence[Example]) -> np.ndarray:
        """Rate examples: float32 (n, d)."""


class Route(Protocol):
    """What the engine needs of a policy; those of ``efficient_empathy.selection`` are such."""

    @property
    def name(self) -> str:
        """What the manifest calls it."""

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets, which become folders."""

    def check(self, dimensions: Sequence[str], scales: Mapping[str, tuple[float, float]] | None = None) -> None:
        """Raise EmpathyError if the policy cannot be applied to these dimensions."""

    def decide(self, scores: np.ndarray, dimensions: Sequence[str]) -> np.ndarray:
        """Choose the subset of each row of (n, d) scores: integers (n,), indices into ``subsets``."""

    def tally(self, scores: np.ndarray, dimensions: Sequence[str]) -> dict[str, int]:
        """Count what is worth knowing of some rows, e.g. ties at the threshold; counts of parts are added up."""

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the policy; also decides whether a run may be continued."""


@dataclass(frozen=True)
class Job:
    """What to rate, where it goes, and how."""

    inputs: tuple[str, ...]
    """Files, folders, globs or URLs of dialogues, in the order in which they are rated and written."""
    out: Path
    """The output folder; a run that was killed is continued there."""
    examples: ExampleMode = "every-turn"
    """Which examples a conversation gives; a row that is itself one example is one, whatever this says."""
    format: OutputFormat = "jsonl"
    """Container of the rated examples."""
    max_rejected: float = 0.05
    """Largest share of rows that may be unreadable before the run stops; 1 never stops."""
    overwrite: bool = False
    """Start over in a folder that another run has written."""
    unit_bytes: int | None = None
    """About how much of a file is read, written and, after a kill, repeated as a whole; None takes a 64th of the inputs,
    from 256 KiB to 8 MiB, so that workers end at about the same time."""
    chunk: int = 2000
    """Examples that are scored and held in memory at a time."""
    workers: int | Literal["auto"] = 1
    """Processes that rate, each a unit at a time; ``auto`` is one a core, one on a GPU, and on Ray what fits. More than one in a
    script of your own needs its main part under ``if __name__ == "__main__"``. What is written does not depend on it."""
    ray: RayOptions | None = None
    """The Ray cluster whose actors rate, ``workers`` of them; None rates on this machine. What is written does not depend on it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(str(path) for path in self.inputs))
        object.__setattr__(self, "out", Path(self.out))
        check_local(self.out)
        if not self.inputs:
            raise EmpathyError("inputs is empty; name at least one file, folder, glob or URL of dialogues.")
        if self.examples not in EXAMPLE_MODES:
            raise EmpathyError(f"examples must be one of {', '.join(EXAMPLE_MODES)}, not '{self.examples}'.")
        if self.format not in OUTPUT_FORMATS:
            raise EmpathyError(f"format must be one of {', '.join(OUTPUT_FORMATS)}, not '{self.format}'.")
        if not 0 <= self.max_rejected <= 1:
            raise EmpathyError(f"max_rejected must be a share from 0 to 1, not {self.max_rejected}.")
        for name in ("unit_bytes", "chunk"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise EmpathyError(f"{name} must be at least 1, not {value}.")
        if self.workers != "auto" and (not isinstance(self.workers, int) or self.workers < 1):
            raise EmpathyError(f"workers must be auto or at least 1, not {self.workers}.")


def folders_of(route: Route | None) -> tuple[str, ...]:
    """Names of the folders that rated examples go to: the policy's subsets, or ``examples`` without a policy."""
    return route.subsets if route is not None else (SCORED,)


def check_scorer(scorer: RatesExamples, route: Route | None) -> None:
    """See that the scorer's fields can be written and the policy applied, before any work.

    Raises:
        EmpathyError: a dimension is called like one of ``FIELDS_OF_OUR_OWN``, or the policy does not fit.
    """
    if clash := sorted(FIELDS_OF_OUR_OWN.intersection(scorer.dimensions)):
        raise EmpathyError(
            f"the scorer has a dimension named '{clash[0]}', whose field ee_{clash[0]} has a meaning of its own."
        )
    if route is not None:
        route.check(scorer.dimensions, getattr(scorer, "scales", None))


def describe_scorer(scorer: RatesExamples) -> dict[str, Any]:
    """What the manifest says of a scorer; also decides whether a run may be continued."""
    folder = getattr(scorer, "folder", None)
    cascade = getattr(scorer, "cascade", None)
    origin = read_origin(folder) if folder is not None else None
    return {
        "folder": Path(folder).name if folder is not None else None,
        **({"origin": origin} if origin else {}),
        "digest": scorer.digest,
        "tier": getattr(scorer, "tier", None),
        "precision": getattr(scorer, "precision", None),
        "dimensions": list(scorer.dimensions),
        **({"cascade": describe(cascade)} if cascade is not None else {}),
    }
