"""The models of a scorer folder, each with its own way from examples to scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficient_empathy.dialogues.types import Example
from efficient_empathy.environment import usable_cores
from efficient_empathy.scorer.artifact import TOKENIZER_FILE, ScorerSpec
from efficient_empathy.scorer.batching import TokenBudget, TokenCount, run_batches
from efficient_empathy.scorer.devices import GPU_BATCH_TOKENS, bucket, first_choice, on_gpu
from efficient_empathy.scorer.encoding import Encoder
from efficient_empathy.scorer.fast import FastEncoder
from efficient_empathy.scorer.session import open_session, run_batch, run_bound
from efficient_empathy.scorer.tokenising import choose_tokenizer

TRANSFORMER, FAST = "transformer", "fast"
_MAX_BATCH_TOKENS = 256
"""Tokens in one batch: larger ones leave the caches of ordinary CPUs and hold more padding. 2,048 took a fifth longer."""
_FAST_ROWS = 256
"""Rows in one batch of the fast tier, for the same reason."""


@dataclass(frozen=True)
class TierOptions:
    """Where and how a tier runs."""

    device: str = "auto"
    """One of ``DEVICES``; the fast tier is for CPUs and stays there."""
    threads: int | None = None
    """Threads that compute, on CPUs a batch each; None takes all usable cores."""
    tokenizer: str = "auto"
    """``tokenizers``, ``tokie``, or ``auto``."""


class Tier(ABC):
    """A model that rates examples. It pickles: session and tokenizer are opened where they are first used."""

    def __init__(self, folder: Path, model: str, spec: ScorerSpec, options: TierOptions):
        self.tokens = TokenCount()
        self._folder, self._model, self._spec, self._options = folder, model, spec, options
        self._session: Any = None
        self._encoder: Any = None
        self._library = ""
        self._budget: TokenBudget | None = None

    @abstractmethod
    def score(self, examples: Sequence[Example], on_batch: Callable[[int], None] | None = None) -> np.ndarray:
        """Rate examples: float32 (n, d)."""

    @property
    def providers(self) -> list[str]:
        """The execution providers that really run, first choice first."""
        return list(self.open().get_providers())

    @property
    def tokenizer(self) -> str:
        """The library that tokenises."""
        self._get_encoder()
        return self._library

    def open(self) -> Any:
        """The session; a device that cannot be had is said here."""
        if self._session is None:
            self._session = self._open_session(self._folder / self._model)
        return self._session

    def _open_session(self, model: Path) -> Any:
        return open_session(model, self._options.device, self._options.threads)

    def _get_encoder(self) -> Any:
        if self._encoder is None:
            tokenizer, self._library = choose_tokenizer(self._folder / TOKENIZER_FILE, self._options.tokenizer)
            self._encoder = self._make_encoder(tokenizer)
        return self._encoder

    @abstractmethod
    def _make_encoder(self, tokenizer: Any) -> Any:
        """What turns examples into the model's input."""

    def _new_scores(self, examples: Sequence[Example]) -> np.ndarray:
        return np.zeros((len(examples), len(self._spec.dimensions)), np.float32)

    def __getstate__(self) -> dict[str, Any]:
        # Nothing of what a tier has done so far: equal scorers pickle to equal bytes, by which `datasets` finds its cache.
        fresh = {"_session": None, "_encoder": None, "_library": "", "_budget": None, "tokens": TokenCount()}
        return {**self.__dict__, **fresh}


class TransformerTier(Tier):
    """The tuned encoder."""

    def __init__(self, folder: Path, model: str, spec: ScorerSpec, options: TierOptions, fp16: bool = False):
        super().__init__(folder, model, spec, options)
        self._fp16 = fp16

    def score(self, examples: Sequence[Example], on_batch: Callable[[int], None] | None = None) -> np.ndarray:
        """Rate examples: float32 (n, d)."""
        scores = self._new_scores(examples)
        if not examples:
            return scores
        session, encoder = self.open(), self._get_encoder()
        encoded = encoder.encode(examples)
        gpu = on_gpu(session)
        run_one, pad_to = (run_bound, self._bucket) if gpu else (run_batch, int)
        self._budget = self._budget or TokenBudget(GPU_BATCH_TOKENS if gpu else _MAX_BATCH_TOKENS)

        def run(rows: np.ndarray) -> None:
            scores[rows] = run_one(session, encoded.batch(rows, encoder.spec.pad, pad_to))

        self.tokens += run_batches(encoded.lengths, self._budget, run, pad_to, self._side_by_side, on_batch)
        return scores

    @property
    def _side_by_side(self) -> int:
        """Batches at a time: on CPUs one a thread, since threads inside an operator wait for each other at its end."""
        if first_choice(self._options.device) != "cpu":
            return 1
        return self._options.threads or usable_cores()

    def _bucket(self, length: int) -> int:
        # No further than what the encoder has positions for.
        return bucket(length, self._spec.encoding.max_tokens)

    def _open_session(self, model: Path) -> Any:
        threads = 1 if self._side_by_side > 1 else self._options.threads
        return open_session(model, self._options.device, threads, self._fp16)

    def _make_encoder(self, tokenizer: Any) -> Encoder:
        return Encoder(tokenizer, self._spec.encoding)


class FastTier(Tier):
    """The hashed n-gram model."""

    def score(self, examples: Sequence[Example], on_batch: Callable[[int], None] | None = None) -> np.ndarray:
        """Rate examples: float32 (n, d)."""
        scores = self._new_scores(examples)
        if not examples:
            return scores
        session, encoder = self.open(), self._get_encoder()
        encoded = encoder.encode(examples)
        order = encoded.order
        for start in range(0, len(order), _FAST_ROWS):
            rows = order[start : start + _FAST_ROWS]
            scores[rows] = run_batch(session, encoded.batch(rows, encoder.spec))
            if on_batch is not None:
                on_batch(len(rows))
        return scores

    def _open_session(self, model: Path) -> Any:
        # Its operators are too small to be shared between threads.
        return open_session(model, "cpu", 1)

    def _make_encoder(self, tokenizer: Any) -> FastEncoder:
        assert self._spec.fast is not None, "read_artifact refuses a fast tier without its spec"  # noqa: S101
        return FastEncoder(tokenizer, self._spec.fast)


def make_tier(
    name: str, folder: Path, files: Mapping[str, str], precision: str, spec: ScorerSpec, options: TierOptions
) -> Tier:
    """A tier of a scorer folder; the fast one has one precision, whatever is asked for."""
    if name == FAST:
        return FastTier(folder, files["fp32"], spec, options)
    return TransformerTier(folder, files[precision], spec, options, fp16=precision == "fp16")
