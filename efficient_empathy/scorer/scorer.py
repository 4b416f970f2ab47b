"""``Scorer``: loads a scorer folder and rates examples, with the run-time dependencies alone."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficient_empathy.dialogues.types import Example
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.artifact import TOKENIZER_FILE, ScorerSpec, read_artifact
from efficient_empathy.scorer.batching import TokenBudget, TokenCount, run_batches
from efficient_empathy.scorer.encoding import Encoder
from efficient_empathy.scorer.session import check_device, open_session, run_batch
from efficient_empathy.scorer.tokenising import check_tokenizer, choose_tokenizer

_MAX_BATCH_TOKENS = 2048
"""Tokens in one batch: larger ones leave the second-level cache of ordinary CPUs and run slower a token."""


class Scorer:
    """Rates examples on the judge's scale. Make one with ``Scorer.load``.

    Pickles across processes: the ONNX session is opened where it is first used.
    """

    def __init__(
        self, folder: Path, spec: ScorerSpec, digest: str, tier: str, precision: str, options: Mapping[str, Any]
    ):
        self.folder = Path(folder)
        self.spec = spec
        self.digest = digest
        """SHA-256 of the folder's manifest: names this very scorer in every output."""
        self.tier = tier
        self.precision = precision
        self.tokens = TokenCount()
        """What this object has computed so far, with and without padding."""
        self._options = dict(options)
        self._budget = TokenBudget(_MAX_BATCH_TOKENS)
        self._session: Any = None
        self._encoder: Encoder | None = None
        self._tokenizer = ""

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        precision: str = "auto",
        tier: str = "auto",
        threads: int | None = None,
        tokenizer: str = "auto",
    ) -> "Scorer":
        """Load a scorer folder; every file is checked against its hash.

        Args:
            folder: what ``ee-cli distill`` wrote.
            device: ``auto``, ``cpu`` or ``cuda``; ``cuda`` fails unless the session is on CUDA.
            precision: ``fp32``, ``int8``, or ``auto``: int8 on the CPU where the folder has it, else fp32.
            tier: ``transformer`` or ``auto``.
            threads: threads inside one operator; None takes all usable cores.
            tokenizer: ``tokenizers``, ``tokie``, or ``auto``: tokie where it is installed and gives the ids of ``tokenizers``.

        Raises:
            EmpathyError: no such folder, a changed or missing file, or a device, tier or precision that is not there.
        """
        spec, digest = read_artifact(Path(folder))
        chosen = next(iter(spec.tiers)) if tier == "auto" else tier
        if chosen not in spec.tiers:
            raise EmpathyError(f"'{folder}' has no tier '{tier}'; it has: {', '.join(spec.tiers)}.")
        files = spec.tiers[chosen]
        if precision == "auto":
            # int8 kernels are for CPUs; on a GPU the fp32 graph is the faster one.
            precision = "int8" if "int8" in files and device != "cuda" and not _cuda_first(device) else "fp32"
        if precision not in files:
            raise EmpathyError(
                f"'{folder}' has no precision '{precision}' in tier '{chosen}'; it has: {', '.join(files)}."
            )
        check_device(device)
        check_tokenizer(tokenizer)
        options = {"device": device, "threads": threads, "tokenizer": tokenizer}
        scorer = cls(Path(folder).absolute(), spec, digest, chosen, precision, options)
        if device == "cuda":
            scorer._open()  # a device that cannot be had is said now, not after the data has been read
        return scorer

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the score columns, in order."""
        return tuple(dimension.name for dimension in self.spec.dimensions)

    @property
    def scales(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest score of each dimension."""
        return {dimension.name: (dimension.low, dimension.high) for dimension in self.spec.dimensions}

    @property
    def providers(self) -> list[str]:
        """The execution providers that really run, first choice first."""
        return list(self._open().get_providers())

    @property
    def tokenizer(self) -> str:
        """The library that tokenises: ``tokenizers`` or ``tokie``."""
        self._get_encoder()
        return self._tokenizer

    @property
    def device(self) -> str:
        """``cuda`` where that is what will be tried first, else ``cpu``."""
        return "cuda" if self._options["device"] == "cuda" or _cuda_first(self._options["device"]) else "cpu"

    @property
    def threads(self) -> int | None:
        """Threads inside one operator, as asked for; None takes all usable cores."""
        return self._options["threads"]

    def with_threads(self, threads: int) -> "Scorer":
        """The same scorer with another number of threads inside one operator."""
        other = copy.copy(self)
        other._options = {**self._options, "threads": threads}
        return other

    def score(self, examples: Sequence[Example], on_batch: Callable[[int], None] | None = None) -> np.ndarray:
        """Rate examples.

        Args:
            examples: what is to be rated; order and company do not change a score.
            on_batch: called after each batch with its number of rows, for progress.

        Returns:
            float32 (n, d) on the judge's scale, columns as in ``dimensions``.
        """
        scores = np.zeros((len(examples), len(self.dimensions)), np.float32)
        if not examples:
            return scores
        session = self._open()
        encoder = self._get_encoder()
        encoded = encoder.encode(examples)

        def run(rows: np.ndarray) -> None:
            scores[rows] = run_batch(session, encoded.batch(rows, encoder.spec.pad))
            if on_batch is not None:
                on_batch(len(rows))

        self.tokens += run_batches(encoded.lengths, self._budget, run)
        return scores

    def _open(self) -> Any:
        if self._session is None:
            path = self.folder / self.spec.tiers[self.tier][self.precision]
            self._session = open_session(path, self._options["device"], self._options["threads"])
        return self._session

    def _get_encoder(self) -> Encoder:
        if self._encoder is None:
            tokenizer, self._tokenizer = choose_tokenizer(self.folder / TOKENIZER_FILE, self._options["tokenizer"])
            self._encoder = Encoder(tokenizer, self.spec.encoding)
        return self._encoder

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None, "_encoder": None}


def _cuda_first(device: str) -> bool:
    if device == "cpu":
        return False
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
