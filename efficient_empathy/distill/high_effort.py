"""``--effort high``: the unlabelled dialogues teach too, and what ships is still one student of the same size.

1. Several teachers are tuned on the labels, from different seeds.
2. Their mean probabilities for pool examples become labels of a second kind, soft ones.
3. One student learns from those and the judge's labels together.

Each teacher's ratings are kept in ``OUT.work/`` until the scorer folder is there, so a run that was killed repeats one
teacher at most.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.backbone import Backbone
from efficient_empathy.distill.batches import EncodedRows
from efficient_empathy.distill.export import probabilities
from efficient_empathy.distill.settings import DistillOptions
from efficient_empathy.distill.stages import Stages
from efficient_empathy.distill.students import Split, TrainedStudent, facts_of, new_student
from efficient_empathy.distill.training import train_student
from efficient_empathy.manifest import versions
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.encoding import Encoded, Encoder

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
    rated = Encoder(backbone.tokenizer, backbone.encoding).encode(chosen)
    ratings = _mean_ratings(labelled, rated, scales, backbone, options, work)
    student = new_student(backbone, scales, training.dropout, options.seed)
    both = labelled.with_rows(EncodedRows(rated, ratings, labelled.pad))
    trained = train_student(student, both, validation, plan.student_training(training), options.seed, "student")
    facts = {
        **facts_of(student, trained),
        "teachers": plan.teachers,
        "rated_pool_examples": len(chosen),
    }
    return TrainedStudent(student, split, trained.outputs, trained.best_epoch, facts)


def _mean_ratings(
    labelled: EncodedRows,
    rated: Encoded,
    scales: tuple[Scale, ...],
    backbone: Backbone,
    options: DistillOptions,
    work: Path,
) -> np.ndarray:
    """The teachers' mean probabilities for some encoded examples, float32 (n, points)."""
    teachers, training = options.pool.teachers, options.training
    stages = Stages(work, versions("torch", "transformers"))

    def ratings_of(seed: int) -> np.ndarray:
        teacher = new_student(backbone, scales, training.dropout, seed)
        name = f"teacher {seed - options.seed} of {teachers}"

        def rate() -> np.ndarray:
            train_student(teacher, labelled, None, training, seed, name)
            _log.info("%s rates %d pool examples", name, len(rated.ids))
            return probabilities(teacher, rated, labelled.pad)

        depends = {
            "start": _digest(teacher.state_dict()[key].numpy() for key in sorted(teacher.state_dict())),
            "labels": _digest([*labelled.encoded.ids, labelled.targets.numpy()]),
            "rated": _digest(rated.ids),
            "training": asdict(training),
        }
        return stages.array(f"ratings-{seed}", depends, rate)

    seeds = range(options.seed + 1, options.seed + 1 + teachers)
    return np.mean([ratings_of(seed) for seed in seeds], axis=0)


def _digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over arrays with their shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(str(array.shape).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
