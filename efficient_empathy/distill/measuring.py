"""What the report and the card say: the scorer and three baselines on the held-out rows, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.backbone import Backbone, load_encoder
from efficient_empathy.distill.baselines import mean_scores, ridge, tfidf_ridge
from efficient_empathy.distill.calibration import clipped
from efficient_empathy.distill.decision import decision_rule
from efficient_empathy.distill.quality import Judged, agreement
from efficient_empathy.distill.students import Split
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.batching import token_budget_batches
from efficient_empathy.scorer.encoding import Encoder


def measure(
    found: Mapping[str, np.ndarray], split: Split, scales: tuple[Scale, ...], backbone: Backbone
) -> dict[str, Any]:
    """Agreement with the judge on the held-out rows, of the scorer and of three baselines fitted on the same rows.

    The baselines' scores are calibrated and held within their scales, as the scorer's are.

    Args:
        found: scores of the held-out rows by the scorer's tiers, each (held-out rows, d).
        split: the labelled examples.
        scales: the dimensions.
        backbone: for the frozen encoder with a linear head.
    """
    examples, scores, rows, held = split.examples, split.scores, split.rows, split.held_out
    decide, classes, rule = decision_rule(scales)
    judged = Judged(scores[held], [examples[row].dialogue_id for row in held], scales, decide, classes)
    train, test = [examples[row] for row in rows], [examples[row] for row in held]
    features = frozen_features([*train, *test], backbone)
    baselines = {
        "frozen encoder + linear": ridge(features[: len(train)], scores[rows], features[len(train) :], scales),
        "TF-IDF + ridge": tfidf_ridge(train, scores[rows], test, scales),
        "mean": mean_scores(scores[rows], len(held)),
    }
    systems = {**found, **{name: clipped(predicted, scales) for name, predicted in baselines.items()}}
    figures = {
        name: {metric: asdict(figure) for metric, figure in agreement(predicted, judged).items()}
        for name, predicted in systems.items()
    }
    return {"rows": len(held), "conversations": len(set(judged.groups)), "decision": rule, "systems": figures}


def frozen_features(examples: Sequence[Example], backbone: Backbone) -> np.ndarray:
    """Mean-pooled states of the pretrained encoder as it is, float32 (n, hidden size)."""
    encoder = load_encoder(backbone).eval()
    encoded = Encoder(backbone.tokenizer, backbone.encoding).encode(examples)
    features = np.zeros((len(examples), encoder.config.hidden_size), np.float32)
    segments = getattr(encoder.config, "type_vocab_size", 0) > 1
    with torch.inference_mode():
        for rows in token_budget_batches(encoded.lengths, 4096):
            batch = {k: torch.from_numpy(v) for k, v in encoded.batch(rows, backbone.encoding.pad).items()}
            if not segments:
                del batch["token_type_ids"]
            mask = batch["attention_mask"].unsqueeze(-1).float()
            states = encoder(**batch).last_hidden_state
            features[rows] = ((states * mask).sum(1) / mask.sum(1)).numpy()
    return features
