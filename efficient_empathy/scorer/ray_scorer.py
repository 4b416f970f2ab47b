"""A scorer folder on its way to the nodes of a Ray cluster."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import MANIFEST, manifest_digest, read_manifest
from efficient_empathy.scorer.scorer import Scorer


@dataclass(frozen=True)
class ShippedScorer:
    """A scorer folder on its way to other machines."""

    folder: str
    """Where it lies on the machine that sent it; a node that sees the same folder reads it there."""
    digest: str
    options: Mapping[str, Any]
    """For ``Scorer.load``."""
    files: Any
    """Reference, in Ray's object store, to the bytes of each file by name."""

    def open(self) -> Scorer:
        """Load the scorer and open its session.

        Raises:
            EmpathyError: the files did not arrive as they were sent, or the device cannot be had.
        """
        if _digest_of(Path(self.folder)) == self.digest:
            return _opened(Path(self.folder), self)
        import ray

        # Removed again at once: the session and the tokenizer are in memory, and an actor may be killed at any time.
        with tempfile.TemporaryDirectory(prefix="ee-scorer-") as folder:
            for name, content in ray.get(self.files).items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return _opened(Path(folder), self)


def _digest_of(folder: Path) -> str | None:
    try:
        return manifest_digest(folder)
    except OSError:
        return None


def _opened(folder: Path, shipped: ShippedScorer) -> Scorer:
    scorer = Scorer.load(folder, **shipped.options)  # which checks every file against its hash
    if scorer.digest != shipped.digest:
        raise EmpathyError(f"the scorer folder '{shipped.folder}' changed while it was sent; run again.")
    _ = scorer.providers, scorer.tokenizer  # which opens both, so that the folder is not needed again
    return scorer


def ship_scorer(scorer: Scorer, device: str, threads: int) -> ShippedScorer:
    """Put the files of a scorer into Ray's object store, and note how to load them elsewhere.

    Args:
        scorer: with the precision and the tokenizer that are to be used everywhere.
        device: where it is to run there, ``cpu`` or ``cuda``.
        threads: threads that compute, there.
    """
    import ray

    options: dict[str, Any] = {
        "device": device,
        "precision": scorer.precision,
        "tier": scorer.tier,
        "threads": threads,
        "tokenizer": scorer.tokenizer,
    }
    if scorer.cascade is not None:
        options |= {"policy": scorer.policy, "max_flips": scorer.cascade.max_flips}
    names = [MANIFEST, *read_manifest(scorer.folder)["files"]]
    files = ray.put({name: (scorer.folder / name).read_bytes() for name in names})
    return ShippedScorer(str(scorer.folder), scorer.digest, options, files)
