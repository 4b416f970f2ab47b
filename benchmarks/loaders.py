"""The scorer inside a DataLoader and a `datasets` map, against `Scorer.score` on the same rows: CPU time, in turns.

python benchmarks/loaders.py --scorer SCORER-FOLDER [--examples 5734] [--slice 500] [--parts turns,padding]

``turns``: the ways take turns slice by slice, and each slice begins with another way, so that what slows the machine for
longer than some seconds weighs on all of them alike. `Scorer.score` takes two turns: their ratio is what noise does.
Beside that, each way's CPU time against the part of it that it spent within `Scorer.score`: what a way adds, without the noise.
"""

import argparse
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
from common import read_result, read_rows, tree_of, write_result
from datasets import Dataset, disable_caching, disable_progress_bars
from torch.utils.data import DataLoader

from efficient_empathy import Scorer
from efficient_empathy.scorer.adapters.columns import RowMap
from efficient_empathy.scorer.adapters.rows import row_examples
from efficient_empathy.scorer.adapters.torch_data import ScoredRows, Sharding
from efficient_empathy.scorer.batching import padding_share
from efficient_empathy.scorer.tiers import _MAX_BATCH_TOKENS

POOL = "empathetic_dialogues.valid.jsonl.gz"
BASE = "Scorer.score"


def cpu_seconds() -> float:
    """CPU time so far of this process and of all that it has running."""
    ticks = 0
    for pid in tree_of(os.getpid()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def timed(work) -> tuple[float, np.ndarray]:
    """CPU seconds, and what came out."""
    start = cpu_seconds()
    found = np.array(work())
    return cpu_seconds() - start, np.round(found, 4)


def through_loader(loader) -> list[list[float]]:
    """Scores of the rows as the loader gives them, by their place."""
    rows = [row for batch in loader for row in batch]
    rows.sort(key=lambda row: (row["place"], row["ee_turn"]))
    return [[row["ee_sensibility"], row["ee_rationality"]] for row in rows]


def through_slice(loader, current, number: int) -> list[list[float]]:
    """Scores of one slice as the loader gives them."""
    current.value = number
    return through_loader(loader)


def through_map(dataset, function) -> list[list[float]]:
    """Scores of a mapped data set."""
    found = dataset.map(function, batched=True, keep_in_memory=True, load_from_cache_file=False)
    return list(zip(found["ee_sensibility"], found["ee_rationality"], strict=True))


def padding(scorer: Scorer, examples: list, sizes: list[int]) -> dict[str, float]:
    """Share of padding when so many examples are scored at a time."""
    lengths = scorer._tiers[scorer.tier]._get_encoder().encode(examples).lengths
    found = {}
    for size in sizes:
        parts = [lengths[at : at + size] for at in range(0, len(lengths), size)]
        computed = sum(part.sum() / (1 - padding_share(part, _MAX_BATCH_TOKENS)) for part in parts)
        found[str(size)] = float(1 - lengths.sum() / computed)
    return found


class Metered:
    """A scorer that adds up the CPU seconds within `score`, in whatever process that is."""

    spent = multiprocessing.Value("d", 0.0)

    def __init__(self, scorer: Scorer):
        self._scorer, self.dimensions, self.digest = scorer, scorer.dimensions, scorer.digest

    def score(self, examples):
        """Scores of some examples."""
        start = time.process_time()
        found = self._scorer.score(examples)
        self.spent.value += time.process_time() - start
        return found


def make_ways(scorer, slices: list[list[dict]]) -> dict:
    """Each way of scoring the rows of a slice, by its number; workers are there and have scored some rows."""
    datasets = [Dataset.from_list(rows) for rows in slices]
    current = multiprocessing.Value("i", 0)  # which a worker that lives on sees as well
    ways = {}
    for workers in (0, 1):
        data = ScoredRows(lambda: slices[current.value], scorer, sharding=Sharding(chunk=1000))
        loader = DataLoader(data, batch_size=32, collate_fn=list, num_workers=workers, persistent_workers=workers > 0)
        through_loader(loader)
        ways[f"DataLoader, {workers} workers"] = partial(through_slice, loader, current)
    function = RowMap(scorer)
    ways["datasets.map"] = lambda number: through_map(datasets[number], function)
    return ways


def measure_turns(scorer: Scorer, slices: list[list[dict]]) -> dict:
    """CPU time and scores of each way, slice by slice in turns."""
    examples = [[example for row in rows for example in row_examples(row)] for rows in slices]
    metered = Metered(scorer)
    score = lambda number: metered.score(examples[number]).astype(np.float64)  # noqa: E731
    ways = {BASE: score, f"{BASE}, again": score, **make_ways(metered, slices)}
    names = list(ways)
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    scoring: dict[str, list[float]] = {name: [] for name in ways}
    differences = dict.fromkeys(ways, 0.0)
    for number in range(len(slices)):
        first = number % len(names)
        scores = {}
        for name in names[first:] + names[:first]:
            Metered.spent.value = 0.0
            seconds, scores[name] = timed(lambda name=name, number=number: ways[name](number))
            cpu[name].append(seconds)
            scoring[name].append(Metered.spent.value)
        for name, found in scores.items():
            differences[name] = max(differences[name], float(np.abs(found - scores[BASE]).max()))
        print(f"slice {number}: " + ", ".join(f"{cpu[name][-1]:.2f}" for name in names), flush=True)
    result = {}
    for name in names:
        result[name] = {
            "cpu_seconds": cpu[name],
            "of_that_scoring": scoring[name],
            "cpu_against_score": ratio(cpu[name], cpu[BASE]),
            "cpu_against_own_scoring": ratio(cpu[name], scoring[name]),
            "largest_difference": differences[name],
        }
        print(f"{name}: {shown(result[name]['cpu_against_score'])} x the CPU time of {BASE}, ", end="")
        print(f"{shown(result[name]['cpu_against_own_scoring'])} x that within its own scoring, ", end="")
        print(f"scores differ by {differences[name]:g}")
    counts = {"examples": sum(map(len, examples)), "rows": sum(map(len, slices)), "slices": len(slices)}
    return {**counts, "precision": scorer.precision, "ways": result}


def ratio(mine: list[float], base: list[float], resamples: int = 10_000) -> dict[str, float]:
    """Ratio of the two sums, and the 95 % interval of a bootstrap over the slices."""
    pairs = np.array([mine, base])
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(resamples, pairs.shape[1]))
    sums = pairs[:, drawn].sum(axis=2)
    low, high = np.percentile(sums[0] / sums[1], [2.5, 97.5])
    return {"value": float(sum(mine) / sum(base)), "low": float(low), "high": float(high)}


def shown(found: dict[str, float]) -> str:
    """A ratio with its interval."""
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def cut(rows: list[dict], size: int) -> list[list[dict]]:
    """Slices of whole rows that hold about so many examples each."""
    slices: list[list[dict]] = [[]]
    held = 0
    for row in rows:
        if held >= size:
            slices.append([])
            held = 0
        slices[-1].append(row)
        held += len(row_examples(row))
    return slices


def take(pool: list[dict], count: int) -> list[dict]:
    """The first rows that hold so many examples."""
    rows, held = [], 0
    for row in pool:
        if held >= count:
            break
        rows.append({"id": row["id"], "turns": row["turns"], "place": len(rows)})
        held += len(row_examples(row))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--parts", default="turns,padding")
    parser.add_argument("--examples", type=int, default=5734)
    parser.add_argument("--slice", type=int, default=500, help="examples that a way scores in a turn")
    options = parser.parse_args()
    parts = options.parts.split(",")
    disable_progress_bars()
    disable_caching()
    pool = [row for row in read_rows(POOL) if any(turn["role"] == "listener" for turn in row["turns"][1:])]
    scorer = Scorer.load(options.scorer, threads=1)
    results = read_result("loaders")
    everything = [example for row in pool for example in row_examples(row)]
    if "turns" in parts:
        results["turns"] = measure_turns(scorer, cut(take(pool, options.examples), options.slice))
    if "padding" in parts:
        results["padding_by_chunk"] = padding(scorer, everything, [250, 500, 1000, 2000, len(everything)])
        print("padding by examples at a time:", results["padding_by_chunk"])
    write_result("loaders", results)


if __name__ == "__main__":
    main()
