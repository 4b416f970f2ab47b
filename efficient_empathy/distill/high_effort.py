"""``--effort high``: the unlabelled dialogues teach too, and what ships is still one student of the same size.

1. The encoder fills in masked words of pool examples.
2. Several teachers are tuned from it on the labels, from different seeds.
3. Their mean rates further pool examples.
4. One student learns from those ratings and the labels together.

Each stage is kept in ``OUT.work/`` until the scorer folder is there, so a run that was killed repeats one stage at most.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.adapting import adapt_encoder
from efficient_empathy.distill.backbone import Backbone, load_encoder
from efficient_empathy.distill.batches import EncodedRows
from efficient_empathy.distill.export import raw_outputs
from efficient_empathy.distill.settings import DistillOptions
from efficient_empathy.distill.stages import Stages
from efficient_empathy.distill.student import Student
from efficient_empathy.distill.students import TrainedStudent, new_student, standardised
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
    basis = {"backbone": backbone.name, "seed": options.seed, "max_tokens": options.max_tokens}
    stages = Stages(work, {**basis, "versions": versions("torch", "transformers")})
    encoder = Encoder(backbone.tokenizer, backbone.encoding)
    pad, plan = backbone.encoding.pad, options.pool
    order = np.random.default_rng(options.seed).permutation(len(pool))
    adapted = _adapted(stages, [pool[i] for i in order[: plan.adapt_examples]], encoder, backbone, options)

    targets = standardised(scores, rows)
    labelled = EncodedRows(encoder.encode([examples[row] for row in rows]), targets[rows], None, pad)
    validation = EncodedRows(encoder.encode([examples[row] for row in held]), targets[held], None, pad)
    # From the other end: ratings teach most on text that the encoder has not been adapted to already.
    rated = encoder.encode([pool[i] for i in order[::-1][: plan.pseudo_examples]])
    depends = {
        "labels": sha256_bytes(labelled.targets.numpy().tobytes()),
        "texts": sha256_bytes(canonical_json([examples[row].digest for row in rows])),
        "pool": sha256_bytes(canonical_json([example.digest for example in pool])),
        "options": asdict(options),
    }

    def ratings_of(seed: int) -> np.ndarray:
        def rate() -> np.ndarray:
            name = f"teacher {seed - options.seed} of {plan.teachers}"
            teacher = _from(adapted, backbone, scales, options, seed)
            train_student(teacher, labelled, None, options.training, seed, name)
            _log.info("%s rates %d pool examples", name, len(rated.ids))
            return raw_outputs(teacher, rated, pad)

        return stages.array(f"ratings-{seed}", depends, rate)

    seeds = range(options.seed + 1, options.seed + 1 + plan.teachers)
    ratings = np.mean([ratings_of(seed) for seed in seeds], axis=0)

    student = _from(adapted, backbone, scales, options, options.seed)
    both = labelled.with_rows(EncodedRows(rated, ratings, None, pad))
    trained = train_student(student, both, validation, plan.student_training(options.training), options.seed, "student")
    facts = {
        "epochs": len(trained.outputs),
        "best_epoch": trained.best_epoch + 1,
        "precision": choose_precision(),
        "adapted_on": min(plan.adapt_examples, len(pool)),
        "teachers": plan.teachers,
        "rated_pool_examples": len(rated.ids),
    }
    return TrainedStudent(student, rows, held, trained.outputs, trained.best_epoch, facts)


def _adapted(
    stages: Stages, pool: Sequence[Example], encoder: Encoder, backbone: Backbone, options: DistillOptions
) -> dict[str, torch.Tensor] | None:
    if not options.pool.adapt_examples:
        return None

    def make() -> dict[str, torch.Tensor]:
        model = load_encoder(backbone)
        adapt_encoder(model, backbone, encoder.encode(pool), options.pool.adapt_learning_rate, options.seed)
        return dict(model.state_dict())

    # Independent of the labels: a run with other labels and the same pool finds it again.
    depends = {
        "rate": options.pool.adapt_learning_rate,
        "pool": sha256_bytes(canonical_json([example.digest for example in pool])),
    }
    return stages.tensors("adapted-encoder", depends, make)


def _from(
    adapted: dict[str, torch.Tensor] | None,
    backbone: Backbone,
    scales: tuple[Scale, ...],
    options: DistillOptions,
    seed: int,
) -> Student:
    student = new_student(backbone, scales, options.training.dropout, seed)
    if adapted is not None:
        student.encoder.load_state_dict(adapted)
    return student
