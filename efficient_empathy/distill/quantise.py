"""int8: static, calibrated quantisation of the fp32 ONNX file, shipped only if it passes the parity gate.

Activations get fixed scales from calibration rows, so a row's score does not depend on its batch mates, as it would with
dynamic quantisation. Only the inputs of matrix products are quantised; their outputs stay in fp32, which keeps the error
small and costs no speed. Wide channels are smoothed first, and the graph's nodes are fused.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficient_empathy.distill.export import LEAST_SPEARMAN, MOST_FLIPS, onnx_scores
from efficient_empathy.distill.fused_graph import feed_forward_outputs, products
from efficient_empathy.distill.fusing import fuse
from efficient_empathy.distill.integer_graph import to_int8
from efficient_empathy.distill.smoothing import extents
from efficient_empathy.scorer.batching import token_budget_batches
from efficient_empathy.scorer.encoding import Encoded
from efficient_empathy.scorer.ranks import spearman
from efficient_empathy.scorer.session import open_session, run_batch

_MOST_BATCH_EFFECT = 0.01
_CALIBRATION_TOKENS = 1024
_COMPANIES = 50
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Int8Parity:
    """How an int8 file compares with the fp32 file on the validation rows."""

    rows: int
    """Rows compared."""
    spearman: tuple[float, ...]
    """Rank correlation with fp32 of each dimension."""
    flips: float
    """Share of the decisions that differ from fp32's, 0 to 1."""
    batch_effect: float
    """Largest change of a row's score between being alone and being in 50 random batches, in points of the scale."""
    kept_fp32: tuple[str, ...]
    """Matrix products that stayed in fp32 so that the gate was passed."""

    @property
    def passed(self) -> bool:
        """Whether the file may be shipped."""
        return (
            min(self.spearman) >= LEAST_SPEARMAN
            and self.flips <= MOST_FLIPS
            and self.batch_effect <= _MOST_BATCH_EFFECT
        )

    def describe(self) -> str:
        """The figures in words, with what the gate asks for."""
        return (
            f"its Spearman with fp32 is {min(self.spearman):.4f} ({LEAST_SPEARMAN:g} is needed), "
            f"{100 * self.flips:.2f} % of decisions flip ({100 * MOST_FLIPS:g} % is allowed), "
            f"a row's score moves by up to {self.batch_effect:.3f} with its batch ({_MOST_BATCH_EFFECT:g} is allowed)"
        )


def quantise(
    fp32: Path,
    int8: Path,
    encoded: Encoded,
    pad: int,
    decide: Callable[[np.ndarray], np.ndarray],
    calibration: Encoded,
) -> Int8Parity:
    """Write an int8 file that passes the gate, keeping ever more matrix products in fp32 until one does.

    Args:
        fp32: the exported file.
        int8: where the int8 file goes; it is removed again if no attempt passes.
        encoded: validation rows, on which both files are compared.
        pad: id of the padding token.
        decide: the decision that must not flip, (n, d) scores to (n,) classes.
        calibration: rows that set the activations' scales; others than those compared.

    Returns:
        The comparison of the last attempt; ``passed`` says whether the file is there.
    """
    import onnx

    reference = onnx_scores(open_session(fp32, "cpu"), encoded, pad)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "fused.onnx"
        if not fuse(fp32, source, next(_batches(calibration, pad))):
            source = fp32
        model = onnx.load(str(source))
        found = extents(source, products(model).values(), _batches(calibration, pad))
        for kept in _attempts(model):
            onnx.save(to_int8(onnx.load(str(source)), found, kept), str(int8))
            parity = _compare(int8, reference, encoded, pad, decide, kept)
            if parity.passed:
                return parity
            _log.info(
                "int8 with %d matrix products in fp32: Spearman %.4f, %.2f %% of decisions flip: not good enough",
                len(kept), min(parity.spearman), 100 * parity.flips,
            )  # fmt: skip
    int8.unlink(missing_ok=True)
    return parity


def _attempts(model: Any) -> Iterator[tuple[str, ...]]:
    """What to keep in fp32, from nothing upwards: the lower feed-forward outputs first, which have most of the error."""
    every, wide = list(products(model)), feed_forward_outputs(model)
    yield ()
    yield tuple(wide[:1])
    yield tuple(wide[: (len(wide) + 1) // 2])
    yield tuple(wide)
    yield tuple(dict.fromkeys([*wide, *every[len(every) * 2 // 3 :]]))


def _batches(encoded: Encoded, pad: int) -> Iterator[dict[str, np.ndarray]]:
    for rows in token_budget_batches(encoded.lengths, _CALIBRATION_TOKENS):
        yield encoded.batch(rows, pad)


def _compare(
    int8: Path,
    reference: np.ndarray,
    encoded: Encoded,
    pad: int,
    decide: Callable[[np.ndarray], np.ndarray],
    kept: tuple[str, ...],
) -> Int8Parity:
    session = open_session(int8, "cpu")
    found = onnx_scores(session, encoded, pad)
    return Int8Parity(
        rows=len(found),
        spearman=tuple(spearman(found[:, d], reference[:, d]) for d in range(found.shape[1])),
        flips=float((decide(found) != decide(reference)).mean()),
        batch_effect=batch_effect(session, encoded, pad),
        kept_fp32=kept,
    )


def batch_effect(session: Any, encoded: Encoded, pad: int, seed: int = 0) -> float:
    """Largest change of one row's score between being alone and being in 50 random batches of 8, in points of the scale."""
    rng = np.random.default_rng(seed)
    row = int(rng.integers(len(encoded.ids)))
    alone = run_batch(session, encoded.batch([row], pad))[0]
    largest = 0.0
    for _ in range(_COMPANIES):
        company = rng.choice(len(encoded.ids), size=min(7, len(encoded.ids)), replace=False)
        together = run_batch(session, encoded.batch([row, *company.tolist()], pad))[0]
        largest = max(largest, float(np.abs(together - alone).max()))
    return largest
