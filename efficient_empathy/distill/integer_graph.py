"""Rewriting a fused fp32 graph into an int8 one: which operator becomes which.

The input of a matrix product becomes unsigned bytes with a fixed scale, its weight signed bytes with a scale a column; the
product leaves as fp32 with its bias added. All else stays in fp32, in the operators that were fastest on the CPU, and so do the
few channels inside each feed-forward block that are far wider than the others (LLM.int8, Dettmers et al. 2022, arXiv 2208.07339).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from efficient_empathy.distill.fused_graph import NEWER_OPERATORS, fits_newer_operators, products
from efficient_empathy.distill.smoothing import Extent, smoothing_factors

_MICROSOFT = "com.microsoft"
_WIDE_CHANNELS = 16
"""Inside a feed-forward block, in fp32: one or two are several times wider than all others and would take their steps."""
_LEAST_NARROW = 3
"""At least so many times as many channels stay in bytes: in smaller blocks fewer are left out."""


@dataclass(frozen=True)
class _Bytes:
    """A tensor turned into bytes."""

    name: str
    scale: str
    zero: str
    factors: np.ndarray
    """What its channels were divided by, (channels,)."""


@dataclass(frozen=True)
class _Block:
    """A feed-forward block whose two products are both to be in bytes."""

    up: Any
    activation: Any
    down: Any


def to_int8(model: Any, found: Mapping[str, Extent], kept: Collection[str]) -> Any:
    """Rewrite a model in place.

    Args:
        model: the fused fp32 model.
        found: what the inputs of its products held on the calibration rows; products of other tensors stay in fp32.
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
        self._chosen = {name for name, tensor in products(model).items() if tensor in found} - set(kept)
        self._constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._nodes: list[Any] = []
        self._bytes: dict[str, _Bytes] = {}
        self._folded: dict[str, np.ndarray] = {}
        self._with_bias: set[str] = set()
        self._made: set[str] = set()
        self._newer = fits_newer_operators(model)
        self._blocks = {block.down.name: block for block in self._find_blocks()}

    def run(self) -> Any:
        inside = {node.output[0] for block in self._blocks.values() for node in (block.up, block.activation)}
        for node in list(self._model.graph.node):
            if node.output[0] in inside:
                continue  # written with the product that ends the block
            if node.name in self._blocks:
                self._feed_forward(self._blocks[node.name])
            elif node.name in self._chosen:
                (self._product if node.op_type == "MatMul" else self._attention)(node)
            elif node.op_type == "SkipLayerNormalization" and len(node.output) == 1:
                self._normalisation(node)
            elif node.op_type == "BiasGelu" and node.input[0] in self._with_bias:
                self._add("Gelu", [node.input[0]], node.output[0], _MICROSOFT)
            else:
                self._nodes.append(node)
        return self._assembled()

    def _find_blocks(self) -> Iterator[_Block]:
        for up in self._model.graph.node:
            activation = self._only_reader(up.output[0], "BiasGelu")
            down = activation and self._only_reader(activation.output[0], "MatMul")
            if down and {up.name, down.name} <= self._chosen:
                yield _Block(up, activation, down)

    def _only_reader(self, name: str, kind: str) -> Any:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None

    def _feed_forward(self, block: _Block) -> None:
        """Both products, with the widest channels between them apart."""
        inner, output = block.activation.output[0], block.down.output[0]
        into, bias, back = (self._constants[n.input[1]] for n in (block.up, block.activation, block.down))
        extent, rows = self._found[inner], np.abs(back).max(1)
        order = np.argsort(extent.width * rows, kind="stable")
        count = min(_WIDE_CHANNELS, len(order) // (_LEAST_NARROW + 1))
        narrow, wide = np.sort(order[: len(order) - count]), np.sort(order[len(order) - count :])
        source = self._as_bytes(block.up.input[0])
        for name, channels in ((f"{inner}_narrow", narrow), (f"{inner}_wide", wide)):
            self._multiply(source, into[:, channels], bias[channels], f"{name}_before")
            self._add("Gelu", [f"{name}_before"], name, _MICROSOFT)
        narrow_bytes = self._made_bytes(
            f"{inner}_narrow", Extent(extent.low[narrow], extent.high[narrow]), rows[narrow]
        )
        self._multiply(narrow_bytes, back[narrow], self._bias_behind(output), f"{output}_narrow")
        self._add("MatMul", [f"{inner}_wide", self._constant(f"{output}_wide_weight", back[wide])], f"{output}_wide")
        self._add("Sum", [f"{output}_narrow", f"{output}_wide"], output)

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
        if not self._newer:
            # With the mask also where nothing is padded: the kernel without one rounds otherwise, and rows would score
            # differently by up to 0.03 points alone and in company.
            inputs = [*names, "", node.input[3]]
            self._add("MultiHeadAttention", inputs, node.output[0], _MICROSOFT, **attributes)
            return
        heads = {"q_num_heads": attributes["num_heads"], "kv_num_heads": attributes["num_heads"]}
        scale = {"scale": attributes["scale"]} if "scale" in attributes else {}
        self._add("Attention", [*names, self._seen_by()], node.output[0], **heads, **scale)

    def _seen_by(self) -> str:
        """What each position looks at, bool (rows, 1, positions, positions): all that is real; padding at everything, unread."""
        name = "seen_by"
        if name not in self._made:
            from onnx import TensorProto

            self._made.add(name)
            real = self._add("Cast", ["attention_mask"], f"{name}_real", to=TensorProto.BOOL)
            keys, queries = (
                self._add("Unsqueeze", [real, self._constant(f"{name}_axes_{part}", np.array(axes))], f"{name}_{part}")
                for part, axes in (("keys", [1, 2]), ("queries", [1, 3]))
            )
            self._add("Or", [keys, self._add("Not", [queries], f"{name}_padding")], name)
        return name

    def _factors_behind(self, name: str) -> np.ndarray | None:
        """Smoothing factors of a tensor that quantised products alone read, else None."""
        readers = self._readers.get(name, [])
        if not readers or not all(reader.name in self._chosen for reader in readers):
            return None
        rows = np.max([np.abs(self._constants[reader.input[1]]).max(1) for reader in readers], axis=0)
        return smoothing_factors(self._found[name].width, rows)

    def _as_bytes(self, name: str) -> _Bytes:
        if name not in self._bytes:
            readers = [reader for reader in self._readers[name] if reader.name in self._chosen]
            rows = np.max([np.abs(self._constants[reader.input[1]]).max(1) for reader in readers], axis=0)
            self._bytes[name] = self._made_bytes(name, self._found[name], rows)
        return self._bytes[name]

    def _made_bytes(self, name: str, extent: Extent, rows: np.ndarray) -> _Bytes:
        """Bytes of a tensor; ``rows`` are the largest absolute values of each row of the weights that they meet."""
        source, factors = name, self._folded.get(name)
        if factors is None:
            factors = smoothing_factors(extent.width, rows)
            source = self._add("Mul", [name, self._constant(f"{name}_narrowing", 1 / factors)], f"{name}_narrowed")
        low = min(float((extent.low / factors).min()), 0.0)
        high = max(float((extent.high / factors).max()), 0.0)
        step = max(high - low, 1e-6) / 255
        scale = self._constant(f"{name}_scale", np.array(step, np.float32))
        zero = self._constant(f"{name}_zero", np.array(round(-low / step), np.uint8))
        made = self._add("QuantizeLinear", [source, scale, zero], f"{name}_bytes")
        return _Bytes(made, scale, zero, factors)

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
        versions = {opset.domain: opset.version for opset in self._model.opset_import} | {_MICROSOFT: 1}
        if self._made:
            versions[""] = max(versions[""], NEWER_OPERATORS)
        del self._model.opset_import[:]
        self._model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
        return self._model
