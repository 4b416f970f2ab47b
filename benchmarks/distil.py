"""How well 1,000 labels distil: the paper's judge scores, by conversation, on rows never trained on.

    python benchmarks/distil.py [--effort normal|high [--teacher ENCODER]] [--epochs N] [--seeds 0,1,2] [--labels 1000]

Each seed draws conversations until 1,000 rows are reached, runs the whole `ee-cli distill` command on them and scores all
other rows with the scorer folder. Baselines are fitted on the same rows in the same run, and calibrated as the scorer is. The
recipe was chosen on rows of the "development" half of the conversations (that of effort high in part on all of them);
figures are given for all other rows and for those of the untouched half.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from common import DATA, draw_conversations, read_result, read_rows, run_command, untouched, write_jsonl, write_result

from efficient_empathy import Scorer
from efficient_empathy.distill.backbone import open_backbone
from efficient_empathy.distill.baselines import mean_scores, ridge, tfidf_ridge
from efficient_empathy.distill.decision import decision_rule
from efficient_empathy.distill.labels import load_labelled
from efficient_empathy.distill.measuring import frozen_features
from efficient_empathy.distill.quality import Judged, agreement
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.manifest import read_manifest, sha256_file

LABELS = "ed_paper_scores.valid.jsonl.gz"
POOL = "empathetic_dialogues.train.jsonl.gz"
WEIGHTS = "model.safetensors"
SHOWN = ("spearman/sensibility", "spearman/rationality", "decision/macro_f1", "decision/accuracy")


def run_seed(rows: list[dict], seed: int, options: argparse.Namespace, folder: Path) -> dict:
    effort = options.effort
    taken, rest = draw_conversations(rows, options.labels, seed)
    labels, out = write_jsonl(folder / f"labels-{seed}.jsonl", taken), folder / f"scorer-{effort}-{seed}"
    arguments = ["distill", "--labels", str(labels), "--seed", str(seed), "--effort", effort, "-o", str(out)]
    if effort == "high":
        arguments += ["--dialogues", str(DATA / POOL)]
    if options.teacher:
        arguments += ["--teacher", str(options.teacher)]
    if options.epochs:
        arguments += ["--epochs", str(options.epochs)]
    cost = run_command(arguments)
    rubric = Rubric.load()
    train = load_labelled(labels, None, rubric)
    test = load_labelled(write_jsonl(folder / f"rest-{seed}.jsonl", rest), None, rubric)
    scorer = Scorer.load(out, device="cpu")
    backbone, scales = open_backbone("minilm", 128), scorer.spec.dimensions
    decide, classes, _ = decision_rule(scales)
    features = frozen_features([*train.examples, *test.examples], backbone)
    systems = {
        f"scorer ({scorer.precision})": scorer.score(test.examples),
        "frozen encoder + linear": ridge(
            features[: len(train.examples)], train.scores, features[len(train.examples) :], scales
        ),
        "TF-IDF + ridge": tfidf_ridge(train.examples, train.scores, test.examples, scales),
        "mean": mean_scores(train.scores, len(test.examples)),
    }
    groups = [example.dialogue_id for example in test.examples]
    fresh = np.flatnonzero([untouched(group) for group in groups])
    result: dict = {"seed": seed, "train_rows": len(taken), "report_rows": len(rest), "untouched_rows": len(fresh)}
    training = read_manifest(out)["training"]
    recipe = {name: training.get(name) for name in ("layers", "teachers", "teacher_states", "rated_pool_examples")}
    recipe["calibration"] = sorted(scorer.spec.calibration)
    result |= {"recipe": recipe, "cost": asdict(cost), "parity": scorer.spec.parity, "systems": {}}
    for name, found in systems.items():
        everything = Judged(test.scores, groups, scales, decide, classes)
        half = Judged(test.scores[fresh], [groups[i] for i in fresh], scales, decide, classes)
        result["systems"][name] = {
            "all": {k: asdict(v) for k, v in agreement(found, everything, resamples=300).items()},
            "untouched": {k: asdict(v) for k, v in agreement(found[fresh], half, resamples=300).items()},
        }
    show(result)
    return result


def show(result: dict) -> None:
    cost = result["cost"]
    print(
        f"\nseed {result['seed']}: {cost['seconds']:.0f} s, {cost['peak_mb']:.0f} MB, {result['report_rows']} report rows"
    )
    for name, parts in result["systems"].items():
        for part, figures in parts.items():
            cells = [f"{figures[m]['value']:.3f} [{figures[m]['low']:.3f}, {figures[m]['high']:.3f}]" for m in SHOWN]
            print(f"  {name:26s} {part:10s} " + "  ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--effort", default="normal", choices=["normal", "high"])
    parser.add_argument("--teacher", type=Path, help="with --effort high: folder of a larger encoder")
    parser.add_argument("--epochs", type=int, help="passes over the labels, of each teacher where there are any")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="keep the scorer folders here")
    options = parser.parse_args()
    rows = read_rows(LABELS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"distil-{options.effort}" + ("-teacher" if options.teacher else "")
        name += f"-{options.epochs}-epochs" if options.epochs else ""
        teacher = options.teacher and {"name": options.teacher.name, "sha256": sha256_file(options.teacher / WEIGHTS)}
        before, made = read_result(name), {"labels": options.labels, "teacher": teacher}
        # Seeds of another number of labels, of another teacher or recipe, are another measurement.
        same = all(before.get(key) == value for key, value in made.items())
        done = {one["seed"]: one for one in before.get("seeds", [])} if same else {}
        for seed in map(int, options.seeds.split(",")):
            done[seed] = result = run_seed(rows, seed, options, folder)
            done = {key: one for key, one in done.items() if one.get("recipe") == result["recipe"]}
            write_result(name, {**made, "seeds": [done[key] for key in sorted(done)]})
        results = [done[key] for key in sorted(done)]
    print(f"\nmean over seeds {', '.join(str(result['seed']) for result in results)}; columns: {', '.join(SHOWN)}")
    for name in results[0]["systems"]:
        for part in ("all", "untouched"):
            means = [np.mean([r["systems"][name][part][m]["value"] for r in results]) for m in SHOWN]
            print(f"  {name:26s} {part:10s} " + "  ".join(f"{mean:.3f}" for mean in means))


if __name__ == "__main__":
    main()
