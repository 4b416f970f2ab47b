"""The options of distillation: one object for Python, the command line, the YAML file and the manifest."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from efficient_empathy.errors import EmpathyError
from efficient_empathy.ranges import within
from efficient_empathy.scorer.fast import FastSpec

DEFAULT_BACKBONE = "minilm"
COMPARED_EXAMPLES = 1000
"""Most unlabelled examples that the exported files are compared on; they are not learnt from."""

Effort = Literal["normal", "high"]
EFFORTS: tuple[str, ...] = get_args(Effort)


@dataclass(frozen=True)
class TrainingOptions:
    """How one student is tuned."""

    epochs: int = 3
    """Passes over the training rows at most, 1 to 100; the learning rate falls to 0 by the last one."""
    batch_size: int = 16
    """Rows a step, 1 to 4096."""
    learning_rate: float = 2e-4
    """Peak rate of the encoder's top layer, over 0 and up to 0.1."""
    head_learning_rate: float = 1e-3
    """Peak rate of the linear layer on top, which starts from nothing."""
    layer_decay: float = 0.9
    """Each layer further down learns at this share of the rate of the one above, over 0 and up to 1."""
    dropout: float = 0.0
    """Dropout inside the encoder, 0 to 0.5; the head has its own."""
    patience: int = 2
    """Epochs without a better validation figure before training stops, 1 or more."""

    def __post_init__(self) -> None:
        within("epochs", self.epochs, 1, 100)
        within("batch_size", self.batch_size, 1, 4096)
        within("learning_rate", self.learning_rate, 1e-9, 0.1)
        within("head_learning_rate", self.head_learning_rate, 1e-9, 1.0)
        within("layer_decay", self.layer_decay, 0.01, 1.0)
        within("dropout", self.dropout, 0.0, 0.5)
        within("patience", self.patience, 1, 100)


@dataclass(frozen=True)
class PoolOptions:
    """What ``--effort high`` does with the unlabelled dialogues."""

    teachers: int = 4
    """Students trained from different seeds whose mean rates the pool, 1 to 20."""
    larger_teachers: int = 2
    """The same where ``DistillOptions.teacher`` names an encoder for them, 1 to 20."""
    larger_learning_rate: float = 1e-4
    """Peak rate of such an encoder's top layer, over 0 and up to 0.1: lower than that of a small one."""
    rated_examples: int = 8_000
    """Pool examples that the teachers rate for the final student."""
    student_epochs: int = 2
    """Passes of the final student over the teachers' ratings and the judge's labels together."""

    def __post_init__(self) -> None:
        within("teachers", self.teachers, 1, 20)
        within("larger_teachers", self.larger_teachers, 1, 20)
        within("larger_learning_rate", self.larger_learning_rate, 1e-9, 0.1)
        within("rated_examples", self.rated_examples, 1, 10_000_000)
        within("student_epochs", self.student_epochs, 1, 100)

    def student_training(self, training: TrainingOptions) -> TrainingOptions:
        """How the final student is tuned: as the teachers, for its own number of epochs."""
        return replace(training, epochs=self.student_epochs)


@dataclass(frozen=True)
class FastOptions:
    """How the fast tier is trained, on unlabelled examples that the finished transformer rates."""

    rated_examples: int = 16_000
    """Unlabelled examples that the transformer rates, at most; a quarter is held out to calibrate the cascade. 0: no fast tier."""
    least_examples: int = 1_000
    """Fewer rated examples than this are too few to learn from: the scorer then has no fast tier."""
    epochs: int = 6
    """Passes over them, 1 to 100."""
    batch_size: int = 256
    """Rows a step, 1 to 65,536."""
    learning_rate: float = 2e-2
    """Of the vectors; the layers above learn at a third of it."""
    dropout: float = 0.2
    """0 to 0.9."""
    vector: int = 16
    """Numbers a bucket, 1 to 256."""
    hidden: int = 64
    """Units of the hidden layer, 1 to 4096."""
    spec: FastSpec = field(default_factory=FastSpec)
    """How examples are read."""

    def __post_init__(self) -> None:
        within("rated_examples", self.rated_examples, 0, 10_000_000)
        within("least_examples", self.least_examples, 1, 10_000_000)
        within("epochs", self.epochs, 1, 100)
        within("batch_size", self.batch_size, 1, 65_536)
        within("learning_rate", self.learning_rate, 1e-6, 1.0)
        within("dropout", self.dropout, 0.0, 0.9)
        within("vector", self.vector, 1, 256)
        within("hidden", self.hidden, 1, 4096)


@dataclass(frozen=True)
class DistillOptions:
    """From labels to a scorer folder."""

    backbone: str = DEFAULT_BACKBONE
    """``minilm`` (from its wheel, no network), a folder, or a Hub id of an encoder."""
    effort: Effort = "normal"
    """``normal`` tunes one student on the labels; ``high`` also learns from the unlabelled dialogues, for better scores."""
    teacher: str | None = None
    """A larger encoder that the teachers of ``effort="high"`` are made from, a folder or a Hub id; the scorer stays as small.
    None: they are made from the backbone."""
    layers: int | None = None
    """Encoder layers that the scorer keeps, from the bottom, 1 to 1000; fewer are faster. None: 5 of ``minilm``'s 6, all of any
    other's."""
    max_tokens: int = 128
    """Longest input in tokens, 16 to 8192; what is longer loses its oldest context."""
    holdout: float = 0.15
    """Share of the labelled rows, in whole conversations, that is never trained on, 0.05 to 0.5: it stops training, calibrates,
    and reports."""
    seed: int = 0
    """Of the split, the order of the rows and the weights of the head, 0 to 2,147,483,647."""
    fp16: bool = False
    """Whether to make an fp16 file as well, for GPUs."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """How a student is tuned."""
    pool: PoolOptions = field(default_factory=PoolOptions)
    """What ``effort="high"`` does with the unlabelled dialogues."""
    fast: FastOptions = field(default_factory=FastOptions)
    """How the fast tier learns from them."""

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise EmpathyError(f"effort must be one of {', '.join(EFFORTS)}, not '{self.effort}'.")
        if self.teacher is not None and self.effort != "high":
            raise EmpathyError(f"--teacher {self.teacher}: only --effort high has teachers.")
        if self.layers is not None:
            within("layers", self.layers, 1, 1000)
        within("max_tokens", self.max_tokens, 16, 8192)
        within("holdout", self.holdout, 0.05, 0.5)
        within("seed", self.seed, 0, 2**31 - 1)
