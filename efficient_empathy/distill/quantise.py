"""int8: static, calibrated quantisation of the fp32 ONNX file, shipped only if it passes the parity gate.

Activations get fixed scales from calibration rows, so a row's score does not depend on its batch mates, as it would with
dynamic quantisation. Only the inputs of matrix products are quantised; their outputs stay in fp32, which keeps the error
small and costs no speed. Wide channels are smoothed first.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficient_empathy.distill.export import onnx_scores
from efficient_empathy.distill.quality import spearman
from efficient_empathy.distill.smoothing import smooth
from efficient_empathy.scorer.encoding import Encoded
from efficient_empathy.scorer.session import open_session, run_batch

_LEAST_SPEARMAN = 0.99
_MOST_FLIPS = 0.01
_MOST_BATCH_EFFECT = 0.01
_CALIBRATION_BATCH = 16
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
            min(self.spearman) >= _LEAST_SPEARMAN
            and self.flips <= _MOST_FLIPS
            and self.batch_effect <= _MOST_BATCH_EFFECT
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
    reference = onnx_scores(open_session(fp32, "cpu"), encoded, pad)
    with tempfile.TemporaryDirectory() as scratch:
        smoothed, prepared = Path(scratch) / "smoothed.onnx", Path(scratch) / "prepared.onnx"
        smooth(fp32, smoothed, _batches(calibration, pad))
        _prepare(smoothed, prepared)
        for kept in _attempts(prepared):
            _quantise_static(prepared, int8, kept, _reader(calibration, pad))
            parity = _compare(int8, reference, encoded, pad, decide, kept)
            if parity.passed:
                return parity
            _log.info(
                "int8 with %d matrix products in fp32: Spearman %.4f, %.2f %% of decisions flip: not good enough",
                len(kept), min(parity.spearman), 100 * parity.flips,
            )  # fmt: skip
    int8.unlink(missing_ok=True)
    return parity


def _attempts(model: Path) -> Iterator[tuple[str, ...]]:
    """What to keep in fp32, from nothing upwards: the feed-forward outputs first, whose inputs have the widest outliers."""
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    constants = {initializer.name for initializer in graph.initializer}
    products = [node.name for node in graph.node if node.op_type == "MatMul" and set(node.input) & constants]
    wide = _feed_forward_outputs(graph, constants)
    yield ()
    yield tuple(wide)
    yield tuple(dict.fromkeys([*wide, *products[len(products) * 2 // 3 :]]))


def _feed_forward_outputs(graph: Any, constants: set[str]) -> list[str]:
    """Matrix products whose weight is taller than wide: they bring the widened layer back to the hidden size."""
    shapes = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
    found = []
    for node in graph.node:
        weight = next((shapes[name] for name in node.input if name in constants), ())
        if node.op_type == "MatMul" and len(weight) == 2 and weight[0] > weight[1]:
            found.append(node.name)
    return found


def _prepare(fp32: Path, prepared: Path) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)


def _batches(encoded: Encoded, pad: int) -> Iterator[dict[str, np.ndarray]]:
    rows = range(len(encoded.ids))
    for at in range(0, len(rows), _CALIBRATION_BATCH):
        yield encoded.batch(rows[at : at + _CALIBRATION_BATCH], pad)


def _reader(encoded: Encoded, pad: int) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = _batches(encoded, pad)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    return Reader()


def _quantise_static(prepared: Path, int8: Path, kept: tuple[str, ...], calibration: Any) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        str(prepared),
        str(int8),
        calibration,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(kept),
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )


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
