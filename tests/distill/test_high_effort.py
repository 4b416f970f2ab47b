"""``--effort high`` end to end on a tiny encoder: what it learns from, and going on after a kill."""

import os

import numpy as np
import pytest

from efficient_empathy.distill.batches import split_by_conversation
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.distill.settings import PoolOptions
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import read_manifest
from efficient_empathy.scorer import Scorer

pytest.importorskip("torch", reason="torch is part of the distill extra")
PLAN = PoolOptions(teachers=2, rated_examples=60, student_epochs=3)


@pytest.fixture
def data(make_synthetic):
    """100 labels, and a pool that has more examples of the labelled conversations, and of others."""
    from efficient_empathy.distill.pipeline import LabelledData

    examples, scores = make_synthetic(100)
    same, _ = make_synthetic(100, seed=1)
    others, _ = make_synthetic(60, seed=2, prefix="p")
    return LabelledData(examples, scores, [*same, *others])


def run(data, out, options):
    from efficient_empathy.distill.pipeline import distill

    return distill(data, Rubric.load(), options, out)


@pytest.fixture
def options(tiny_bert, tiny_options):
    return tiny_options(tiny_bert, epochs=3, effort="high", pool=PLAN)


@pytest.mark.slow
def test_it_makes_a_scorer_folder_of_the_same_form(data, options, tmp_path):
    out = tmp_path / "scorer"
    run(data, out, options)
    manifest = read_manifest(out, "scorer")
    assert manifest["unlabelled_examples_read"] == 160
    assert manifest["labels"]["trained_on"] + manifest["labels"]["held_out"] == 100
    training = manifest["training"]
    assert (training["teachers"], training["rated_pool_examples"]) == (2, 60)
    assert (training["epochs"], training["best_epoch"]) == (3, 3)  # of the student, by nobody's choice
    assert training["layers"] == 2
    assert training["teacher_states"] == 2 * 32  # the mean states of context and response
    scores = Scorer.load(out, device="cpu").score(data.examples)
    assert ((scores >= 0) & (scores <= 10)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["scorer"]  # finished stages are cleared away


@pytest.mark.slow
def test_killed_between_stages_it_goes_on_and_ends_with_the_same_bits(data, options, tmp_path, monkeypatch, caplog):
    from efficient_empathy.distill import high_effort

    run(data, tmp_path / "uninterrupted", options)
    out, trainings = tmp_path / "scorer", []
    real = high_effort.train_student

    def killed_in_the_second_teacher(*arguments):
        trainings.append(arguments[-1])
        if len(trainings) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(high_effort, "train_student", killed_in_the_second_teacher)
    with pytest.raises(KeyboardInterrupt):
        run(data, out, options)
    assert not out.exists()
    work = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scorer.work").iterdir()}
    assert sorted(name.rsplit("-", 1)[0] for name in work) == ["ratings-1"]

    kept = {}

    def watched(*arguments):
        trainings.append(arguments[-1])
        kept.update((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "scorer.work").iterdir())
        return real(*arguments)

    trainings.clear()
    monkeypatch.setattr(high_effort, "train_student", watched)
    with caplog.at_level("INFO"):
        run(data, out, options)
    assert trainings == ["teacher 2 of 2, tiny-bert", "student"]
    assert caplog.text.count("already done") == 1
    assert {name: kept[name] for name in work} == work
    assert not os.path.exists(tmp_path / "scorer.work")
    first, second = (Scorer.load(tmp_path / name, device="cpu", threads=1) for name in ("uninterrupted", "scorer"))
    assert second.digest == first.digest


@pytest.mark.slow
def test_killed_after_the_last_training_it_trains_nothing_again(data, options, tmp_path, monkeypatch):
    from efficient_empathy.distill import export, high_effort

    run(data, tmp_path / "uninterrupted", options)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "export_fp32", killed)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "scorer", options)
    monkeypatch.setattr(high_effort, "train_student", killed)
    run(data, tmp_path / "scorer", options)
    first, second = (Scorer.load(tmp_path / name, device="cpu", threads=1) for name in ("uninterrupted", "scorer"))
    assert second.digest == first.digest


@pytest.mark.slow
def test_another_encoder_teaches_and_the_scorer_stays_as_small(
    data, tiny_bert, tiny_roberta, tiny_options, tmp_path, monkeypatch
):
    from efficient_empathy.distill import high_effort

    taught, rated, targets = [], [], {}
    real, real_outputs = high_effort.train_student, high_effort.probabilities_and_states

    def watched(student, rows, validation, training, *rest):
        taught.append((student.config.model_type, training.learning_rate, rest[-1]))
        targets[rest[-1]] = rows.targets.numpy()
        return real(student, rows, validation, training, *rest)

    def rate(*arguments):
        rated.append(real_outputs(*arguments))
        return rated[-1]

    monkeypatch.setattr(high_effort, "train_student", watched)
    monkeypatch.setattr(high_effort, "probabilities_and_states", rate)
    plan = PoolOptions(teachers=1, larger_teachers=2, larger_learning_rate=3e-4, rated_examples=60, student_epochs=1)
    options = tiny_options(tiny_bert, epochs=1, effort="high", pool=plan, teacher=str(tiny_roberta))
    run(data, tmp_path / "scorer", options)
    usual = options.training.learning_rate
    assert taught == [
        ("roberta", 3e-4, "teacher 1 of 2, tiny-roberta"),
        ("roberta", 3e-4, "teacher 2 of 2, tiny-roberta"),
        ("bert", usual, "student"),
    ]
    np.testing.assert_allclose(targets["student"][-60:], (rated[0] + rated[1])[:, :20] / 2, atol=1e-6)
    manifest = read_manifest(tmp_path / "scorer", "scorer")
    assert (manifest["training"]["teachers"], manifest["options"]["teacher"]) == (2, tiny_roberta.name)
    with pytest.raises(EmpathyError, match="only --effort high has teachers"):
        tiny_options(tiny_bert, teacher=str(tiny_roberta))


def learnt_from(data, options, held):
    """Three quarters of the pool, by conversation, without the conversations that are held out."""
    rows, _ = split_by_conversation([example.dialogue_id for example in data.pool], 0.25, options.seed)
    return [data.pool[row] for row in rows if data.pool[row].dialogue_id not in held]


def test_held_out_conversations_teach_nobody(data, options, tmp_path, monkeypatch):
    from efficient_empathy.distill import high_effort, pipeline

    class Stop(Exception):
        """Seen enough."""

    seen = {}

    def watch(split, pool, *rest):
        seen.update(rows=split.rows, held=split.held_out, pool=pool)
        raise Stop

    monkeypatch.setattr(high_effort, "train_high", watch)
    with pytest.raises(Stop):
        run(data, tmp_path / "out", options)
    groups = [example.dialogue_id for example in data.examples]
    held = {groups[row] for row in seen["held"]}
    assert len(held) == 15  # 0.3 of 100 rows, in conversations of two
    assert not held & {groups[row] for row in seen["rows"]}
    assert not held & {example.dialogue_id for example in seen["pool"]}
    # All else is there, but a quarter of the conversations of the pool: the exported files are compared on them.
    assert seen["pool"] == learnt_from(data, options, held)
    assert 100 <= len(seen["pool"]) <= 120
    only_held = pipeline.LabelledData(
        data.examples, data.scores, [example for example in data.pool if example.dialogue_id in held]
    )
    with pytest.raises(EmpathyError, match="every unlabelled dialogue belongs to a held-out conversation"):
        run(only_held, tmp_path / "out", options)


@pytest.mark.slow
def test_with_more_wanted_than_there_is_all_of_it_is_rated(data, tiny_roberta, tiny_options, tmp_path):
    plan = PoolOptions(teachers=1, rated_examples=10_000, student_epochs=1)
    options = tiny_options(tiny_roberta, epochs=1, effort="high", pool=plan)
    run(data, tmp_path / "scorer", options)
    groups = [example.dialogue_id for example in data.examples]
    held = {groups[row] for row in split_by_conversation(groups, options.holdout, options.seed, least=2)[1]}
    learnt = learnt_from(data, options, held)
    assert read_manifest(tmp_path / "scorer")["training"]["rated_pool_examples"] == len(learnt) > 60


@pytest.mark.slow
def test_ratings_and_states_are_the_mean_of_the_teachers(data, options, tmp_path, monkeypatch):
    from efficient_empathy.distill import high_effort

    ratings = []
    targets, learnt = {}, {}
    real_outputs, real_train = high_effort.probabilities_and_states, high_effort.train_student

    def outputs(*arguments):
        ratings.append(real_outputs(*arguments))
        return ratings[-1]

    def train(student, rows, validation, training, seed, what):
        targets[what], learnt[what] = rows.targets.numpy(), rows.states
        return real_train(student, rows, validation, training, seed, what)

    monkeypatch.setattr(high_effort, "probabilities_and_states", outputs)
    monkeypatch.setattr(high_effort, "train_student", train)
    run(data, tmp_path / "scorer", options)
    labelled = targets["teacher 1 of 2, tiny-bert"]
    np.testing.assert_array_equal(targets["student"][: len(labelled)], labelled)
    assert not np.array_equal(ratings[0], ratings[1])
    mean = (ratings[0] + ratings[1]) / 2
    points = labelled.shape[1]
    np.testing.assert_allclose(targets["student"][len(labelled) :], mean[:, :points], atol=1e-6)
    states = learnt["student"].numpy()
    assert np.isnan(states[: len(labelled)]).all()  # the teachers know those rows by heart
    standard = (mean[:, points:] - mean[:, points:].mean(0)) / mean[:, points:].std(0)
    np.testing.assert_allclose(states[len(labelled) :], standard, atol=1e-3)
    assert learnt["teacher 1 of 2, tiny-bert"] is None
