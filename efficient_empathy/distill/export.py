"""From a trained student to ONNX files, and the parity gate that each of them has to pass."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficient_empathy.distill.student import Student
from efficient_empathy.distill.training import choose_precision
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.batching import token_budget_batches
from efficient_empathy.scorer.encoding import Encoded
from efficient_empathy.scorer.session import open_session, run_batch

LEAST_SPEARMAN = 0.99
"""With fp32, in each dimension: of the gate that int8 and fp16 have to pass."""
MOST_FLIPS = 0.01
"""Share of decisions that may differ from fp32's, of the same gate."""
_OPSET = 17
_FP32_TOLERANCE = 1e-4
_MAX_BATCH_TOKENS = 2048
_ONNX_BATCH_TOKENS = 256


@dataclass(frozen=True)
class Fp32Parity:
    """How the fp32 ONNX file compares with torch."""

    rows: int
    """Rows compared."""
    largest_difference: float
    """Largest absolute difference of a score, on the judge's scale."""


def export_fp32(student: Student, path: Path) -> None:
    """Write the student as an fp32 ONNX file through Optimum, with batch and length left open.

    Raises:
        EmpathyError: Optimum has no ONNX description of this architecture.
    """
    from optimum.exporters.onnx.convert import export_pytorch
    from optimum.exporters.tasks import TasksManager

    model_type = student.config.model_type
    try:
        constructor = TasksManager.get_exporter_config_constructor(
            "onnx", model_type=model_type, task="feature-extraction", library_name="transformers"
        )
    except (KeyError, ValueError) as error:
        raise EmpathyError(
            f"Optimum cannot export the architecture '{model_type}' to ONNX: choose another --backbone."
        ) from error
    config = constructor(student.config)
    open_axes = {0: "batch_size", 1: "sequence_length"}
    inputs = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), open_axes)
    # The segments are always an input: the student pools by them, whether or not its encoder knows them.
    overrides = {"inputs": property(lambda _: inputs), "outputs": property(lambda _: {"scores": {0: "batch_size"}})}
    described = type("StudentOnnxConfig", (type(config),), overrides)(student.config)
    student.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on what tracing cannot follow; the parity gate finds what matters
        export_pytorch(student, described, opset=_OPSET, output=path)


def torch_scores(student: Student, encoded: Encoded, pad: int) -> np.ndarray:
    """Scores of encoded examples by the torch model, float32 (n, d)."""
    return _in_batches(student, student.forward, encoded, pad)


def probabilities(student: Student, encoded: Encoded, pad: int) -> np.ndarray:
    """Probabilities by the torch model that each example's scores are more than each point, float32 (n, points).

    Computed where and in the precision that students are trained: on a GPU where there is one, in bf16 where it pays. The student
    is on the CPU afterwards.
    """
    return _as_trained(student, student.probabilities, encoded, pad)


def probabilities_and_states(student: Student, encoded: Encoded, pad: int) -> np.ndarray:
    """As ``probabilities``, and beside them the pooled states that they come from, float32 (n, points + 2 * hidden)."""

    def run(**inputs: torch.Tensor) -> torch.Tensor:
        pooled = student.pooled(**inputs)
        return torch.cat([torch.sigmoid(student.logits(pooled)), pooled], 1)

    return _as_trained(student, run, encoded, pad)


def _as_trained(student: Student, run: Callable[..., torch.Tensor], encoded: Encoded, pad: int) -> np.ndarray:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student.to(device)
    with torch.autocast(device, torch.bfloat16, enabled=choose_precision() == "bf16-mixed"):
        found = _in_batches(student, run, encoded, pad)
    student.cpu()
    return found


def _in_batches(student: Student, run: Callable[..., torch.Tensor], encoded: Encoded, pad: int) -> np.ndarray:
    student.eval()
    device = student.head.weight.device
    found: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for rows in token_budget_batches(encoded.lengths, _MAX_BATCH_TOKENS):
            batch = {name: torch.from_numpy(array).to(device) for name, array in encoded.batch(rows, pad).items()}
            found.update(zip(rows.tolist(), run(**batch).float().cpu().numpy(), strict=True))
    return np.stack([found[row] for row in range(len(encoded.ids))])


def onnx_scores(session: Any, encoded: Encoded, pad: int) -> np.ndarray:
    """Scores of encoded examples by an ONNX session, float32 (n, d)."""
    scores = np.zeros((len(encoded.ids), session.get_outputs()[0].shape[1]), np.float32)
    for rows in token_budget_batches(encoded.lengths, _ONNX_BATCH_TOKENS):
        scores[rows] = run_batch(session, encoded.batch(rows, pad))
    return scores


def check_fp32(path: Path, expected: np.ndarray, encoded: Encoded, pad: int) -> Fp32Parity:
    """Compare the fp32 file with torch's scores.

    Raises:
        EmpathyError: a score differs by more than 1e-4: the export is wrong and nothing is shipped.
    """
    found = onnx_scores(open_session(path, "cpu"), encoded, pad)
    difference = float(np.abs(found - expected).max())
    if not difference <= _FP32_TOLERANCE:  # so put, NaN does not pass
        raise EmpathyError(
            f"the exported model's scores differ from torch's by up to {difference:.2g} (allowed: {_FP32_TOLERANCE:g}): "
            "the scorer was not written. Try another --backbone, or report this with the output of 'ee-cli doctor'."
        )
    return Fp32Parity(len(expected), difference)
