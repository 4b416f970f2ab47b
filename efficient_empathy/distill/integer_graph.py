"""Rewriting a fused fp32 graph into an int8 one: which operator becomes which.

The input of a matrix product becomes unsigned bytes with a fixed scale, its weight signed bytes with a scale a column; the
product leaves as fp32 with its bias added. All else stays in fp32, in the operators that were fastest on the CPU.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from efficient_empathy.distill.smoothing import Extent, smoothing_factors

_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class _Bytes:
    """A tensor turned into bytes."""

    name: str
    scale: str
    zero: str
    factors: np.ndarray
    """What its channels were divided by, (channels,)."""


def products(model: Any) -> dict[str, str]:
    """Name of each node that multiplies by a constant weight, with the tensor that it multiplies; in the graph's order."""
    matrices = {initializer.name for initializer in model.graph.initializer if len(initializer.dims) == 2}
    return {
        node.name: node.input[0]
        for node in model.graph.node
        if (node.op_type == "MatMul" or _is_plain_attention(node)) and node.input[1] in matrices
    }


def feed_forward_outputs(model: Any) -> list[str]:
    """Names of products whose weight is taller than wide: they bring the widened layer back to the hidden size."""
    shapes = {initializer.name: tuple(initializer.dims) for initializer in model.graph.initializer}
    chosen = products(model)
    tall = {name for name, shape in shapes.items() if len(shape) == 2 and shape[0] > shape[1]}
    return [node.name for node in model.graph.node if node.name in chosen and node.input[1] in tall]


def _is_plain_attention(node: Any) -> bool:
    """Attention of a sequence to itself with bias and mask and nothing else."""
    known = {"num_heads", "mask_filter_value", "scale"}
    return (
        node.op_type == "Attention"
        and len(node.input) == 4
        and all(node.input)
        and {attribute.name for attribute in node.attribute} <= known
    )


def to_int8(model: Any, found: Mapping[str, Extent], kept: Collection[str]) -> Any:
    """Rewrite a model in place.

    Args:
        model: the fused fp32 model.
        found: what the inputs of its products held on the calibration rows.
        kept: names of products that stay in fp32.

    Returns:
        The model.
    """
    return _Rewriting(model, found, kept).run()


class _Rewriting:
    def __init__(self, model: Any, found: Mapping[str, Extent], kept: Collection[str]):
        from onnx import numpy_helper

        self._model = model
        self._found = found
        self._chosen = set(products(model)) - set(kept)
        self._constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._nodes: list[Any] = []
        self._bytes: dict[str, _Bytes] = {}
        self._folded: dict[str, np.ndarray] = {}
        self._with_bias: set[str] = set()

    def run(self) -> Any:
        for node in list(self._model.graph.node):
            if node.name in self._chosen:
                (self._product if node.op_type == "MatMul" else self._attention)(node)
            elif node.op_type == "SkipLayerNormalization" and len(node.output) == 1:
                self._normalisation(node)
            elif node.op_type == "BiasGelu" and node.input[0] in self._with_bias:
                self._add("Gelu", [node.input[0]], node.output[0], _MICROSOFT)
            else:
                self._nodes.append(node)
        return self._assembled()

    def _product(self, node: Any) -> None:
        weight = self._constants[node.input[1]]
        bias = self._bias_behind(node.output[0])
        self._multiply(self._as_bytes(node.input[0]), weight, bias, node.output[0])

    def _bias_behind(self, name: str) -> np.ndarray | None:
        """The bias that the one reader of a product would add: the product does it in passing."""
        readers = self._readers.get(name, [])
        place = {"BiasGelu": 1, "SkipLayerNormalization": 4}.get(readers[0].op_type if len(readers) == 1 else "")
        if place is None or len(readers[0].input) <= place or len(readers[0].output) > 1:
            return None
        self._with_bias.add(name)
        return self._constants.get(readers[0].input[place])

    def _normalisation(self, node: Any) -> None:
        """A sum and a layer normalisation: together a third of the time that SkipLayerNormalization takes on a CPU."""
        left, right, gain, *offset = node.input[:4]
        bias = [node.input[4]] if len(node.input) > 4 and not self._with_bias & {left, right} else []
        # Sum and not Add: ONNX Runtime would fuse an Add into SkipLayerNormalization again.
        total = self._add("Sum", [left, right, *bias], f"{node.output[0]}_sum")
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        self._add("LayerNormalization", [total, gain, *offset], node.output[0], axis=-1, epsilon=epsilon)

    def _attention(self, node: Any) -> None:
        from onnx import helper

        weights = np.split(self._constants[node.input[1]], 3, axis=1)
        biases = np.split(self._constants[node.input[2]], 3)
        factors = self._factors_behind(node.output[0])
        if factors is not None:
            # Attention only mixes rows of the values, so their channels can be narrowed where they are made.
            weights[2], biases[2] = weights[2] / factors, biases[2] / factors
            self._folded[node.output[0]] = factors
        source = self._as_bytes(node.input[0])
        names = [f"{node.output[0]}_{part}" for part in ("query", "key", "value")]
        for name, weight, bias in zip(names, weights, biases, strict=True):
            self._multiply(source, weight, bias, name)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        # With the mask also where nothing is padded: the faster kernel that a full batch could take rounds otherwise, and
        # rows would score differently by up to 0.03 points alone and in company.
        inputs = [*names, "", node.input[3]]
        self._add("MultiHeadAttention", inputs, node.output[0], _MICROSOFT, **attributes)

    def _factors_behind(self, name: str) -> np.ndarray | None:
        """Smoothing factors of a tensor that quantised products alone read, else None."""
        readers = self._readers.get(name, [])
        if not readers or not all(reader.name in self._chosen for reader in readers):
            return None
        rows = np.max([np.abs(self._constants[reader.input[1]]).max(1) for reader in readers], axis=0)
        return smoothing_factors(self._found[name].width, rows)

    def _as_bytes(self, name: str) -> _Bytes:
        if name in self._bytes:
            return self._bytes[name]
        source, factors = name, self._folded.get(name)
        if factors is None:
            readers = [reader for reader in self._readers[name] if reader.name in self._chosen]
            rows = np.max([np.abs(self._constants[reader.input[1]]).max(1) for reader in readers], axis=0)
            factors = smoothing_factors(self._found[name].width, rows)
            source = self._add("Mul", [name, self._constant(f"{name}_narrowing", 1 / factors)], f"{name}_narrowed")
        low = min(float((self._found[name].low / factors).min()), 0.0)
        high = max(float((self._found[name].high / factors).max()), 0.0)
        step = max(high - low, 1e-6) / 255
        scale = self._constant(f"{name}_scale", np.array(step, np.float32))
        zero = self._constant(f"{name}_zero", np.array(round(-low / step), np.uint8))
        made = self._add("QuantizeLinear", [source, scale, zero], f"{name}_bytes")
        self._bytes[name] = _Bytes(made, scale, zero, factors)
        return self._bytes[name]

    def _multiply(self, source: _Bytes, weight: np.ndarray, bias: np.ndarray | None, output: str) -> None:
        scaled = weight * source.factors[:, None]
        steps = np.maximum(np.abs(scaled).max(0), 1e-9) / 127
        whole = np.clip(np.rint(scaled / steps), -127, 127).astype(np.int8)
        inputs = [
            source.name,
            self._constant(f"{output}_weight", whole),
            source.scale,
            self._constant(f"{output}_weight_scales", steps.astype(np.float32)),
            source.zero,
            "",
        ]
        if bias is not None:
            inputs.append(self._constant(f"{output}_bias", bias.astype(np.float32)))
        self._add("MatMulIntegerToFloat", inputs, output, _MICROSOFT)

    def _add(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, [output], f"{output}/{kind}", domain=domain, **attributes))
        return output

    def _constant(self, name: str, values: np.ndarray) -> str:
        self._constants[name] = values
        return name

    def _assembled(self) -> Any:
        from onnx import helper, numpy_helper

        graph = self._model.graph
        used = {name for node in self._nodes for name in node.input}
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(
            numpy_helper.from_array(values, name) for name, values in self._constants.items() if name in used
        )
        if _MICROSOFT not in {opset.domain for opset in self._model.opset_import}:
            self._model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
        return self._model
