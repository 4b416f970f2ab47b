"""``--effort high``: the unlabelled dialogues teach too, and what ships is still one student of the same size.

1. Several teachers are tuned on the labels, from different seeds.
2. Their mean probabilities for pool examples become labels of a second kind, soft ones.
3. One student learns from those and the judge's labels together.

Each teacher's ratings are kept in ``OUT.work/`` until the scorer folder is there, so a run that was killed repeats one
teacher at most.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.backbone import Backbone
from efficient_empathy.distill.batches import EncodedRows
from efficient_empathy.distill.export import probabilities
from efficient_empathy.distill.settings import DistillOptions
from efficient_empathy.distill.stages import Stages
from efficient_empathy.distill.student import exceedances
from efficient_empathy.distill.students import TrainedStudent, new_student
from efficient_empathy.distill.training import choose_precision, train_student
from efficient_empathy.manifest import canonical_json, sha256_bytes, versions
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.encoding import Encoder

_log = logging.getLogger(__name__)


def train_high(
    examples: Sequence[Example],
    scores: np.ndarray,
    rows: np.ndarray,
    held: np.ndarray,
    pool: Sequence[Example],
    scales: tuple[Scale, ...],
    backbone: Backbone,
    options: DistillOptions,
    work: Path,
) -> TrainedStudent:
    """Train a student with the help of a pool.

    Args:
        examples: all labelled examples.
        scores: the judge's scores, (n, d).
        rows: indices to train on.
        held: indices held out; neither teachers nor student learn from them.
        pool: unlabelled examples, none from a held-out conversation.
        scales: the dimensions.
        backbone: the encoder to start from.
        options: how to train.
        work: folder of finished stages.
    """
    stages = Stages(work, versions("torch", "transformers"))
    encoder = Encoder(backbone.tokenizer, backbone.encoding)
    pad, plan = backbone.encoding.pad, options.pool
    targets = exceedances(scores, scales)
    labelled = EncodedRows(encoder.encode([examples[row] for row in rows]), targets[rows], pad)
    validation = EncodedRows(encoder.encode([examples[row] for row in held]), targets[held], pad)
    drawn = np.random.default_rng(options.seed).permutation(len(pool))[: plan.rated_examples]
    rated = encoder.encode([pool[index] for index in drawn])
    depends = {
        "labels": sha256_bytes(labelled.targets.numpy().tobytes()),
        "texts": sha256_bytes(canonical_json([examples[row].digest for row in rows])),
        "pool": sha256_bytes(canonical_json([example.digest for example in pool])),
        "options": asdict(options),
    }

    def ratings_of(seed: int) -> np.ndarray:
        def rate() -> np.ndarray:
            name = f"teacher {seed - options.seed} of {plan.teachers}"
            teacher = new_student(backbone, scales, options.training.dropout, seed)
            train_student(teacher, labelled, None, options.training, seed, name)
            _log.info("%s rates %d pool examples", name, len(rated.ids))
            return probabilities(teacher, rated, pad)

        return stages.array(f"ratings-{seed}", depends, rate)

    seeds = range(options.seed + 1, options.seed + 1 + plan.teachers)
    ratings = np.mean([ratings_of(seed) for seed in seeds], axis=0)

    student = new_student(backbone, scales, options.training.dropout, options.seed)
    both = labelled.with_rows(EncodedRows(rated, ratings, pad))
    trained = train_student(student, both, validation, plan.student_training(options.training), options.seed, "student")
    facts = {
        "epochs": len(trained.outputs),
        "best_epoch": trained.best_epoch + 1,
        "precision": choose_precision(),
        "teachers": plan.teachers,
        "rated_pool_examples": len(rated.ids),
    }
    return TrainedStudent(student, rows, held, trained.outputs, trained.best_epoch, facts)
