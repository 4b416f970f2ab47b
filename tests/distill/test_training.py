"""Training one student, on a tiny encoder and synthetic scores."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from efficient_empathy.distill.backbone import open_backbone
from efficient_empathy.distill.settings import DistillOptions, PoolOptions, TrainingOptions
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.encoding import Encoder

torch = pytest.importorskip("torch", reason="torch is part of the distill extra")
SCALES = (Scale("sensibility", 0.0, 10.0), Scale("rationality", 0.0, 10.0))


@pytest.fixture(scope="module")
def material(tiny_bert, make_synthetic):
    """A backbone, 80 training rows and 40 validation rows."""
    from efficient_empathy.distill.batches import EncodedRows
    from efficient_empathy.distill.student import exceedances

    backbone = open_backbone(str(tiny_bert), 64)
    examples, scores = make_synthetic(120)
    targets = exceedances(scores, SCALES)
    encoder = Encoder(backbone.tokenizer, backbone.encoding)
    training = EncodedRows(encoder.encode(examples[:80]), targets[:80], backbone.encoding.pad)
    validation = EncodedRows(encoder.encode(examples[80:]), targets[80:], backbone.encoding.pad)
    return backbone, training, validation


def options_of(epochs, **changes):
    fields = {"batch_size": 16, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "patience": epochs}
    return TrainingOptions(epochs=epochs, **{**fields, **changes})


def train(material, options, seed=0):
    from efficient_empathy.distill.students import new_student
    from efficient_empathy.distill.training import train_student

    backbone, training, validation = material
    student = new_student(backbone, SCALES, 0.1, seed)
    return student, train_student(student, training, validation, options, seed)


def probabilities_of(student, rows):
    from efficient_empathy.distill.export import probabilities

    return probabilities(student, rows.encoded, rows.pad)


def test_the_encoder_learns_and_its_embeddings_stay(material):
    from efficient_empathy.distill.backbone import load_encoder

    before = load_encoder(material[0]).state_dict()
    student, trained = train(material, options_of(3))
    after = student.encoder.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"encoder"}
    assert len(trained.outputs) == 3
    assert [outputs.shape for outputs in trained.outputs] == [(40, 20)] * 3
    assert not student.training


def test_bf16_trains_and_clips_too(material, monkeypatch):
    from efficient_empathy.distill import training
    from efficient_empathy.distill.module import StudentModule

    norms = []
    clip = StudentModule.configure_gradient_clipping

    def clip_and_note(module, *given, **named):
        clip(module, *given, **named)
        squares = [(p.grad**2).sum() for p in module.parameters() if p.grad is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))

    monkeypatch.setattr(training, "choose_precision", lambda: "bf16-mixed")
    monkeypatch.setattr(StudentModule, "configure_gradient_clipping", clip_and_note)
    # A loss that is a thousand times too long: what clipping leaves of it has length 1.
    monkeypatch.setattr("efficient_empathy.distill.module._LOSS_SCALE", 300.0)
    _, trained = train(material, options_of(2))
    assert norms == pytest.approx([1.0] * 10, abs=1e-3)  # 80 rows in batches of 16, twice
    assert all(np.isfinite(outputs).all() for outputs in trained.outputs)


def test_the_same_seed_gives_the_same_weights(material):
    first, second, other = (train(material, options_of(2), seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_student_has_the_weights_of_the_chosen_epoch(material):
    from efficient_empathy.distill.training import choose_epoch, choose_precision

    # A rate that is far too high: later epochs are not always better.
    student, trained = train(material, options_of(5, learning_rate=0.03))
    validation = material[2]
    scores = student.expected(validation.targets).numpy()
    expected = [student.expected(torch.from_numpy(outputs)).numpy() for outputs in trained.outputs]
    assert trained.best_epoch == choose_epoch(expected, scores)
    found = probabilities_of(student, validation)
    tolerance = 1e-4 if choose_precision() == "32-true" else 0.02
    np.testing.assert_allclose(found, trained.outputs[trained.best_epoch], atol=tolerance)


@pytest.mark.parametrize(
    ("figures", "chosen", "epochs", "best"),
    [
        ([0.5, 0.4, 0.3, 0.9], [0, 0, 0], 3, 0),
        ([0.1, 0.5, 0.4, 0.6], [0, 1, 1, 3], 4, 3),
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 2], 3, 2),
        ([0.5, 0.4, 0.3, 0.9], [0, 1, 1], 3, 1),
    ],
)
def test_training_stops_when_the_figure_no_longer_rises(material, monkeypatch, figures, chosen, epochs, best):
    from efficient_empathy.distill import training

    given, choices = iter(figures), iter(chosen)
    monkeypatch.setattr(training, "mean_spearman", lambda found, expected: next(given))
    monkeypatch.setattr(training, "choose_epoch", lambda found, expected: next(choices))
    student, trained = train(material, options_of(4, patience=2))
    assert (len(trained.outputs), trained.best_epoch) == (epochs, best)
    # Outputs and weights are those of the same epoch, also where it is neither the best nor the last.
    found = probabilities_of(student, material[2])
    distance = [np.abs(found - outputs).max() for outputs in trained.outputs]
    assert int(np.argmin(distance)) == best


@pytest.mark.parametrize(
    ("noise", "chosen"),
    [
        ((0.5, 9.0), 0),  # far worse at the end
        ((9.0, 0.5), 1),
        ((3.0, 3.0), 1),  # the first leads, by 0.01, and by chance
        ((3.0, 3.0, 9.0), 1),
        ((2.0,), 0),
    ],
)
def test_the_last_epoch_that_is_not_clearly_worse_is_chosen(noise, chosen):
    from efficient_empathy.distill.training import choose_epoch, mean_spearman

    rng = np.random.default_rng(5)
    scores = rng.integers(0, 11, (100, 2)).astype(float)
    errors = rng.normal(size=(3, 100, 2))
    epochs = [scores + scale * error for scale, error in zip(noise, errors, strict=False)]
    if noise == (3.0, 3.0):
        assert 0.01 < mean_spearman(epochs[0], scores) - mean_spearman(epochs[1], scores) < 0.04
    assert choose_epoch(epochs, scores) == chosen
    assert choose_epoch([*epochs, epochs[-1]], scores) == (chosen + 1 if chosen == len(epochs) - 1 else chosen)


def test_training_is_in_training_mode_also_after_a_validation(material):
    import lightning as L

    from efficient_empathy.distill.batches import ordered_loader, training_loader
    from efficient_empathy.distill.module import StudentModule
    from efficient_empathy.distill.students import new_student
    from efficient_empathy.distill.training import fit_quietly

    modes = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            parts = [module.student.dropout, *module.student.encoder.modules()]
            modes.append((trainer.current_epoch, all(part.training for part in parts)))

        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
            modes.append((trainer.current_epoch, module.student.training))

    backbone, rows, validation = material
    module = StudentModule(new_student(backbone, SCALES, 0.1, 0), options_of(2))
    fit_quietly(module, training_loader(rows, 40, 0), ordered_loader(validation, 40), 2, 0, [Watch()])
    # Two batches of training, then one of validation, in each epoch.
    assert modes == [(0, True), (0, True), (0, False), (1, True), (1, True), (1, False)]


def test_without_validation_rows_all_epochs_are_trained(material):
    from efficient_empathy.distill.students import new_student
    from efficient_empathy.distill.training import train_student

    backbone, rows, _ = material
    trained = train_student(new_student(backbone, SCALES, 0.0, 0), rows, None, options_of(2), 0)
    assert (trained.outputs, trained.best_epoch) == ([], 1)


def test_the_loss_is_the_cross_entropy_of_every_point(material):
    from efficient_empathy.distill.module import _LOSS_SCALE, StudentModule
    from efficient_empathy.distill.students import new_student

    backbone, rows, _ = material
    student = new_student(backbone, SCALES, 0.0, 0).eval()
    batch = rows.collate([0, 1, 2])
    with torch.inference_mode():
        p = student.probabilities(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        loss = StudentModule(student, options_of(1)).training_step(batch, 0)
    y = batch["targets"]
    by_hand = -(y * p.log() + (1 - y) * (1 - p).log()).sum(1).mean()
    torch.testing.assert_close(loss, _LOSS_SCALE * by_hand, rtol=1e-4, atol=1e-5)


def with_states(rows, states):
    from efficient_empathy.distill.batches import EncodedRows

    return EncodedRows(rows.encoded, rows.targets.numpy(), rows.pad, states)


def test_states_add_their_squared_errors_and_rows_without_add_nothing(material):
    from efficient_empathy.distill.module import _STATE_WEIGHT, StudentModule
    from efficient_empathy.distill.students import new_student

    backbone, rows, _ = material
    states = np.full((80, 2), np.nan)
    states[1:3] = [[1.0, 2.0], [3.0, -1.0]]
    student = new_student(backbone, SCALES, 0.0, 0).eval()
    with torch.inference_mode():
        plain = StudentModule(student, options_of(1)).training_step(rows.collate([0, 1, 2]), 0)
        taught = StudentModule(student, options_of(1), 2).training_step(with_states(rows, states).collate([0, 1, 2]), 0)
    # The projection starts by saying 0 to all: (1 + 4 + 9 + 1) over three rows of two states.
    torch.testing.assert_close(taught - plain, torch.tensor(_STATE_WEIGHT * 15 / 6))


def test_states_are_learnt_and_leave_nothing_behind_in_the_student(material):
    from efficient_empathy.distill.batches import training_loader
    from efficient_empathy.distill.module import StudentModule
    from efficient_empathy.distill.students import new_student
    from efficient_empathy.distill.training import fit_quietly

    backbone, rows, _ = material
    lengths = rows.encoded.lengths
    taught = with_states(rows, ((lengths - lengths.mean()) / lengths.std())[:, None])
    student, plain = (new_student(backbone, SCALES, 0.0, 0) for _ in range(2))
    before = {name: value.clone() for name, value in student.encoder.state_dict().items()}
    module = StudentModule(student, options_of(10), 1)
    fit_quietly(module, training_loader(taught, 16, 0), None, 10, 0, [])
    module.cpu().eval()
    batch = taught.collate(list(range(80)))
    with torch.inference_mode():
        pooled = student.pooled(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        left = (module.projection(pooled) - batch["states"]).square().mean()
    assert left < 0.5  # of a variance of 1
    assert not torch.equal(
        before["encoder.layer.0.output.dense.weight"], student.encoder.encoder.layer[0].output.dense.weight
    )
    assert student.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (TrainingOptions, "epochs", 0),
        (TrainingOptions, "learning_rate", 0.0),
        (TrainingOptions, "layer_decay", 1.5),
        (TrainingOptions, "dropout", 0.9),
        (TrainingOptions, "patience", 0),
        (PoolOptions, "teachers", 0),
        (PoolOptions, "student_epochs", 0),
        (PoolOptions, "rated_examples", 0),
        (DistillOptions, "max_tokens", 8),
        (DistillOptions, "holdout", 0.9),
        (DistillOptions, "seed", -1),
        (DistillOptions, "effort", "extreme"),
    ],
)
def test_options_name_the_field_and_the_value(kind, field, value):
    with pytest.raises(EmpathyError, match=f"{field} must be .*{value}"):
        kind(**{field: value})
    assert field in {f.name for f in dataclasses.fields(kind)}


def test_ctrl_c_is_an_interrupt_and_the_signal_is_heard_again(material, monkeypatch):
    from efficient_empathy.distill import training

    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training.Progress, "on_train_batch_end", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(material, options_of(2))
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_does_not_end_as_if_all_were_well(material, monkeypatch, caplog):
    from efficient_empathy.distill import training

    def terminate(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.Progress, "on_train_batch_end", terminate)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        train(material, options_of(2))
    assert stop.value.code == 143
    assert "stopped by SIGTERM" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before
