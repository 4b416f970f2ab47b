"""fp16 for GPUs: the encoder of the fp32 ONNX file in half precision, shipped only if it passes the parity gate.

Pooling, head, calibration and clipping stay in fp32. ONNX Runtime computes an fp16 file on a CPU in fp32, without rounding
between the operators, so running the file there would not show what a GPU loses. It is compared by a copy of the fp32 file
that rounds the weights and the output of each operator of the encoder to fp16, overflow included. Sums inside an operator
are in fp32 there, as in the GPU's matrix units; a GPU's kernels may still differ in the last bits.
"""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficient_empathy.distill.export import LEAST_SPEARMAN, MOST_FLIPS, onnx_scores
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.encoding import Encoded
from efficient_empathy.scorer.ranks import spearman
from efficient_empathy.scorer.session import open_session

_ENCODER = "/encoder/"
"""Start of the names of the nodes that stem from ``Student.encoder``."""
_LARGEST = float(np.finfo(np.float16).max)
_FILE = "transformer.fp16.onnx"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HalfParity:
    """How fp16 compares with the fp32 file on the validation rows."""

    rows: int
    """Rows compared."""
    spearman: tuple[float, ...]
    """Rank correlation with fp32 of each dimension."""
    flips: float
    """Share of the decisions that differ from fp32's, 0 to 1."""
    largest_difference: float | None
    """Largest absolute difference of a score, in points of the scale; None where a score was not a number."""

    @property
    def passed(self) -> bool:
        """Whether the file may be shipped."""
        return self.largest_difference is not None and min(self.spearman) >= LEAST_SPEARMAN and self.flips <= MOST_FLIPS

    def describe(self) -> str:
        """The figures in words."""
        if self.largest_difference is None:
            return "a number inside the encoder is too large for fp16"
        return f"Spearman with fp32 {min(self.spearman):.4f}, {100 * self.flips:.2f} % of decisions flip"


def add_half(
    folder: Path, files: dict[str, str], encoded: Encoded, pad: int, decide: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """Add the fp16 file to a scorer folder in the making, and to its ``files`` by precision, if it passes the gate.

    Returns:
        The parity section of ``scorer.json``.
    """
    parity = make_half(folder / files["fp32"], folder / _FILE, encoded, pad, decide)
    if parity.passed:
        files["fp16"] = _FILE
    else:
        _log.warning("no fp16 file: %s. A GPU will run fp32.", parity.describe())
    return {**asdict(parity), "passed": parity.passed}


def make_half(
    fp32: Path, fp16: Path, encoded: Encoded, pad: int, decide: Callable[[np.ndarray], np.ndarray]
) -> HalfParity:
    """Write an fp16 file if it passes the gate, the same as int8's for ranks and decisions.

    Args:
        fp32: the exported file.
        fp16: where the file goes.
        encoded: validation rows.
        pad: id of the padding token.
        decide: the decision that must not flip, (n, d) scores to (n,) classes.

    Returns:
        The comparison; ``passed`` says whether the file is there.

    Raises:
        EmpathyError: the encoder cannot be told from the rest of the graph.
    """
    import onnx

    reference = onnx_scores(open_session(fp32, "cpu"), encoded, pad)
    with tempfile.TemporaryDirectory() as scratch:
        rounded = Path(scratch) / "rounded.onnx"
        onnx.save(_rounding(onnx.load(fp32)), str(rounded))
        parity = compare(onnx_scores(open_session(rounded, "cpu"), encoded, pad), reference, decide)
    if parity.passed:
        onnx.save(_half(onnx.load(fp32)), str(fp16))
        open_session(fp16, "cpu")  # it is a file that ONNX Runtime takes
    return parity


def compare(found: np.ndarray, reference: np.ndarray, decide: Callable[[np.ndarray], np.ndarray]) -> HalfParity:
    """Compare scores in half precision with those in single, each (n, d)."""
    if not np.isfinite(found).all():  # a state went beyond 65,504, the largest number of fp16
        return HalfParity(len(found), (0.0,) * found.shape[1], 1.0, None)
    return HalfParity(
        rows=len(found),
        spearman=tuple(spearman(found[:, d], reference[:, d]) for d in range(found.shape[1])),
        flips=float((decide(found) != decide(reference)).mean()),
        largest_difference=float(np.abs(found - reference).max()),
    )


def _half(model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kept = [node.name for node in model.graph.node if not _in_encoder(node)]
    if len(kept) == len(model.graph.node):
        raise EmpathyError("--fp16: this encoder's export has no names to tell it from the head by; leave --fp16 out.")
    converted = convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    _join_casts(converted.graph)
    return converted


def _join_casts(graph: Any) -> None:
    """Take out the way from fp32 over fp16 to fp32: between two nodes that were kept in fp32 it would round their values."""
    import onnx

    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    exact = {
        name: casts[node.input[0]].input[0]
        for name, node in casts.items()
        if node.input[0] in casts and _target(node) == single and _target(casts[node.input[0]]) == half
    }
    for node in graph.node:
        node.input[:] = [exact.get(name, name) for name in node.input]
    for output in graph.output:
        if output.name in exact:
            last = casts[output.name]
            last.op_type, last.input[0] = "Identity", exact[output.name]
            del last.attribute[:]
    _drop_unread(graph)


def _target(cast: Any) -> int:
    return next(attribute.i for attribute in cast.attribute if attribute.name == "to")


def _drop_unread(graph: Any) -> None:
    """Take out casts that nothing reads any longer."""
    while True:
        read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        unread = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)


def _rounding(model: Any) -> Any:
    """The fp32 model with weights and states of its encoder rounded to fp16."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    graph = model.graph
    read = {name for node in graph.node if _in_encoder(node) for name in node.input}
    for tensor in graph.initializer:
        if tensor.name in read and tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(_rounded(tensor))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if not _in_encoder(node):
            continue
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == onnx.TensorProto.FLOAT:
                attribute.t.CopyFrom(_rounded(attribute.t))
        for place, name in enumerate(node.output):
            if name in floats:
                exact, half = f"{name}/exact", f"{name}/half"
                node.output[place] = exact
                nodes.append(onnx.helper.make_node("Cast", [exact], [half], to=onnx.TensorProto.FLOAT16))
                nodes.append(onnx.helper.make_node("Cast", [half], [name], to=onnx.TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _rounded(tensor: Any) -> Any:
    import onnx

    values = np.clip(onnx.numpy_helper.to_array(tensor), -_LARGEST, _LARGEST)  # as the conversion does: -3e38 masks
    return onnx.numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name)


def _in_encoder(node: Any) -> bool:
    return node.name.startswith(_ENCODER)
