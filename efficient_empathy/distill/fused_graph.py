"""What a fused fp32 graph holds, as far as the int8 one made of it depends on that."""

from typing import Any

NEWER_OPERATORS = 23
"""The first set of the standard's operators with ``Attention``: a third faster than ONNX Runtime's own with a mask."""


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


def fits_newer_operators(model: Any) -> bool:
    """Whether all nodes may stay as they are in the set ``NEWER_OPERATORS``: some operators' attributes became inputs."""
    from onnx import checker

    context = checker.C.CheckerContext()
    context.ir_version, context.opset_imports = model.ir_version, {"": NEWER_OPERATORS}
    try:
        for node in model.graph.node:
            if not node.domain:
                checker.check_node(node, context)
    except checker.ValidationError:
        return False
    return True


def _is_plain_attention(node: Any) -> bool:
    """Attention of a sequence to itself with bias and mask and nothing else."""
    known = {"num_heads", "mask_filter_value", "scale"}
    return (
        node.op_type == "Attention"
        and len(node.input) == 4
        and all(node.input)
        and {attribute.name for attribute in node.attribute} <= known
    )
