"""The fast tier and the cascade: what they cost and what they lose, on rows never trained or calibrated on.

    python benchmarks/tiers.py --keep work/ [--seeds 0,1,2] [--parts quality,million]

quality  1,000 labels of the paper's judge, the train conversations as pool, ``ee-cli distill``; then all other judged rows:
         macro-F1 of each tier, the cascade at several promises (speed and F1 beside the transformer's, in turns, and
         whether the promise was kept), and the whole curve. Intervals: bootstrap over conversations.
million  ``ee-cli filter --tier fast`` of so many examples of EmpatheticDialogues, JSONL to three subsets.

Scorer folders and the input of a million are kept in ``--keep``: a run that was stopped goes on.
"""

import argparse
import json
import shutil
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from common import DATA, draw_conversations, read_result, read_rows, run_command, write_jsonl, write_result
from distil import LABELS, POOL
from throughput import one_run, write_input

from efficient_empathy import Scorer
from efficient_empathy.distill.labels import load_labelled
from efficient_empathy.distill.quality import Judged, agreement
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.scorer.cascade import Doubts, Pairs, curve, plan_cascade
from efficient_empathy.selection import PaperPolicy

PROMISES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
POLICY = PaperPolicy()


def scorer_of(options: argparse.Namespace, seed: int) -> tuple[Path, Path, dict | None]:
    """Scorer folder and report rows of a seed, distilled unless they are there."""
    taken, rest = draw_conversations(read_rows(LABELS), 1000, seed)
    labels = write_jsonl(options.keep / f"labels-{seed}.jsonl", taken)
    report = write_jsonl(options.keep / f"rest-{seed}.jsonl", rest)
    out, cost_file = options.keep / f"scorer-{seed}", options.keep / f"cost-{seed}.json"
    if not out.is_dir():
        arguments = ["distill", "--labels", str(labels), "--dialogues", str(DATA / POOL), "--seed", str(seed)]
        cost_file.write_text(json.dumps(asdict(run_command([*arguments, "-o", str(out)]))))
    return out, report, json.loads(cost_file.read_text()) if cost_file.is_file() else None


class Rows:
    """Report rows with the judge's decisions, and differences of macro-F1 with intervals."""

    def __init__(self, scores: np.ndarray, groups: list[str], dimensions: tuple[str, ...], resamples: int):
        self.dimensions, self.resamples = dimensions, resamples
        self.expected = POLICY.decide(scores, dimensions)
        _, self.group = np.unique(groups, return_inverse=True)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Subsets of scores as they are written."""
        return POLICY.decide(np.round(np.asarray(scores, np.float64), 4), self.dimensions)

    def macro_f1(self, decided: np.ndarray) -> float:
        """Against the judge's subsets."""
        return float(_macro_f1(self._confusion(decided).sum(0)))

    def loss(self, decided: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        """How much macro-F1 a decision loses against another, with a 95 % interval over conversations."""
        here, there = self._confusion(decided), self._confusion(reference)
        draw = np.random.default_rng(0)
        found = []
        for _ in range(self.resamples):
            weights = np.bincount(draw.integers(0, len(here), len(here)), minlength=len(here))
            found.append(_macro_f1(np.tensordot(weights, there, 1)) - _macro_f1(np.tensordot(weights, here, 1)))
        low, high = np.quantile(found, [0.025, 0.975])
        value = _macro_f1(there.sum(0)) - _macro_f1(here.sum(0))
        return {"value": float(value), "low": float(low), "high": float(high)}

    def share(self, differs: np.ndarray) -> dict[str, float]:
        """A share of rows with a 95 % interval over conversations."""
        counts = np.stack([np.bincount(self.group, differs), np.bincount(self.group)])
        draw = np.random.default_rng(0)
        picks = draw.integers(0, counts.shape[1], (self.resamples, counts.shape[1]))
        found = counts[0][picks].sum(1) / counts[1][picks].sum(1)
        low, high = np.quantile(found, [0.025, 0.975])
        return {"value": float(differs.mean()), "low": float(low), "high": float(high)}

    def _confusion(self, decided: np.ndarray) -> np.ndarray:
        """(conversations, 3, 3), the judge's subset by the decided one."""
        classes = len(POLICY.subsets)
        found = np.zeros((self.group.max() + 1, classes, classes))
        np.add.at(found, (self.group, self.expected, decided), 1)
        return found


def _macro_f1(confusion: np.ndarray) -> float:
    hits = np.diag(confusion)
    return float(np.mean(2 * hits / np.maximum(confusion.sum(0) + confusion.sum(1), 1)))


def quality(options: argparse.Namespace) -> dict:
    found = {}
    for seed in map(int, options.seeds.split(",")):
        found[seed] = quality_of(options, seed)
        before = read_result("tiers")
        write_result("tiers", {**before, "quality": {**before.get("quality", {}), str(seed): found[seed]}})
    kept = [one["fast"]["share_of_f1"] for one in found.values()]
    print(f"\nfast tier's macro-F1 over the transformer's, by seed: {', '.join(f'{share:.1%}' for share in kept)}")
    return {str(seed): one for seed, one in found.items()}


def quality_of(options: argparse.Namespace, seed: int) -> dict:
    folder, report, cost = scorer_of(options, seed)
    test = load_labelled(report, None, Rubric.load())
    groups = [example.dialogue_id for example in test.examples]
    tiers = {name: Scorer.load(folder, device="cpu", tier=name) for name in ("transformer", "fast")}
    scores = {name: scorer.score(test.examples) for name, scorer in tiers.items()}
    dimensions = tiers["fast"].dimensions
    rows = Rows(test.scores, groups, dimensions, options.resamples)
    decided = {name: rows.decide(found) for name, found in scores.items()}
    judged = Judged(test.scores, groups, tiers["fast"].spec.dimensions, lambda s: POLICY.decide(s, dimensions), 3)
    figures = {
        name: {key: asdict(figure) for key, figure in agreement(found, judged, resamples=300).items()}
        for name, found in scores.items()
    }
    f1 = {name: rows.macro_f1(found) for name, found in decided.items()}
    result: dict = {
        "rows": len(groups),
        "cost": cost,
        "precision": tiers["transformer"].precision,
        "parity": tiers["fast"].spec.parity,
        "agreement": figures,
        "fast": {
            "macro_f1": f1["fast"],
            "share_of_f1": f1["fast"] / f1["transformer"],
            "loss": rows.loss(decided["fast"], decided["transformer"]),
            "flips": rows.share(decided["fast"] != decided["transformer"]),
        },
        "transformer": {"macro_f1": f1["transformer"]},
        "cascade": cascades(options, folder, test.examples, rows, scores, tiers["transformer"]),
    }
    result["curve"] = whole_curve(folder, scores, rows, decided)
    show(seed, result)
    return result


def cascades(options, folder, examples, rows: Rows, scores: dict, transformer: Scorer) -> list[dict]:
    """Each promise: speed beside the transformer's, in turns on the same rows; flips and loss of macro-F1."""
    decided = {name: rows.decide(found) for name, found in scores.items()}
    scorers = {p: Scorer.load(folder, device="cpu", tier="cascade", policy=POLICY, max_flips=p) for p in PROMISES}
    seconds: dict = {key: [] for key in ("transformer", *scorers)}
    timed = examples[: options.timed]
    for _ in range(options.rounds):
        for key, scorer in (("transformer", transformer), *scorers.items()):
            begin = time.perf_counter()
            scorer.score(timed)
            seconds[key].append(time.perf_counter() - begin)
    found = []
    for promise, scorer in scorers.items():
        # What the cascade gives, from the scores of both tiers: no row is rated again.
        by = _unsure(scorer, scores["fast"])
        own = np.where(by, decided["transformer"], decided["fast"])
        ratios = [a / b for a, b in zip(seconds["transformer"], seconds[promise], strict=True)]
        found.append(
            {
                "max_flips": promise,
                "tier": scorer.tier,
                "fast_share": float(1 - by.mean()),
                "flips": rows.share(own != decided["transformer"]),
                "loss": rows.loss(own, decided["transformer"]),
                "speed": statistics.median(ratios),
                "speeds": ratios,
            }
        )
    return found


def _unsure(scorer: Scorer, fast: np.ndarray) -> np.ndarray:
    """Which rows a loaded scorer leaves to the transformer."""
    if scorer.cascade is None:
        return np.full(len(fast), scorer.tier == "transformer")
    pairs = Pairs.read(scorer.folder / "cascade.json")
    return Doubts(pairs, POLICY, scorer.dimensions).of(fast) > scorer.cascade.limit


def whole_curve(folder: Path, scores: dict, rows: Rows, decided: dict) -> list[dict]:
    """Each limit that the calibration rows give: share, flips there, flips and macro-F1 here."""
    pairs = Pairs.read(folder / "cascade.json")
    doubts = Doubts(pairs, POLICY, rows.dimensions).of(scores["fast"])
    points = []
    for point in curve(pairs, POLICY, rows.dimensions):
        taken = doubts <= point.limit
        mixed = np.where(taken, decided["fast"], decided["transformer"])
        here = {"fast_share_here": float(taken.mean()), "flips_here": float((mixed != decided["transformer"]).mean())}
        points.append({**asdict(point), **here, "macro_f1_here": rows.macro_f1(mixed)})
    assert plan_cascade(pairs, POLICY, rows.dimensions, 0.05).flips_high <= 0.05
    return points


def show(seed: int, result: dict) -> None:
    fast, f1 = result["fast"], result["transformer"]["macro_f1"]
    print(f"\nseed {seed}, {result['rows']} rows: macro-F1 {f1:.3f} transformer ({result['precision']}), ", end="")
    print(
        f"{fast['macro_f1']:.3f} fast ({fast['share_of_f1']:.1%}); flips of the fast tier {fast['flips']['value']:.1%}"
    )
    print("  promise  fast share  flips [95 %]            F1 loss, points [95 %]   times the transformer's speed")
    for one in result["cascade"]:
        flips, loss = one["flips"], one["loss"]
        print(f"  {one['max_flips']:7.1%}  {one['fast_share']:10.1%}  ", end="")
        print(
            f"{flips['value']:5.1%} [{flips['low']:5.1%}, {flips['high']:5.1%}]"
            f"     {100 * loss['value']:+5.2f} [{100 * loss['low']:+5.2f}, {100 * loss['high']:+5.2f}]   {one['speed']:.1f}"
        )
    for point in result["curve"]:
        print(
            f"    limit {point['limit']:.3f}: share {point['fast_share']:.3f} → {point['fast_share_here']:.3f}, flips "
            f"{point['flips']:.3f} → {point['flips_here']:.3f}, macro-F1 {point['macro_f1_here']:.3f}"
        )


def million(options: argparse.Namespace) -> dict:
    folder, _, _ = scorer_of(options, int(options.seeds.split(",")[0]))
    source = options.keep / f"input-{options.examples}.jsonl"
    if not source.is_file():
        write_input(source.with_suffix(".part"), options.examples)
        source.with_suffix(".part").rename(source)
    runs = []
    for _ in range(options.runs):
        out = options.keep / "out-million"
        shutil.rmtree(out, ignore_errors=True)
        runs.append(one_run(str(folder), source, out, 2, 1, "--tier", "fast"))
        print(f"{options.examples:,} examples: {runs[-1]['seconds']:.1f} s, {runs[-1]['peak_mb']:.0f} MB")
    shutil.rmtree(out, ignore_errors=True)
    return {"examples": options.examples, "bytes": source.stat().st_size, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--parts", default="quality,million")
    parser.add_argument("--timed", type=int, default=1500, help="report rows that the tiers are timed on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    for part in options.parts.split(","):
        found = {"quality": quality, "million": million}[part](options)
        before = read_result("tiers")
        write_result("tiers", {**before, part: {**(before.get(part, {}) if part == "quality" else {}), **found}})


if __name__ == "__main__":
    main()
