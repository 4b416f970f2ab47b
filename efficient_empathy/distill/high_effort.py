"""``--effort high``: the unlabelled dialogues teach too, and what ships is still one student of the same size.

1. Several teachers are tuned on the labels, from different seeds; they may be made from a larger encoder than the scorer.
2. Their mean probabilities for pool examples become labels of a second kind, soft ones; so do the states that those come from.
3. One student learns from those and the judge's labels together. All epochs are trained: the held-out rows are too few to choose
   between them, and such a choice cost more than it gave.

Each teacher's ratings, and then the student, are kept in ``OUT.work/`` until the scorer folder is there: a run that was killed
repeats the training that it was at, and all that follows the trainings.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.backbone import Backbone, open_backbone
from efficient_empathy.distill.batches import EncodedRows
from efficient_empathy.distill.export import probabilities, probabilities_and_states
from efficient_empathy.distill.settings import DistillOptions, TrainingOptions
from efficient_empathy.distill.stages import Stages
from efficient_empathy.distill.student import Student
from efficient_empathy.distill.students import Split, TrainedStudent, facts_of, new_student
from efficient_empathy.distill.training import train_student
from efficient_empathy.manifest import versions
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.encoding import Encoder

_log = logging.getLogger(__name__)


def train_high(
    split: Split,
    pool: Sequence[Example],
    scales: tuple[Scale, ...],
    backbone: Backbone,
    options: DistillOptions,
    work: Path,
) -> TrainedStudent:
    """Train a student with the help of a pool.

    Args:
        split: the labelled examples; neither teachers nor student learn from those held out.
        pool: unlabelled examples, none from a held-out conversation.
        scales: the dimensions.
        backbone: the encoder to start from.
        options: how to train.
        work: folder of finished stages.
    """
    labelled, validation = split.encode(scales, backbone)
    plan, training = options.pool, options.training
    drawn = np.random.default_rng(options.seed).permutation(len(pool))[: plan.rated_examples]
    chosen = [pool[index] for index in drawn]
    stages = Stages(work, versions("torch", "transformers"))
    teachers = _choose_teachers(backbone, options)
    ratings, states = _mean_ratings(split, chosen, scales, teachers, stages)
    rated = Encoder(backbone.tokenizer, backbone.encoding).encode(chosen)
    student = new_student(backbone, scales, training.dropout, options.seed)
    both = labelled.with_rows(EncodedRows(rated, ratings, labelled.pad, states))
    shorter = plan.student_training(training)
    _train_final(student, both, shorter, options.seed, stages)
    outputs = probabilities(student, validation.encoded, labelled.pad)
    facts = {
        **facts_of(student, shorter.epochs, shorter.epochs),
        "teachers": len(teachers.seeds),
        "teacher_states": states.shape[1],
        "rated_pool_examples": len(chosen),
    }
    return TrainedStudent(student, split, [outputs], 0, facts)


def _train_final(student: Student, rows: EncodedRows, training: TrainingOptions, seed: int, stages: Stages) -> None:
    """Tune the student that ships, in place, or take it as an earlier run left it."""

    def train() -> dict[str, torch.Tensor]:
        train_student(student, rows, None, training, seed, "student")
        return student.state_dict()

    learnt = [rows.targets.numpy(), *([] if rows.states is None else [rows.states.numpy()])]
    depends = {
        "start": _digest_of_weights(student),
        "rows": _digest([*rows.encoded.ids, *learnt]),
        "training": asdict(training),
    }
    student.load_state_dict(stages.tensors("student", depends, train))
    student.eval()


@dataclass(frozen=True)
class _Teachers:
    """What the teachers are made from, how they are tuned, and the seed of each."""

    backbone: Backbone
    training: TrainingOptions
    seeds: range


def _choose_teachers(backbone: Backbone, options: DistillOptions) -> _Teachers:
    plan, training = options.pool, options.training
    first = options.seed + 1
    if options.teacher is None:
        return _Teachers(backbone, training, range(first, first + plan.teachers))
    slower = replace(training, learning_rate=plan.larger_learning_rate)
    larger = open_backbone(options.teacher, options.max_tokens)
    return _Teachers(larger, slower, range(first, first + plan.larger_teachers))


def _mean_ratings(
    split: Split, chosen: Sequence[Example], scales: tuple[Scale, ...], teachers: _Teachers, stages: Stages
) -> tuple[np.ndarray, np.ndarray]:
    """What the teachers find in some examples: their mean probabilities, float32 (n, points), and mean states, (n, states).

    Teachers of one encoder have their states in common to begin with, so the mean is of like things. Each number of the states is
    brought to mean 0 and variance 1.
    """
    backbone, training = teachers.backbone, teachers.training
    labelled, _ = split.encode(scales, backbone)
    rated = Encoder(backbone.tokenizer, backbone.encoding).encode(chosen)

    def ratings_of(number: int, seed: int) -> np.ndarray:
        teacher = new_student(backbone, scales, training.dropout, seed)
        name = f"teacher {number} of {len(teachers.seeds)}, {Path(backbone.name).name}"

        def rate() -> np.ndarray:
            train_student(teacher, labelled, None, training, seed, name)
            _log.info("%s rates %d pool examples", name, len(rated.ids))
            return probabilities_and_states(teacher, rated, labelled.pad)

        depends = {
            "start": _digest_of_weights(teacher),
            "labels": _digest([*labelled.encoded.ids, labelled.targets.numpy()]),
            "rated": _digest(rated.ids),
            "training": asdict(training),
        }
        return stages.array(f"ratings-{seed}", depends, rate)

    found = sum(ratings_of(*one) for one in enumerate(teachers.seeds, 1)) / len(teachers.seeds)
    ratings, states = np.split(found, [labelled.targets.shape[1]], axis=1)
    return ratings, (states - states.mean(0)) / (states.std(0) + 1e-6)


def _digest_of_weights(student: Student) -> str:
    weights = student.state_dict()
    return _digest(weights[name].numpy() for name in sorted(weights))


def _digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over arrays with their shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(str(array.shape).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
