"""The fast tier of a scorer folder: the transformer rates unlabelled examples, a fast student learns its scores.

Rows that neither has learnt from are rated by both and kept in the folder: on them a cascade is calibrated for whatever
policy it is asked to serve.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.backbone import Backbone
from efficient_empathy.distill.calibration import fit_line
from efficient_empathy.distill.decision import decision_rule
from efficient_empathy.distill.export import onnx_scores
from efficient_empathy.distill.fast_student import check_fast, export_fast, fast_scores, train_fast
from efficient_empathy.distill.settings import FastOptions
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.cascade import CASCADE_FILE, Pairs
from efficient_empathy.scorer.encoding import Encoder
from efficient_empathy.scorer.fast import FastEncoder
from efficient_empathy.scorer.ranks import spearman
from efficient_empathy.scorer.session import open_session

FAST_FILE = "fast.fp32.onnx"
_CHUNK = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FastTierFacts:
    """How the fast tier compares with the transformer, on rows that neither has learnt from."""

    learnt_from: int
    """Unlabelled examples that it was trained on."""
    rows: int
    """Unlabelled examples held out."""
    spearman: tuple[float, ...]
    """With the transformer's scores, for each dimension."""
    flips: float
    """Share of decisions that differ from the transformer's."""
    largest_difference: float
    """Of a score in the ONNX file from torch's."""


@dataclass(frozen=True)
class FastTier:
    """What was written, and what it came to."""

    facts: FastTierFacts
    cascade: Mapping[str, Any]
    """What ``scorer.json`` says of the rows that both tiers rated."""
    labelled_scores: np.ndarray
    """The fast tier's scores of the held-out labelled rows, (held-out rows, d)."""


@dataclass(frozen=True)
class PoolParts:
    """The unlabelled examples by what may be done with them."""

    learnt: Sequence[Example]
    """May be learnt from; of no conversation that is held out."""
    unseen: Sequence[Example]
    """What is exported is compared and calibrated on them; of no conversation that was trained on."""


def make_fast_tier(
    folder: Path,
    tiers: Mapping[str, str],
    parts: PoolParts,
    labelled: Sequence[Example],
    backbone: Backbone,
    scales: tuple[Scale, ...],
    options: FastOptions,
    seed: int,
) -> FastTier | None:
    """Train a fast tier and write its file and the cascade's rows into a scorer folder.

    Args:
        folder: has the transformer's files.
        tiers: the transformer's file of each precision; int8 rates where there is one, as it will on a CPU.
        parts: the unlabelled examples.
        labelled: held-out labelled examples, to be scored.
        backbone: its tokenizer is the fast tier's too.
        scales: the dimensions.
        options: how to train.
        seed: of the training.

    Returns:
        What was made, or None where there is too little to learn from.
    """
    most = options.rated_examples
    if most == 0:
        return None
    if len(parts.learnt) + len(parts.unseen) > most:  # --effort high may have drawn more
        parts = PoolParts(parts.learnt[: most - most // 4], parts.unseen[: max(1, most // 4)])
    if len(parts.learnt) < options.least_examples:
        _log.info(
            "no fast tier: it learns from unlabelled dialogues, and %d examples of them are fewer than %d",
            len(parts.learnt),
            options.least_examples,
        )
        return None
    if not parts.unseen:
        _log.info(
            "no fast tier: some unlabelled dialogues must be kept to compare on, and all belong to one conversation or to those "
            "that were trained on"
        )
        return None
    precision = "int8" if "int8" in tiers else "fp32"
    both = [*parts.learnt, *parts.unseen]
    scores = _rate(folder / tiers[precision], both, backbone)
    encoder = FastEncoder(backbone.tokenizer, options.spec)
    rows, unseen = encoder.encode(parts.learnt), encoder.encode(parts.unseen)
    middle = len(parts.learnt)
    student = train_fast(rows, scores[:middle], scales, options, seed)
    # What is learnt crowds round the mean: with the transformer's spread the subsets get about its shares.
    student.line = fit_line(fast_scores(student, unseen, scales), scores[middle:])
    export_fast(student, folder / FAST_FILE, scales)
    found = fast_scores(student, unseen, scales)
    difference = check_fast(folder / FAST_FILE, found, unseen, options.spec)
    Pairs(found, scores[middle:]).write(folder / CASCADE_FILE)
    decide = decision_rule(scales)[0]
    facts = FastTierFacts(
        learnt_from=middle,
        rows=len(unseen),
        spearman=tuple(spearman(found[:, d], scores[middle:, d]) for d in range(len(scales))),
        flips=float((decide(found) != decide(scores[middle:])).mean()),
        largest_difference=difference,
    )
    _log.info("fast tier: %s", asdict(facts))
    cascade = {"file": CASCADE_FILE, "rows": len(unseen), "precision": precision}
    return FastTier(facts, cascade, fast_scores(student, encoder.encode(labelled), scales))


def _rate(model: Path, examples: Sequence[Example], backbone: Backbone) -> np.ndarray:
    """The transformer's scores, float32 (n, d)."""
    session = open_session(model, "cpu")
    encoder = Encoder(backbone.tokenizer, backbone.encoding)
    found, begin = [], time.monotonic()
    for start in range(0, len(examples), _CHUNK):
        some = examples[start : start + _CHUNK]
        found.append(onnx_scores(session, encoder.encode(some), backbone.encoding.pad))
        done = start + len(some)
        left = (time.monotonic() - begin) / done * (len(examples) - done)
        _log.info("the transformer rates for the fast tier: %d of %d, %.0f s left", done, len(examples), left)
    return np.concatenate(found)
