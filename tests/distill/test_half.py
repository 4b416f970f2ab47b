"""fp16: what a GPU would lose is measured on a CPU, and the head keeps fp32."""

import numpy as np
import pytest

from efficient_empathy.scorer.encoding import Encoder
from efficient_empathy.scorer.session import open_session

torch = pytest.importorskip("torch", reason="torch is part of the distill extra")


@pytest.fixture(scope="module", params=["bert", "roberta"])
def exported(request, tiny_bert, tiny_roberta, make_synthetic, tmp_path_factory):
    """The fp32 file of a student with random weights, encoded rows, and the id of padding."""
    from efficient_empathy.distill.backbone import open_backbone
    from efficient_empathy.distill.export import export_fp32
    from efficient_empathy.distill.students import new_student
    from efficient_empathy.scorer.artifact import Scale

    backbone = open_backbone(str({"bert": tiny_bert, "roberta": tiny_roberta}[request.param]), 64)
    scales = (Scale("sensibility", 0.0, 10.0), Scale("rationality", 0.0, 10.0))
    path = tmp_path_factory.mktemp("half") / "fp32.onnx"
    export_fp32(new_student(backbone, scales, 0.0, 0), path)
    return path, Encoder(backbone.tokenizer, backbone.encoding).encode(make_synthetic(60)[0]), backbone.encoding.pad


def decide(scores):
    return (scores[:, 0] > 5).astype(int)


def test_fp16_is_close_and_its_head_is_not_rounded(exported, tmp_path):
    import onnx

    from efficient_empathy.distill.export import onnx_scores
    from efficient_empathy.distill.half import make_half

    path, encoded, pad = exported
    half = tmp_path / "fp16.onnx"
    reference = onnx_scores(open_session(path, "cpu"), encoded, pad)
    middle = np.median(reference[:, 0])
    parity = make_half(path, half, encoded, pad, lambda scores: (scores[:, 0] > middle).astype(int))
    assert parity.passed
    assert parity.flips <= 0.01
    assert parity.rows == 60
    assert 0 < parity.largest_difference < 0.05
    found = onnx_scores(open_session(half, "cpu"), encoded, pad)
    assert 0 < np.abs(found - reference).max() < 0.05
    # Rounded to fp16 on the way out, every score would be a number of fp16.
    assert (found.astype(np.float16).astype(np.float32) != found).any()
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(half).graph.initializer}
    assert kinds["head.weight"] == kinds["membership"] == onnx.TensorProto.FLOAT
    assert sum(kind == onnx.TensorProto.FLOAT16 for kind in kinds.values()) > 10


def test_a_state_too_large_for_fp16_fails_the_gate(exported, tmp_path):
    import onnx

    from efficient_empathy.distill.half import add_half

    path, encoded, pad = exported
    model = onnx.load(path)
    # Each fp16 weight is within the range, a product of two is not: running the fp16 file on a CPU would not show it.
    for tensor in model.graph.initializer:
        if tensor.name.endswith("LayerNorm.weight"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 6e4, tensor.name))
    onnx.save(model, str(tmp_path / "fp32.onnx"))
    files = {"fp32": "fp32.onnx"}
    parity = add_half(tmp_path, files, encoded, pad, decide)
    assert (parity["passed"], parity["largest_difference"], files) == (False, None, {"fp32": "fp32.onnx"})
    assert not (tmp_path / "transformer.fp16.onnx").exists()


@pytest.mark.parametrize(("moved", "passed"), [(0.0, True), (4.0, False), (np.nan, False), (np.inf, False)])
def test_the_gate(moved, passed):
    from efficient_empathy.distill.half import compare

    reference = np.stack([np.linspace(0, 10, 50), np.linspace(10, 0, 50)], 1).astype(np.float32)
    found = reference.copy()
    found[3, 0] += moved
    found[9:20, 0] += moved
    assert compare(found, reference, decide).passed is passed


def test_the_pipeline_ships_it_when_asked(tiny_bert, make_synthetic, tiny_options, tmp_path):
    from efficient_empathy.distill.pipeline import LabelledData, distill
    from efficient_empathy.distill.rubric import Rubric
    from efficient_empathy.scorer.scorer import Scorer

    examples, scores = make_synthetic(240)
    spec = distill(
        LabelledData(examples, scores), Rubric.load(), tiny_options(tiny_bert, fp16=True), tmp_path / "scorer"
    )
    assert spec.tiers["transformer"]["fp16"] == "transformer.fp16.onnx"
    assert spec.parity["fp16"]["passed"]
    assert "fp16, for GPUs" in (tmp_path / "scorer" / "README.md").read_text()
    single, half = (Scorer.load(tmp_path / "scorer", device="cpu", precision=p) for p in ("fp32", "fp16"))
    np.testing.assert_allclose(half.score(examples[:50]), single.score(examples[:50]), atol=0.1)
