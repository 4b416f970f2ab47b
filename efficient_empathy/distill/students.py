"""Trained students, and the normal way to one: tune the encoder on the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.backbone import Backbone, load_encoder
from efficient_empathy.distill.batches import EncodedRows
from efficient_empathy.distill.settings import DistillOptions
from efficient_empathy.distill.student import Student, exceedances
from efficient_empathy.distill.training import choose_precision, train_student
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.encoding import Encoder


@dataclass(frozen=True)
class Split:
    """The labelled examples, and which of them may be learnt from."""

    examples: Sequence[Example]
    scores: np.ndarray
    """The judge's scores of all examples, float (n, d)."""
    rows: np.ndarray
    """Indices that are trained on."""
    held_out: np.ndarray
    """Indices that are never trained on; they choose the epoch, calibrate and report."""

    def encode(self, scales: tuple[Scale, ...], backbone: Backbone) -> tuple[EncodedRows, EncodedRows]:
        """Both sides as rows with targets: what is trained on, and what is held out."""
        encoder, targets = Encoder(backbone.tokenizer, backbone.encoding), exceedances(self.scores, scales)

        def side(rows: np.ndarray) -> EncodedRows:
            return EncodedRows(
                encoder.encode([self.examples[row] for row in rows]), targets[rows], backbone.encoding.pad
            )

        return side(self.rows), side(self.held_out)


@dataclass(frozen=True)
class TrainedStudent:
    """A student and all that is needed to calibrate and measure it."""

    student: Student
    split: Split
    """What it learnt from, and what was held out."""
    outputs: list[np.ndarray]
    """Probabilities of the held-out rows after each epoch that could be chosen, each (n, points)."""
    best_epoch: int
    """Index into ``outputs``: the epoch whose weights the student has."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest says of the training."""


def keep_layers(encoder: Any, count: int) -> None:
    """Cut a pretrained encoder down to its lowest layers, in place.

    Raises:
        EmpathyError: its layers are no list that can be cut, as where all share their weights.
    """
    stacks = [module for module in encoder.modules() if isinstance(module, torch.nn.ModuleList)]
    stack = max(stacks, key=len, default=torch.nn.ModuleList())
    if len(stack) != encoder.config.num_hidden_layers:
        raise EmpathyError(
            "--layers: this encoder's layers are no plain list; leave the option out, or choose another --backbone."
        )
    del stack[count:]
    encoder.config.num_hidden_layers = count


def new_student(backbone: Backbone, scales: tuple[Scale, ...], dropout: float, seed: int) -> Student:
    """A student with the pretrained encoder and a head drawn from a seed."""
    torch.manual_seed(seed)
    encoder = load_encoder(backbone)
    if backbone.layers is not None:
        keep_layers(encoder, backbone.layers)
    # Dropout of the attention weights is slow on CPUs and did not help; that of the hidden states is an option.
    for name, module in encoder.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0 if "attention.self" in name else dropout
        elif isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = 0.0  # fused attention takes its share from here, not from its Dropout
    return Student(encoder, scales)


def train_normal(
    split: Split, scales: tuple[Scale, ...], backbone: Backbone, options: DistillOptions
) -> TrainedStudent:
    """Tune one student on the labels; the held-out rows choose the epoch.

    Args:
        split: the labelled examples.
        scales: the dimensions.
        backbone: the encoder to start from.
        options: how to train.
    """
    training, validation = split.encode(scales, backbone)
    student = new_student(backbone, scales, options.training.dropout, options.seed)
    trained = train_student(student, training, validation, options.training, options.seed)
    facts = facts_of(student, len(trained.outputs), trained.best_epoch + 1)
    return TrainedStudent(student, split, trained.outputs, trained.best_epoch, facts)


def facts_of(student: Student, epochs: int, kept: int) -> dict[str, Any]:
    """What the manifest says of any training of a student: among others how many epochs, and the weights of which were kept."""
    return {
        "layers": getattr(student.config, "num_hidden_layers", None),
        "epochs": epochs,
        "best_epoch": kept,
        "precision": choose_precision(),
    }
