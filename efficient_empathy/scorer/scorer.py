"""``Scorer``: loads a scorer folder and rates examples, with the run-time dependencies alone."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from efficient_empathy.dialogues.examples import ExampleMode
from efficient_empathy.dialogues.types import Example
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.artifact import ScorerSpec, read_artifact
from efficient_empathy.scorer.batching import TokenCount
from efficient_empathy.scorer.cascade import (
    DEFAULT_MAX_FLIPS,
    LEAST_PAIRS,
    Decides,
    Doubts,
    Pairs,
    Plan,
    check_max_flips,
    plan_cascade,
)
from efficient_empathy.scorer.devices import check_device, first_choice, is_gpu, on_gpu
from efficient_empathy.scorer.tiers import FAST, TRANSFORMER, Tier, TierOptions, make_tier
from efficient_empathy.scorer.tokenising import check_tokenizer

if TYPE_CHECKING:
    from efficient_empathy.scorer.adapters.columns import RowFilter, RowMap
    from efficient_empathy.scorer.adapters.rows import BadRows
    from efficient_empathy.scorer.job import Route

CASCADE = "cascade"
PRECISIONS = ("auto", "fp32", "fp16", "int8")
TIERS = ("auto", FAST, TRANSFORMER, CASCADE)


@dataclass(frozen=True)
class Rated:
    """Scores, and who gave them."""

    scores: np.ndarray
    """float32 (n, d) on the judge's scale, columns as in ``Scorer.dimensions``."""
    by_transformer: np.ndarray | None = None
    """bool (n,), in a cascade only: False where the fast tier decided."""


class Scorer:
    """Rates examples on the judge's scale. Make one with ``Scorer.load``.

    Pickles across processes: ONNX sessions are opened where they are first used.
    """

    def __init__(self, folder: Path, spec: ScorerSpec, digest: str, tier: str, precision: str, options: TierOptions):
        self.folder = Path(folder)
        self.spec = spec
        self.digest = digest
        """SHA-256 of the folder's manifest: names this very scorer in every output."""
        self.tier = tier
        """``transformer``, ``fast`` or ``cascade``."""
        self.precision = precision
        self.cascade: Plan | None = None
        """What a cascade promises, and where it draws the line; None for a single tier."""
        self.policy: Decides | None = None
        """What a cascade decides; None for a single tier."""
        self._doubts: Doubts | None = None
        self._options = options
        self._tiers: dict[str, Tier] = {}
        self._make_tiers()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        precision: str = "auto",
        tier: str = "auto",
        threads: int | None = None,
        tokenizer: str = "auto",
        policy: Decides | None = None,
        max_flips: float = DEFAULT_MAX_FLIPS,
    ) -> "Scorer":
        """Load a scorer folder; every file is checked against its hash.

        Args:
            folder: what ``ee-cli distill`` wrote.
            device: ``cpu``, ``cuda``, ``tensorrt`` or ``openvino``, which fail unless the session is there; ``auto``: CUDA
                where it is offered and starts, which is tried at once, else the CPU.
            precision: of the transformer: ``fp32``, ``fp16``, ``int8``, or ``auto``: int8 on the CPU, fp16 on a GPU, each
                where the folder has it, else fp32.
            tier: ``transformer``; ``fast``, far cheaper and less exact; ``cascade``, the fast tier with the transformer for
                the rows that it is not sure of; ``auto``: with a policy the cheapest that keeps ``max_flips``, else the
                transformer.
            threads: threads that compute, on CPUs a batch each; None takes all usable cores.
            tokenizer: ``tokenizers``, ``tokie``, or ``auto``: tokie where it is installed and gives the ids of ``tokenizers``.
            policy: what the scores are to decide, such as ``PaperPolicy()``; a cascade cannot do without.
            max_flips: largest share of decisions by ``policy`` that may differ from the transformer's.

        Raises:
            EmpathyError: no such folder, a changed or missing file, or a device, tier or precision that is not there.
        """
        spec, digest = read_artifact(Path(folder))
        if tier not in TIERS or (tier in (FAST, TRANSFORMER) and tier not in spec.tiers):
            has = [*spec.tiers, *([CASCADE] if spec.cascade else [])]
            advice = " Distil it with --dialogues to get one." if tier == FAST else ""
            raise EmpathyError(f"'{folder}' has no tier '{tier}'; it has: {', '.join(has)}.{advice}")
        check_device(device)
        check_tokenizer(tokenizer)
        check_max_flips(max_flips)
        options = TierOptions(device, threads, tokenizer)
        chosen = _precision(folder, spec, precision, device)
        single = FAST if tier == FAST else TRANSFORMER
        scorer = cls(Path(folder).absolute(), spec, digest, single, "fp32" if tier == FAST else chosen, options)
        if tier == CASCADE or (tier == "auto" and policy is not None and can_cascade(spec)):
            scorer = scorer._cascading(tier, policy, max_flips)
        if TRANSFORMER in scorer._tiers and first_choice(device) != "cpu":
            # A device that cannot be had is said now, not after the data has been read.
            session = scorer._tiers[TRANSFORMER].open()
            if device == "auto" and not on_gpu(session):
                # It is offered and does not start: precision, batches and workers are to be the CPU's.
                return cls.load(folder, "cpu", precision, tier, threads, tokenizer, policy, max_flips)
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
        return list(dict.fromkeys(name for tier in self._ordered() for name in tier.providers))

    @property
    def tokenizer(self) -> str:
        """The library that tokenises: ``tokenizers`` or ``tokie``."""
        # Asking each opens each: afterwards the folder is not needed again.
        return ", ".join(dict.fromkeys(tier.tokenizer for tier in self._ordered()))

    @property
    def tokens(self) -> TokenCount:
        """What the transformer has computed so far in this object, with and without padding."""
        return sum((tier.tokens for tier in self._tiers.values()), TokenCount())

    @property
    def device(self) -> str:
        """Where it runs, never ``auto``; ``cpu`` for the fast tier alone."""
        return first_choice(self._options.device) if TRANSFORMER in self._tiers else "cpu"

    @property
    def threads(self) -> int | None:
        """Threads that compute, as asked for; None takes all usable cores."""
        return self._options.threads

    def with_threads(self, threads: int) -> "Scorer":
        """The same scorer with another number of threads."""
        other = copy.copy(self)
        other._options = replace(self._options, threads=threads)
        other._make_tiers()
        return other

    def score(self, examples: Sequence[Example], on_batch: Callable[[int], None] | None = None) -> np.ndarray:
        """Rate examples.

        Args:
            examples: what is to be rated; in what order and company does not matter in fp32, and by at most 0.01 in int8.
            on_batch: called after each batch with its number of rows, for progress.

        Returns:
            float32 (n, d) on the judge's scale, columns as in ``dimensions``.
        """
        return self.rate(examples, on_batch).scores

    def rate(self, examples: Sequence[Example], on_batch: Callable[[int], None] | None = None) -> Rated:
        """As ``score``, and in a cascade also which tier gave each row its scores.

        In a cascade ``on_batch`` counts a row that goes on to the transformer there only.
        """
        if self._doubts is None or self.cascade is None:
            return Rated(self._tiers[self.tier].score(examples, on_batch))
        scores = self._tiers[FAST].score(examples)
        unsure = self._doubts.of(scores) > self.cascade.limit
        if on_batch is not None:
            on_batch(int((~unsure).sum()))
        rest = np.flatnonzero(unsure)
        scores[rest] = self._tiers[TRANSFORMER].score([examples[row] for row in rest.tolist()], on_batch)
        return Rated(scores, unsure)

    def _cascading(self, tier: str, policy: Decides | None, max_flips: float) -> "Scorer":
        """The scorer with the tier that keeps a promise; ``tier`` is ``cascade`` or ``auto``."""
        if policy is None:
            raise EmpathyError(
                "a cascade sends on what lies near a threshold, so it needs a policy: Scorer.load(…, tier='cascade', "
                "policy=PaperPolicy()), or 'ee-cli filter'. Without one use --tier fast or --tier transformer."
            )
        if not self.spec.cascade or FAST not in self.spec.tiers:
            raise EmpathyError(f"'{self.folder}' has no fast tier to make a cascade of: distil it with --dialogues.")
        policy.check(self.dimensions, self.scales)
        pairs = Pairs.read(self.folder / self.spec.cascade["file"])
        plan = plan_cascade(pairs, policy, self.dimensions, max_flips)
        if plan.tier == TRANSFORMER or (plan.tier == FAST and tier == "auto"):
            precision = "fp32" if plan.tier == FAST else self.precision
            return Scorer(self.folder, self.spec, self.digest, plan.tier, precision, self._options)
        scorer = Scorer(self.folder, self.spec, self.digest, CASCADE, self.precision, self._options)
        scorer.cascade, scorer.policy = plan, policy
        scorer._doubts = Doubts(pairs, policy, self.dimensions)
        return scorer

    def _make_tiers(self) -> None:
        names = (FAST, TRANSFORMER) if self.tier == CASCADE else (self.tier,)
        self._tiers = {
            name: make_tier(name, self.folder, self.spec.tiers[name], self.precision, self.spec, self._options)
            for name in names
        }

    def as_map(
        self, policy: "Route | None" = None, examples: ExampleMode = "every-turn", bad_rows: "BadRows" = "keep"
    ) -> "RowMap":
        """A function for ``dataset.map(scorer.as_map(), batched=True)`` of the ``datasets`` library; see ``RowOptions``."""
        from efficient_empathy.scorer.adapters.columns import RowMap
        from efficient_empathy.scorer.adapters.rows import RowOptions

        return RowMap(self, RowOptions(policy, (), examples, bad_rows))

    def as_filter(self, policy: "Route", keep: str | Sequence[str], bad_rows: "BadRows" = "raise") -> "RowFilter":
        """A function for ``dataset.filter(scorer.as_filter(policy, "sensibility"), batched=True)``; see ``RowFilter``."""
        from efficient_empathy.scorer.adapters.columns import RowFilter
        from efficient_empathy.scorer.adapters.rows import RowOptions

        kept = (keep,) if isinstance(keep, str) else tuple(keep)
        return RowFilter(self, RowOptions(policy, kept, "last-turn", bad_rows))

    def _ordered(self) -> list[Tier]:
        return [self._tiers[name] for name in (TRANSFORMER, FAST) if name in self._tiers]


def _precision(folder: str | Path, spec: ScorerSpec, precision: str, device: str) -> str:
    """The transformer's precision that is meant."""
    files = spec.tiers[TRANSFORMER]
    if precision == "auto":
        chosen = first_choice(device)
        # OpenVINO's int8 arithmetic is not the one that passed the gate.
        best = "int8" if chosen == "cpu" else "fp16" if is_gpu(chosen) else "fp32"
        return best if best in files else "fp32"
    if precision not in files:
        raise EmpathyError(
            f"'{folder}' has no precision '{precision}' in tier '{TRANSFORMER}'; it has: {', '.join(files)}."
        )
    return precision


def can_cascade(spec: ScorerSpec) -> bool:
    """Whether a scorer folder has what a cascade takes."""
    return FAST in spec.tiers and spec.cascade.get("rows", 0) >= LEAST_PAIRS
