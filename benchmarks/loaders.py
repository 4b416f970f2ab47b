"""The scorer inside a DataLoader and a `datasets` map, against `Scorer.score` on the same rows: CPU time, in turns.

python benchmarks/loaders.py --scorer SCORER-FOLDER [--examples 5734] [--slice 250] [--rounds 3] [--parts turns,free,padding]

``turns``: the ways take turns slice by slice, and each slice begins with another way, so that what slows the machine for
longer than some seconds weighs on all of them alike. `Scorer.score` takes two turns: their ratio is what noise does.
"""

import argparse
import multiprocessing
import os
import statistics
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


def timed(work) -> tuple[float, float, np.ndarray]:
    """CPU seconds, wall seconds, and what came out."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    found = np.array(work())
    return cpu_seconds() - cpu, time.perf_counter() - wall, np.round(found, 4)


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


class Free:
    """A scorer that costs nothing: what is left is the way there and back."""

    dimensions = ("sensibility", "rationality")
    digest = "free"

    def score(self, examples):
        """Nothing for everyone."""
        return np.zeros((len(examples), 2), np.float32)


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


def measure_free(rows: list[dict], count: int, rounds: int) -> dict:
    """Microseconds of CPU an example that the ways take beside the scoring."""
    found = {}
    for name, work in make_ways(Free(), [rows]).items():
        seconds = [timed(lambda work=work: work(0))[0] for _ in range(rounds)]
        found[name] = statistics.median(seconds) / count * 1e6
        print(f"{name}: {found[name]:.0f} us an example beside the scoring")
    return found


def measure_turns(scorer: Scorer, slices: list[list[dict]]) -> dict:
    """CPU time and scores of each way, slice by slice in turns."""
    examples = [[example for row in rows for example in row_examples(row)] for rows in slices]
    score = lambda number: scorer.score(examples[number]).astype(np.float64)  # noqa: E731
    ways = {BASE: score, f"{BASE}, again": score, **make_ways(scorer, slices)}
    names = list(ways)
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    differences = dict.fromkeys(ways, 0.0)
    for number in range(len(slices)):
        first = number % len(names)
        scores = {}
        for name in names[first:] + names[:first]:
            seconds, lasted, scores[name] = timed(lambda name=name, number=number: ways[name](number))
            cpu[name].append(seconds)
            wall[name].append(lasted)
        for name, found in scores.items():
            differences[name] = max(differences[name], float(np.abs(found - scores[BASE]).max()))
        print(f"slice {number}: " + ", ".join(f"{cpu[name][-1]:.2f}" for name in names), flush=True)
    result = {}
    for name in names:
        ratio, low, high = interval(cpu[name], cpu[BASE])
        result[name] = {
            "cpu_seconds": cpu[name],
            "seconds": wall[name],
            "cpu_against_score": ratio,
            "interval": [low, high],
            "largest_difference": differences[name],
        }
        print(f"{name}: {ratio:.3f} [{low:.3f}, {high:.3f}] x the CPU time, scores differ by {differences[name]:g}")
    counts = {"examples": sum(map(len, examples)), "rows": sum(map(len, slices)), "slices": len(slices)}
    return {**counts, "precision": scorer.precision, "ways": result}


def interval(mine: list[float], base: list[float], resamples: int = 10_000) -> tuple[float, float, float]:
    """Ratio of the two sums, and the 95 % interval of a bootstrap over the slices."""
    pairs = np.array([mine, base])
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(resamples, pairs.shape[1]))
    sums = pairs[:, drawn].sum(axis=2)
    low, high = np.percentile(sums[0] / sums[1], [2.5, 97.5])
    return float(sum(mine) / sum(base)), float(low), float(high)


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


def take(pool: list[dict], count: int) -> tuple[list[dict], list]:
    """The first rows that hold so many examples, and these."""
    rows, examples = [], []
    for row in pool:
        if len(examples) >= count:
            break
        rows.append({"id": row["id"], "turns": row["turns"], "place": len(rows)})
        examples += row_examples(row)
    return rows, examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--parts", default="turns,free,padding")
    parser.add_argument("--examples", type=int, default=5734)
    parser.add_argument("--slice", type=int, default=250, help="examples that a way scores in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    parts = options.parts.split(",")
    disable_progress_bars()
    disable_caching()
    pool = [row for row in read_rows(POOL) if any(turn["role"] == "listener" for turn in row["turns"][1:])]
    scorer = Scorer.load(options.scorer, threads=1)
    results = read_result("loaders")
    everything = [example for row in pool for example in row_examples(row)]
    if "turns" in parts:
        results["turns"] = measure_turns(scorer, cut(take(pool, options.examples)[0], options.slice))
        results.pop("rounds", None)
    if "free" in parts:
        rows, examples = take(pool, len(everything))
        results["microseconds_beside_scoring"] = measure_free(rows, len(examples), options.rounds)
    if "padding" in parts:
        results["padding_by_chunk"] = padding(scorer, everything, [250, 500, 1000, 2000, len(everything)])
        print("padding by examples at a time:", results["padding_by_chunk"])
    write_result("loaders", results)


if __name__ == "__main__":
    main()
