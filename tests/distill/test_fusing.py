"""Fusing: fewer nodes, the same scores, and nothing lost where it does not work."""

from collections import Counter

import numpy as np
import pytest

from efficient_empathy.distill.fusing import fuse
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.session import open_session, run_batch

pytest.importorskip("torch", reason="torch is part of the distill extra")
SCALES = (Scale("sensibility", 0.0, 10.0), Scale("rationality", 0.0, 10.0))


@pytest.fixture(scope="module", params=["bert", "roberta"])
def both(request, tiny_bert, tiny_roberta, tmp_path_factory):
    """The configuration, the plain export and the fused one of a student with random weights."""
    from efficient_empathy.distill import export
    from efficient_empathy.distill.backbone import open_backbone
    from efficient_empathy.distill.students import new_student

    folder = tmp_path_factory.mktemp("fused")
    student = new_student(
        open_backbone(str({"bert": tiny_bert, "roberta": tiny_roberta}[request.param]), 64), SCALES, 0.0, 0
    )
    export.export_fp32(student, folder / "plain.onnx")
    assert fuse(folder / "plain.onnx", folder / "fused.onnx", batch([11, 8, 3], np.random.default_rng(0)))
    return student.config, folder / "plain.onnx", folder / "fused.onnx"


def kinds(path):
    import onnx

    return Counter(node.op_type for node in onnx.load(path).graph.node)


def batch(lengths, rng):
    width = max(lengths)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = rng.integers(5, 45, mask.shape)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": mask * (np.arange(width) > width // 2)}


def test_each_layer_becomes_one_attention_and_two_normalisations(both):
    config, plain, fused = both
    before, after = kinds(plain), kinds(fused)
    layers = config.num_hidden_layers
    assert after["Attention"] == after["BiasGelu"] == layers
    assert after["SkipLayerNormalization"] == 2 * layers
    assert after["Softmax"] == after["Erf"] == 0
    assert after.total() < before.total() / 2


@pytest.mark.parametrize("lengths", [[1], [7, 7], [20, 3, 1, 14]])
def test_scores_stay_the_same(both, lengths):
    _, plain, fused = both
    rows = batch(lengths, np.random.default_rng(1))
    expected, found = (run_batch(open_session(path, "cpu"), rows) for path in (plain, fused))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_fused_file_opens_where_the_oldest_supported_runtime_does(both):
    import onnx

    model = onnx.load(both[2])
    assert model.ir_version <= 10  # ONNX Runtime 1.20
    assert {(opset.domain, opset.version) for opset in model.opset_import} <= {("", 17), ("com.microsoft", 1)}


def test_other_scores_are_not_taken(both, tmp_path, monkeypatch, caplog):
    """The optimiser's answer has another bias of the head."""
    import onnx
    from onnx import numpy_helper
    from onnxruntime.transformers.onnx_model import OnnxModel

    _, plain, fused = both
    wrong = onnx.load(fused)
    (head,) = (i for i in wrong.graph.initializer if i.name == "head.bias")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) + 1, head.name))
    monkeypatch.setattr("onnxruntime.transformers.optimizer.optimize_model", lambda *_, **__: OnnxModel(wrong))
    assert fuse(plain, tmp_path / "fused.onnx", batch([5, 3], np.random.default_rng(0))) is False
    assert "gives other scores" in caplog.text


def test_a_graph_that_the_optimiser_cannot_read_is_not_fused(both, tmp_path, monkeypatch, caplog):
    def lost(*_, **__):
        raise IndexError("no such input")

    monkeypatch.setattr("onnxruntime.transformers.optimizer.optimize_model", lost)
    assert fuse(both[1], tmp_path / "fused.onnx", batch([5, 3], np.random.default_rng(0))) is False
    assert "cannot fuse this encoder (no such input)" in caplog.text
    assert list(tmp_path.iterdir()) == []
