"""Making activations easier to quantise: wide channels are narrowed and the weights behind them widened.

SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, equation 4) on an ONNX file: each input of a matrix product is divided by
a factor a channel, and the rows of the product's weight are multiplied by it, so the result stays the same. An encoder's
layer norms have a few channels tens of times wider than the rest; without this they take most of the 256 steps.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_STRENGTH = 0.7
"""How much of the width moves from activations to weights; 0.5 left 2 to 4 times as many flipped decisions."""
_SMALLEST = 1e-5


def smooth(source: Path, target: Path, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write a copy of an fp32 file whose matrix products have smoother inputs; it gives the same scores.

    Args:
        source: the fp32 file.
        target: where the copy goes.
        batches: inputs of the graph, on which the channels' widths are measured.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(source))
    weights = {initializer.name: initializer for initializer in model.graph.initializer}
    consumers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            consumers.setdefault(node.input[0], []).append(node)
    widths = _channel_widths(source, list(consumers), batches)
    divisions = {}
    for name, nodes in consumers.items():
        arrays = [numpy_helper.to_array(weights[node.input[1]]) for node in nodes]
        factors = _factors(widths[name], np.max([np.abs(array).max(1) for array in arrays], axis=0))
        inverse = numpy_helper.from_array((1 / factors).astype(np.float32), f"{name}_inverse_factors")
        model.graph.initializer.append(inverse)
        smoothed = f"{name}_smoothed"
        divisions[nodes[0].name] = onnx.helper.make_node("Mul", [name, inverse.name], [smoothed], f"{smoothed}_Mul")
        for node, array in zip(nodes, arrays, strict=True):
            scaled = (array * factors[:, None]).astype(np.float32)
            weights[node.input[1]].CopyFrom(numpy_helper.from_array(scaled, node.input[1]))
            node.input[0] = smoothed
    ordered = []
    for node in model.graph.node:
        if node.name in divisions:
            ordered.append(divisions[node.name])
        ordered.append(node)
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    onnx.save(model, str(target))


def _factors(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One factor a channel, (channels,), with a geometric mean of 1 so that the weights keep their scale."""
    a, w = np.maximum(activations, _SMALLEST), np.maximum(weights, _SMALLEST)
    factors = a**_STRENGTH / w ** (1 - _STRENGTH)
    return factors / np.exp(np.log(factors).mean())


def _channel_widths(
    source: Path, names: list[str], batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Largest absolute value of each channel of some tensors inside a graph, each (channels,)."""
    import onnx
    import onnxruntime as ort

    model = onnx.load(str(source))
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    widths: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        # By way of a file: as bytes the weights would be in memory once more.
        opened = Path(scratch) / "opened.onnx"
        onnx.save(model, str(opened))
        del model
        session = ort.InferenceSession(str(opened), providers=["CPUExecutionProvider"])
        for batch in batches:
            for name, values in zip(names, session.run(names, dict(batch)), strict=True):
                found = np.abs(values).reshape(-1, values.shape[-1]).max(0)
                widths[name] = np.maximum(widths[name], found) if name in widths else found
    return widths
