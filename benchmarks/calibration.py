"""What calibrating for the decision gives beside a line that matches mean and spread: on many draws of held-out rows.

    python benchmarks/calibration.py [--seeds 0,1,2] [--draws 24] [--labels 1000]

Each seed draws conversations until 1,000 rows of the paper's judge scores are reached, and a student is trained on them at
normal effort. Of the other rows, 75 conversations at a time stand for the held-out ones: both calibrations are fitted on these
and measured on the rest. Figures are given for the "development" half of the conversations, which the calibration was chosen on,
and for the untouched half.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import draw_conversations, read_rows, untouched, write_jsonl, write_result

from efficient_empathy.distill.backbone import open_backbone
from efficient_empathy.distill.batches import split_by_conversation
from efficient_empathy.distill.calibration import Calibration, Line, clipped, fit_calibration, fit_line
from efficient_empathy.distill.decision import decision_rule
from efficient_empathy.distill.export import probabilities
from efficient_empathy.distill.labels import load_labelled
from efficient_empathy.distill.quality import macro_f1, mean_absolute_error, quadratic_kappa
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.distill.settings import DistillOptions
from efficient_empathy.distill.student import expected_scores
from efficient_empathy.distill.students import Split, train_normal
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.encoding import Encoder

LABELS = "ed_paper_scores.valid.jsonl.gz"
METRICS = ("accuracy", "macro_f1", "mae/sensibility", "kappa/sensibility", "mae/rationality", "kappa/rationality")
HELD_OUT = 75
"""Conversations that a calibration is fitted on: about 150 rows, as ``--holdout`` leaves of 1,000."""


def student_probabilities(
    rows: list[dict], labels: int, seed: int, folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A student of some labels: its probabilities of all other rows, the judge's scores of these, their conversations."""
    rubric, options = Rubric.load(), DistillOptions(seed=seed)
    taken, rest = draw_conversations(rows, labels, seed)
    train = load_labelled(write_jsonl(folder / "labels.jsonl", taken), None, rubric)
    test = load_labelled(write_jsonl(folder / "rest.jsonl", rest), None, rubric)
    groups = [example.dialogue_id for example in train.examples]
    split = Split(train.examples, train.scores, *split_by_conversation(groups, options.holdout, seed, least=2))
    backbone = open_backbone(options.backbone, options.max_tokens)
    student = train_normal(split, scales_of(rubric), backbone, options).student
    encoded = Encoder(backbone.tokenizer, backbone.encoding).encode(test.examples)
    found = probabilities(student, encoded, backbone.encoding.pad)
    return found, test.scores, np.array([example.dialogue_id for example in test.examples])


def scales_of(rubric: Rubric) -> tuple[Scale, ...]:
    return tuple(Scale(one.name, float(one.low), float(one.high)) for one in rubric.dimensions)


def figures(calibration: Calibration | Line, raw: np.ndarray, scores: np.ndarray, scales: tuple[Scale, ...]) -> dict:
    """Figures of calibrated outputs against the judge's scores."""
    found = clipped(calibration.apply(raw), scales)
    decide, classes, _ = decision_rule(scales)
    ours, theirs = decide(found), decide(scores)
    result = {"accuracy": float((ours == theirs).mean()), "macro_f1": macro_f1(ours, theirs, classes)}
    for column, scale in enumerate(scales):
        result[f"mae/{scale.name}"] = mean_absolute_error(found[:, column], scores[:, column])
        result[f"kappa/{scale.name}"] = quadratic_kappa(found[:, column], scores[:, column], scale)
    return result


def compare(
    found: np.ndarray, scores: np.ndarray, groups: np.ndarray, draws: int, scales: tuple[Scale, ...]
) -> list[dict]:
    """Both calibrations, fitted on some draws of conversations, on the rows of each half that were not drawn."""
    raw, results = expected_scores(found, scales), []
    fresh = np.array([untouched(group) for group in groups])
    for draw in range(draws):
        names = np.unique(groups)
        held = np.isin(groups, np.random.default_rng(draw).permutation(names)[:HELD_OUT])
        fitted = {
            "line": fit_line(raw[held], scores[held]),
            "decision": fit_calibration(found[held], scores[held], scales),
        }
        for part, inside in (("development", ~fresh), ("untouched", fresh)):
            rows = inside & ~held
            for name, calibration in fitted.items():
                results.append(
                    {
                        "part": part,
                        "calibration": name,
                        "draw": draw,
                        **figures(calibration, raw[rows], scores[rows], scales),
                    }
                )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--labels", type=int, default=1000)
    options = parser.parse_args()
    rows, scales, results = read_rows(LABELS), scales_of(Rubric.load()), []
    for seed in map(int, options.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            material = student_probabilities(rows, options.labels, seed, Path(folder))
        results += [{"seed": seed, **one} for one in compare(*material, options.draws, scales)]
    summary: dict = {}
    for part in ("development", "untouched"):
        by_name = {
            name: [one for one in results if (one["part"], one["calibration"]) == (part, name)]
            for name in ("line", "decision")
        }
        for name, ones in by_name.items():
            summary.setdefault(part, {})[name] = {key: float(np.mean([one[key] for one in ones])) for key in METRICS}
        gains = np.array([b["macro_f1"] - a["macro_f1"] for a, b in zip(*by_name.values(), strict=True)])
        summary[part]["gain"] = {
            "mean": gains.mean(),
            "sd": gains.std(),
            "least": gains.min(),
            "share_worse": (gains < 0).mean(),
        }
        for name, found in summary[part].items():
            print(f"{part:12s} {name:9s} " + "  ".join(f"{key} {value:.3f}" for key, value in found.items()))
    write_result(
        "calibration", {"labels": options.labels, "draws": options.draws, "summary": summary, "results": results}
    )


if __name__ == "__main__":
    main()
