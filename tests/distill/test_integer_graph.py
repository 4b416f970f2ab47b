"""The int8 graph: what is in bytes, what stays, and that its arithmetic is the fp32 graph's."""

from collections import Counter

import numpy as np
import pytest

from efficient_empathy.distill.fused_graph import feed_forward_outputs, products
from efficient_empathy.distill.fusing import fuse
from efficient_empathy.distill.integer_graph import to_int8
from efficient_empathy.distill.smoothing import Extent, extents, smoothing_factors
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.session import open_session, run_batch

pytest.importorskip("torch", reason="torch is part of the distill extra")
onnx = pytest.importorskip("onnx", reason="onnx is part of the distill extra")
SCALES = (Scale("sensibility", 0.0, 10.0), Scale("rationality", 0.0, 10.0))
LAYERS = 2


def rows(lengths, seed=0):
    rng, width = np.random.default_rng(seed), max(lengths)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = rng.integers(5, 45, mask.shape)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": mask * (np.arange(width) > 2)}


@pytest.fixture(scope="module")
def fp32(tiny_bert, tmp_path_factory):
    """The fused file of a student with random weights, two layers."""
    from efficient_empathy.distill.backbone import open_backbone
    from efficient_empathy.distill.export import export_fp32
    from efficient_empathy.distill.students import new_student

    folder = tmp_path_factory.mktemp("integer")
    export_fp32(new_student(open_backbone(str(tiny_bert), 64), SCALES, 0.0, 0), folder / "plain.onnx")
    assert fuse(folder / "plain.onnx", folder / "fp32.onnx", rows([20, 9]))
    return folder / "fp32.onnx"


def integer(fp32, path, kept=()):
    model = onnx.load(fp32)
    found = extents(fp32, products(model).values(), [rows([20, 9, 14], seed) for seed in range(8)])
    made = to_int8(model, found, kept)
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return path


def kinds(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_factors_worked_by_hand():
    # 8 and 2 to the power 0.8, over their geometric mean 4 to the power 0.8: 2 to the power 0.8 and its inverse.
    found = smoothing_factors(np.array([8.0, 2.0]), np.array([1.0, 1.0]))
    np.testing.assert_allclose(found, [1.7411, 0.5743], atol=1e-4)


def test_padding_does_not_count_for_what_a_tensor_holds(fp32):
    name = next(iter(products(onnx.load(fp32)).values()))
    short, padded = rows([6]), rows([6, 9])
    padded = {key: value[:1] for key, value in padded.items()}  # 6 tokens and 3 of padding
    padded["input_ids"][:, :6] = short["input_ids"]
    padded["token_type_ids"][:, :6] = short["token_type_ids"]
    one, other = (extents(fp32, [name], [batch])[name] for batch in (short, padded))
    np.testing.assert_allclose(one.low, other.low, atol=1e-5)
    np.testing.assert_allclose(one.high, other.high, atol=1e-5)
    np.testing.assert_array_equal(one.width, np.maximum(-one.low, one.high))


def test_a_product_of_bytes_worked_by_hand(tmp_path):
    from onnx import TensorProto, helper, numpy_helper

    weight = np.array([[1.27, 0.0], [0.0, -2.54]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    # Widths 1.27**(0.2/0.8) and 2.54**(0.2/0.8) make both factors equal, so both are 1; a step is 1/255 of the span.
    high = np.array([1.27, 2.54]) ** (1 / 4)
    made = to_int8(model, {"x": Extent(np.array([-0.1, 0.0]), high)}, ())
    onnx.save(made, tmp_path / "bytes.onnx")
    step = (high.max() + 0.1) / 255
    zero = round(0.1 / step)
    x = np.array([0.7, 0.3])
    seen = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    (found,) = open_session(tmp_path / "bytes.onnx", "cpu").run(None, {"x": x.astype(np.float32).reshape(1, 1, 2)})
    # The weight is 127 steps of 0.01 and -127 of 0.02: nothing of it is lost.
    np.testing.assert_allclose(found[0, 0], [1.27 * seen[0], -2.54 * seen[1]], rtol=1e-5)


def block(into, bias, back):
    """A graph of one feed-forward block, as the fuser writes it."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {"into": into, "bias": bias, "back": back, "last": np.zeros(back.shape[1], np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "into"], ["a"], "up"),
        helper.make_node("BiasGelu", ["a", "bias"], ["inner"], "activation", domain="com.microsoft"),
        helper.make_node("MatMul", ["inner", "back"], ["b"], "down"),
        helper.make_node("Add", ["b", "last"], ["y"], "end"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, into.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=8)


def test_the_widest_channels_of_a_block_stay_in_fp32(tmp_path):
    rng = np.random.default_rng(0)
    into, back = (rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((32, 64), (64, 32)))
    bias = np.zeros(64, np.float32)
    bias[40] = 300.0  # Gelu lets it through: this channel is a hundred times as wide as the others
    x = rng.normal(0, 1, (1, 200, 32)).astype(np.float32)
    onnx.save(block(into, bias, back), tmp_path / "fp32.onnx")
    found = {"x": Extent(x[0].min(0), x[0].max(0))}
    inner = np.maximum(x[0] @ into + bias, 0)  # Gelu's values but for 0.17
    found["inner"] = Extent(inner.min(0) - 0.17, inner.max(0))
    onnx.save(to_int8(block(into, bias, back), found, ()), tmp_path / "int8.onnx")
    # 16 of 64 channels, and the wide one among them.
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    wide = weights["b_wide_weight"]
    assert wide.shape == (16, 32)
    assert (wide == back[40]).all(axis=1).any()
    assert weights["b_narrow_weight"].shape == (48, 32)
    expected, got = (
        open_session(tmp_path / name, "cpu").run(None, {"x": x[:, :1]})[0] for name in ("fp32.onnx", "int8.onnx")
    )
    # A step of bytes over the wide channel alone would be 300 / 255, some 1.2 points; what is left is a hundredth of that.
    assert 0 < np.abs(got - expected).max() < 0.1


def test_every_product_of_a_layer_is_in_bytes(fp32, tmp_path):
    before, after = kinds(fp32), kinds(integer(fp32, tmp_path / "int8.onnx"))
    # Query, key, value, output, and the feed-forward block's two, the first of them in two parts; their inputs are four tensors.
    assert after["MatMulIntegerToFloat"] == 7 * LAYERS
    assert after["QuantizeLinear"] == 4 * LAYERS
    # Narrowing in front of the bytes costs a Mul, except behind attention, where the values' weights take it in.
    assert after["Mul"] - before["Mul"] == 3 * LAYERS
    assert after["LayerNormalization"] == 2 * LAYERS
    assert after["Sum"] == 3 * LAYERS  # two residuals, and what the wide channels add
    assert after["Gelu"] == 2 * LAYERS
    assert after["Attention"] == LAYERS  # of the standard's operator set; what it replaces has a weight
    assert {node.domain for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "Attention"} == {""}
    assert after["MatMul"] == LAYERS  # of the wide channels
    assert after["SkipLayerNormalization"] == after["BiasGelu"] == 0


def test_a_graph_that_newer_operators_would_change_keeps_its_set(fp32, tmp_path):
    model = onnx.load(fp32)
    # Its axes are an attribute up to set 17 and an input from 18 on.
    mean = onnx.helper.make_node("ReduceMean", [model.graph.output[0].name], ["mean"], axes=[1])
    model.graph.node.append(mean)
    onnx.save(model, tmp_path / "older.onnx")
    path = integer(tmp_path / "older.onnx", tmp_path / "int8.onnx")
    assert kinds(path)["MultiHeadAttention"] == LAYERS
    assert {o.domain: o.version for o in onnx.load(path).opset_import}[""] == 17
    newer = integer(fp32, tmp_path / "newer.onnx")
    one, other = (run_batch(open_session(file, "cpu"), rows([20, 3, 11])) for file in (path, newer))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_no_fp32_weight_is_left_behind(fp32, tmp_path):
    model = onnx.load(integer(fp32, tmp_path / "int8.onnx"))
    used = {name for node in model.graph.node for name in node.input}
    assert {initializer.name for initializer in model.graph.initializer} <= used


@pytest.mark.parametrize("lengths", [[6], [12, 12, 12], [20, 3, 11]])
def test_scores_are_near_fp32(fp32, tmp_path, lengths):
    path = integer(fp32, tmp_path / "int8.onnx")
    expected, found = (run_batch(open_session(file, "cpu"), rows(lengths, 50)) for file in (fp32, path))
    assert 0 < np.abs(found - expected).max() < 0.1


def test_a_row_scores_the_same_with_padding_and_without(fp32, tmp_path):
    session = open_session(integer(fp32, tmp_path / "int8.onnx"), "cpu")
    padded = rows([20, 8])
    alone = {name: values[1:, :8] for name, values in padded.items()}
    np.testing.assert_allclose(run_batch(session, alone)[0], run_batch(session, padded)[1], atol=1e-5)


def test_what_is_kept_stays_in_fp32(fp32, tmp_path):
    model = onnx.load(fp32)
    wide, every = feed_forward_outputs(model), products(model)
    assert len(wide) == LAYERS
    assert len(every) == 4 * LAYERS
    after = kinds(integer(fp32, tmp_path / "wide.onnx", wide))
    assert after["MatMul"] == LAYERS
    assert after["MatMulIntegerToFloat"] == 5 * LAYERS
    path = integer(fp32, tmp_path / "all.onnx", list(every))
    assert kinds(path)["QuantizeLinear"] == 0
    assert kinds(path)["Attention"] == LAYERS
    expected, found = (run_batch(open_session(file, "cpu"), rows([20, 3, 11])) for file in (fp32, path))
    np.testing.assert_allclose(found, expected, atol=1e-5)
