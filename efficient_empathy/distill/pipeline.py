"""From judged examples to a scorer folder: split, train, calibrate, export, check, measure, write."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill import export
from efficient_empathy.distill.backbone import Backbone, open_backbone
from efficient_empathy.distill.batches import split_by_conversation
from efficient_empathy.distill.calibration import cross_fitted, fit_calibration
from efficient_empathy.distill.card import write_card
from efficient_empathy.distill.conversations import join_conversations
from efficient_empathy.distill.decision import decision_rule
from efficient_empathy.distill.fast_tier import FAST_FILE, PoolParts, make_fast_tier
from efficient_empathy.distill.half import add_half
from efficient_empathy.distill.measuring import measure
from efficient_empathy.distill.quantise import quantise
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.distill.settings import COMPARED_EXAMPLES, DistillOptions
from efficient_empathy.distill.students import Split, TrainedStudent, train_normal
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import atomic_folder, folder_beside, versions, write_manifest
from efficient_empathy.scorer.artifact import KIND, SPEC_FILE, TOKENIZER_FILE, Scale, ScorerSpec, write_spec
from efficient_empathy.scorer.encoding import Encoder

LEAST_LABELS = 40
"""Fewer labelled examples than this are not trained on."""
_CALIBRATION_ROWS = 192
_FP32, _INT8 = "transformer.fp32.onnx", "transformer.int8.onnx"
_PACKAGES = ("torch", "transformers", "optimum", "optimum-onnx", "lightning", "onnxruntime", "tokenizers", "numpy")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledData:
    """What is learnt from: judged examples, and optionally a pool of unlabelled ones."""

    examples: Sequence[Example]
    scores: np.ndarray
    """The judge's scores, float (n, d), columns in the rubric's order."""
    pool: Sequence[Example] = ()
    """Unlabelled examples, in an order drawn by seed; nothing is learnt from those whose conversation is held out."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the labels came from (files, hashes, judge, cost); goes into the manifest and the card as it is."""


def distill(data: LabelledData, rubric: Rubric, options: DistillOptions, out: Path) -> ScorerSpec:
    """Train a scorer and write its folder.

    Args:
        data: judged examples, and a pool of unlabelled ones for the fast tier and ``effort="high"``.
        rubric: what was judged; its dimensions are the scorer's.
        options: how to train.
        out: the folder to write; it appears whole or not at all.

    Returns:
        What ``scorer.json`` says.

    Raises:
        EmpathyError: too few labels, a constant dimension, an unusable backbone, an existing folder, a failed export.
    """
    data = _joined(data)
    _check(data, rubric, options, out)
    scales = tuple(Scale(d.name, float(d.low), float(d.high)) for d in rubric.dimensions)
    backbone = open_backbone(options.backbone, options.max_tokens, options.layers)
    split = _split(data, options)
    parts = pool_parts(data.pool, split, options)
    trained = _train(split, parts, scales, backbone, options, out)
    scores = data.scores[split.held_out]
    compared = Encoder(backbone.tokenizer, backbone.encoding).encode(parts.unseen[:COMPARED_EXAMPLES])
    unlabelled = export.probabilities(trained.student, compared, backbone.encoding.pad) if parts.unseen else None
    calibration = fit_calibration(trained.outputs[trained.best_epoch], scores, scales, unlabelled)
    shape = {"cut": calibration.cut, "below": calibration.below, "above": calibration.above}
    trained.student.set_calibration(**{name: torch.from_numpy(values) for name, values in shape.items()})
    groups = [data.examples[row].dialogue_id for row in split.held_out]
    of_epoch = {} if unlabelled is None else {trained.best_epoch: unlabelled}
    found = cross_fitted(trained.outputs, scores, groups, scales, options.seed, of_epoch)
    with atomic_folder(out) as scratch:
        parity, files = _export(trained, data, parts, backbone, scales, scratch, options.fp16)
        tiers, labelled = {"transformer": files}, [data.examples[row] for row in split.held_out]
        fast = make_fast_tier(scratch, files, parts, labelled, backbone, scales, options.fast, options.seed)
        others: dict[str, np.ndarray] = {}
        if fast is not None:
            tiers["fast"], parity["fast"] = {"fp32": FAST_FILE}, asdict(fast.facts)
            others = {"fast tier": fast.labelled_scores}
        quality = measure({"scorer": found, **others}, split, scales, backbone)
        spec = ScorerSpec(
            dimensions=scales,
            encoding=backbone.encoding,
            tiers=tiers,
            fast=options.fast.spec if fast is not None else None,
            cascade=fast.cascade if fast is not None else {},
            rubric={"name": rubric.name, "sha256": rubric.digest},
            calibration={name: values.tolist() for name, values in shape.items()},
            parity=parity,
            quality=quality,
            versions=versions(*_PACKAGES),
        )
        _describe(scratch, spec, _provenance(data, rubric, options, trained))
    if options.effort == "high":
        shutil.rmtree(work_folder(out), ignore_errors=True)
    return spec


def work_folder(out: Path) -> Path:
    """Where finished stages of a long run are kept until the scorer folder is there."""
    return out.with_name(out.name + ".work")


def _check(data: LabelledData, rubric: Rubric, options: DistillOptions, out: Path) -> None:
    if out.exists():
        raise EmpathyError(f"'{out}' is already there. Choose another folder with -o, or remove it first.")
    folder_beside(out).rmdir()  # a place that cannot be written to is said before the training, not after it
    if len(data.examples) < LEAST_LABELS:
        raise EmpathyError(
            f"{len(data.examples)} labelled examples are too few to train and measure a scorer: "
            f"at least {LEAST_LABELS} are needed, a few hundred to a thousand are advised."
        )
    if len({example.dialogue_id for example in data.examples}) < 4:
        raise EmpathyError("the labelled examples come from fewer than 4 conversations: no split keeps them apart.")
    for column, dimension in enumerate(rubric.dimensions):
        if np.ptp(data.scores[:, column]) == 0:
            raise EmpathyError(
                f"every label has the same {dimension.name} ({data.scores[0, column]:g}): there is nothing to learn from."
            )
    if options.effort == "high" and not data.pool:
        raise EmpathyError("--effort high learns from unlabelled dialogues too: name them with --dialogues.")


def _joined(data: LabelledData) -> LabelledData:
    """The data with the conversations that its rows do not name: all that follows keeps them whole."""
    every = join_conversations([*data.examples, *data.pool])
    return replace(data, examples=every[: len(data.examples)], pool=every[len(data.examples) :])


def _split(data: LabelledData, options: DistillOptions) -> Split:
    groups = [example.dialogue_id for example in data.examples]
    # Two held-out conversations at least: on one of them the epoch is chosen that is measured on the other.
    rows, held = split_by_conversation(groups, options.holdout, options.seed, least=2)
    if len(rows) < LEAST_LABELS // 2:
        raise EmpathyError(
            f"only {len(rows)} of the {len(groups)} labelled examples are left to train on, since a few conversations hold most "
            "of them and none is split. Label examples of more conversations, or try another --seed."
        )
    _log.info("%d labels: %d to train on, %d held out, by conversation", len(groups), len(rows), len(held))
    return Split(data.examples, data.scores, rows, held)


def _train(
    split: Split,
    parts: PoolParts,
    scales: tuple[Scale, ...],
    backbone: Backbone,
    options: DistillOptions,
    out: Path,
) -> TrainedStudent:
    if options.effort == "normal":
        return train_normal(split, scales, backbone, options)
    from efficient_empathy.distill.high_effort import train_high

    if not parts.learnt:
        raise EmpathyError(
            "--effort high: every unlabelled dialogue belongs to a held-out conversation; name more of them."
        )
    return train_high(split, parts.learnt, scales, backbone, options, work_folder(out))


def _export(
    trained: TrainedStudent,
    data: LabelledData,
    parts: PoolParts,
    backbone: Backbone,
    scales: tuple[Scale, ...],
    folder: Path,
    fp16: bool,
) -> tuple[dict[str, Any], dict[str, str]]:
    backbone.tokenizer.save(str(folder / TOKENIZER_FILE))
    encoder = Encoder(backbone.tokenizer, backbone.encoding)
    pad = backbone.encoding.pad
    # Compared on rows that were not trained on: those lie further from the thresholds than others do.
    checked = [*(data.examples[row] for row in trained.split.held_out), *parts.unseen[:COMPARED_EXAMPLES]]
    scaling = _spread([data.examples[row] for row in trained.split.rows], _CALIBRATION_ROWS)
    encoded = encoder.encode(checked)
    _log.info("exporting to ONNX and comparing %d rows", len(checked))
    export.export_fp32(trained.student, folder / _FP32)
    expected = export.torch_scores(trained.student, encoded, pad)
    fp32 = export.check_fp32(folder / _FP32, expected, encoded, pad)
    decide = decision_rule(scales)[0]
    int8 = quantise(folder / _FP32, folder / _INT8, encoded, pad, decide, encoder.encode(scaling))
    tiers = {"fp32": _FP32}
    if int8.passed:
        tiers["int8"] = _INT8
    else:
        _log.warning("no int8 file: %s. The folder has fp32 only, which is slower on a CPU.", int8.describe())
    parity = {"fp32": asdict(fp32), "int8": {**asdict(int8), "passed": int8.passed}}
    if fp16:
        parity["fp16"] = add_half(folder, tiers, encoded, pad, decide)
    return parity, tiers


def _describe(folder: Path, spec: ScorerSpec, body: dict[str, Any]) -> None:
    """Write what a folder with finished models says of itself; the manifest, with the hash of every file, last."""
    write_spec(folder, spec)
    write_card(folder, spec, body)
    models = [file for files in spec.tiers.values() for file in files.values()]
    cascade = [spec.cascade["file"]] if spec.cascade else []
    write_manifest(folder, KIND, body, [SPEC_FILE, TOKENIZER_FILE, "README.md", *models, *cascade])


def pool_parts(pool: Sequence[Example], split: Split, options: DistillOptions) -> PoolParts:
    """Divide the pool by conversation: about a quarter is kept unseen, and all of it where nothing is learnt from it.

    The labelled conversations' other turns follow their labels: of those held out all are unseen; of those trained on what would
    be unseen is left out.
    """
    trained, held = ({split.examples[row].dialogue_id for row in rows} for rows in (split.rows, split.held_out))
    fast = options.fast
    learns = options.effort == "high" or (fast.rated_examples and len(pool) * 3 // 4 >= fast.least_examples)
    if not learns or not pool:
        return PoolParts((), [example for example in pool if example.dialogue_id not in trained][:COMPARED_EXAMPLES])
    share = min(max(COMPARED_EXAMPLES, fast.rated_examples // 4), len(pool) // 4) / len(pool)
    drawn = set(split_by_conversation([example.dialogue_id for example in pool], share, options.seed)[1].tolist())
    learnt, unseen = [], []
    for row, example in enumerate(pool):
        if example.dialogue_id in held or (row in drawn and example.dialogue_id not in trained):
            unseen.append(example)
        elif row not in drawn:
            learnt.append(example)
    return PoolParts(learnt, unseen)


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most so many examples, evenly spread over the sequence."""
    if len(examples) <= count:
        return list(examples)
    return [examples[int(index)] for index in np.linspace(0, len(examples) - 1, count)]


def _public_name(model: str) -> str:
    """A model's file or folder by its name alone; a Hub id as it is."""
    return Path(model).resolve().name if Path(model).exists() else model


def _provenance(data: LabelledData, rubric: Rubric, options: DistillOptions, trained: TrainedStudent) -> dict[str, Any]:
    return {
        "rubric": rubric.as_dict(),
        "labels": {
            "examples": len(data.examples),
            "trained_on": len(trained.split.rows),
            "held_out": len(trained.split.held_out),
            **data.provenance,
        },
        # Most are rated for the fast tier and, with high effort, for the student; the rest is compared on.
        "unlabelled_examples_read": len(data.pool),
        # Scorers are passed on, and where a model lay concerns nobody else.
        "options": {
            **asdict(options),
            "backbone": _public_name(options.backbone),
            "teacher": options.teacher and _public_name(options.teacher),
        },
        "training": dict(trained.facts),
        "versions": versions(*_PACKAGES),
    }
