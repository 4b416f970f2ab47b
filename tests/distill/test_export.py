"""Export, the parity gate, and int8."""

import numpy as np
import pytest

from efficient_empathy.distill.backbone import open_backbone
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.encoding import Encoder
from efficient_empathy.scorer.session import open_session

torch = pytest.importorskip("torch", reason="torch is part of the distill extra")
SCALES = (Scale("sensibility", 0.0, 10.0), Scale("rationality", 0.0, 10.0))


def side(scores: np.ndarray) -> np.ndarray:
    """Which side of the middle the first score is on."""
    return (scores[:, 0] > 5).astype(int)


class Exported:
    """A student with random weights, its fp32 file, and 120 encoded rows."""

    def __init__(self, encoder_folder, examples, folder):
        from efficient_empathy.distill.export import export_fp32, torch_scores
        from efficient_empathy.distill.students import new_student

        backbone = open_backbone(str(encoder_folder), 64)
        self.pad = backbone.encoding.pad
        self.encoded = Encoder(backbone.tokenizer, backbone.encoding).encode(examples)
        self.student = new_student(backbone, SCALES, 0.0, 0)
        # Spread over the whole scale, and beyond it, so that ends and middle are all in play.
        raw = torch_scores(self.student, self.encoded, self.pad)
        slope = torch.from_numpy(3.5 / raw.std(0))
        self.student.set_calibration(torch.from_numpy(raw.mean(0)), 1.1 * slope, 0.9 * slope)
        self.path = folder / "fp32.onnx"
        export_fp32(self.student, self.path)
        self.scores = torch_scores(self.student, self.encoded, self.pad)


@pytest.fixture(scope="module", params=["bert", "roberta"])
def exported(request, tiny_bert, tiny_roberta, make_synthetic, tmp_path_factory):
    folder = {"bert": tiny_bert, "roberta": tiny_roberta}[request.param]
    return Exported(folder, make_synthetic(120)[0], tmp_path_factory.mktemp("exported"))


def test_scores_reach_both_ends_of_the_scale(exported):
    assert (exported.scores.min(), exported.scores.max()) == (0.0, 10.0)
    assert exported.scores.std(0).min() > 1


def test_fp32_agrees_with_torch(exported):
    from efficient_empathy.distill.export import check_fp32

    parity = check_fp32(exported.path, exported.scores, exported.encoded, exported.pad)
    assert parity.rows == 120
    assert 0 <= parity.largest_difference <= 1e-4


def test_the_file_has_one_output_and_open_axes(exported):
    session = open_session(exported.path, "cpu")
    (output,) = session.get_outputs()
    assert output.name == "scores"
    assert output.shape == ["batch_size", 2]
    assert {i.name for i in session.get_inputs()} == {"input_ids", "attention_mask", "token_type_ids"}
    assert all(i.shape == ["batch_size", "sequence_length"] for i in session.get_inputs())
    for rows, length in ((1, 3), (5, 64)):
        ids = np.full((rows, length), 7, np.int64)
        batch = {"input_ids": ids, "attention_mask": ids // 7, "token_type_ids": ids // 7}
        assert session.run(None, batch)[0].shape == (rows, 2)


@pytest.mark.parametrize("wrong", [0.001, np.nan])
def test_a_file_that_differs_from_torch_is_refused(exported, wrong):
    from efficient_empathy.distill.export import check_fp32

    expected = exported.scores.copy()
    expected[17, 1] += wrong
    with pytest.raises(EmpathyError, match=r"differ from torch's by up to .* the scorer was not written"):
        check_fp32(exported.path, expected, exported.encoded, exported.pad)


def test_an_architecture_without_an_export_is_refused(exported, tmp_path, monkeypatch):
    from efficient_empathy.distill.export import export_fp32

    monkeypatch.setattr(exported.student.config, "model_type", "no-such-model")
    with pytest.raises(EmpathyError, match="cannot export the architecture 'no-such-model'"):
        export_fp32(exported.student, tmp_path / "x.onnx")


def halves(exported):
    """Rows to compare on, and others to calibrate with."""
    from efficient_empathy.scorer.encoding import Encoded

    ids, starts = exported.encoded.ids, exported.encoded.response_starts
    return Encoded(ids[:60], starts[:60]), Encoded(ids[60:], starts[60:])


def test_int8_passes_the_gate_and_says_how_well(exported, tmp_path):
    from efficient_empathy.distill.export import onnx_scores
    from efficient_empathy.distill.quantise import quantise

    compared, calibration = halves(exported)
    path = tmp_path / "int8.onnx"
    parity = quantise(exported.path, path, compared, exported.pad, side, calibration)
    assert parity.passed
    assert path.is_file()
    assert parity.rows == 60
    assert min(parity.spearman) >= 0.99
    assert parity.batch_effect <= 0.01
    found = onnx_scores(open_session(path, "cpu"), compared, exported.pad)
    reference = onnx_scores(open_session(exported.path, "cpu"), compared, exported.pad)
    assert 0 < np.abs(found - reference).max() < 1.5
    # The rows are on both sides, so that the figure is one.
    assert 0.2 < side(reference).mean() < 0.8
    assert parity.flips == (side(found) != side(reference)).mean() <= 0.01


def test_a_row_s_score_does_not_depend_on_its_company_in_int8(exported, tmp_path):
    from efficient_empathy.distill.quantise import quantise
    from efficient_empathy.scorer.session import run_batch

    compared, calibration = halves(exported)
    path = tmp_path / "int8.onnx"
    quantise(exported.path, path, compared, exported.pad, lambda s: np.zeros(len(s), int), calibration)
    session = open_session(path, "cpu")
    together = run_batch(session, compared.batch(range(60), exported.pad))
    alone = np.concatenate([run_batch(session, compared.batch([row], exported.pad)) for row in range(60)])
    assert np.abs(together - alone).max() <= 0.01


def test_int8_that_fails_the_gate_is_left_out(exported, tmp_path, caplog):
    from efficient_empathy.distill.quantise import quantise

    compared, calibration = halves(exported)
    calls = []

    def fickle(scores):  # the second of each pair of calls, that on the reference, decides otherwise
        calls.append(1)
        return np.full(len(scores), len(calls) % 2)

    path = tmp_path / "int8.onnx"
    with caplog.at_level("INFO"):
        parity = quantise(exported.path, path, compared, exported.pad, fickle, calibration)
    assert not parity.passed
    assert parity.flips == 1.0
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []
    kept = [int(r.message.split()[2]) for r in caplog.records if "not good enough" in r.message]
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert kept[-1] == len(parity.kept_fp32) > 0


@pytest.mark.parametrize(
    ("spearman", "flips", "effect", "passed"),
    [
        ((0.99, 1.0), 0.01, 0.01, True),
        ((0.989, 1.0), 0.0, 0.0, False),
        ((1.0, 1.0), 0.011, 0.0, False),
        ((1.0, 1.0), 0.0, 0.011, False),
        ((1.0, 1.0), 0.0, float("nan"), False),
    ],
)
def test_the_gate(spearman, flips, effect, passed):
    from efficient_empathy.distill.quantise import Int8Parity

    assert Int8Parity(100, spearman, flips, effect, ()).passed is passed
