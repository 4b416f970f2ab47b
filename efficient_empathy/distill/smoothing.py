"""What the inputs of matrix products hold, and the factors that make them easier to quantise."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_STRENGTH = 0.8
"""How much of the width moves from activations to weights; 0.5 left four times the error."""
_SMALLEST = 1e-5


@dataclass(frozen=True)
class Extent:
    """What the channels of one tensor held on some rows."""

    low: np.ndarray
    """Smallest value of each channel, (channels,)."""
    high: np.ndarray
    """Largest value of each channel, (channels,)."""

    @property
    def width(self) -> np.ndarray:
        """Largest absolute value of each channel, (channels,)."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def smoothing_factors(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What to divide a product's input by, and to multiply the rows of its weight with: the result stays the same.

    SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, equation 4). An encoder's layer norms have a few channels tens of times
    wider than the rest; without this they take most of the 256 steps.

    Args:
        activations: largest absolute value of each channel of the input, (channels,).
        weights: largest absolute value of each row of the weight, (channels,).

    Returns:
        One factor a channel, (channels,), with a geometric mean of 1 so that the weights keep their scale.
    """
    a, w = np.maximum(activations, _SMALLEST), np.maximum(weights, _SMALLEST)
    factors = a**_STRENGTH / w ** (1 - _STRENGTH)
    return (factors / np.exp(np.log(factors).mean())).astype(np.float32)


def extents(model: Path, names: Iterable[str], batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Extent]:
    """What some tensors inside a graph hold, padded positions left out.

    Args:
        model: the fp32 file.
        names: tensors; looked at are those of shape (rows, positions, channels).
        batches: inputs of the graph.

    Returns:
        By name; those that hold something else than rows and positions are left out.
    """
    import onnx
    import onnxruntime as ort

    names = list(dict.fromkeys(names))
    opened = onnx.load(str(model))
    for name in names:
        opened.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    found: dict[str, Extent] = {}
    with tempfile.TemporaryDirectory() as scratch:
        # By way of a file: as bytes the weights would be in memory once more.
        path = Path(scratch) / "opened.onnx"
        onnx.save(opened, str(path))
        del opened
        session: Any = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for batch in batches:
            real = batch["attention_mask"].astype(bool)
            for name, values in zip(names, session.run(names, dict(batch)), strict=True):
                if values.shape[:2] != real.shape:
                    continue  # not of the rows: DeBERTa projects its table of relative positions
                low, high = values[real].min(0), values[real].max(0)
                known = found.get(name, Extent(low, high))
                found[name] = Extent(np.minimum(known.low, low), np.maximum(known.high, high))
    return found
