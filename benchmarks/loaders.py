"""The scorer inside a DataLoader and a `datasets` map, against `Scorer.score` on the same rows: CPU time, in turns.

python benchmarks/loaders.py --scorer SCORER-FOLDER [--examples 2000] [--rounds 3] [--parts rounds,free,padding]
"""

import argparse
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


def make_ways(scorer, rows: list[dict]) -> dict:
    """Each way of scoring some rows, ready to be called; workers are there and have scored some rows."""
    dataset = Dataset.from_list(rows)
    ways = {}
    for workers in (0, 1):
        data = ScoredRows(rows, scorer, sharding=Sharding(chunk=1000))
        loader = DataLoader(data, batch_size=32, collate_fn=list, num_workers=workers, persistent_workers=workers > 0)
        next(iter(loader))
        ways[f"DataLoader, {workers} workers"] = partial(through_loader, loader)
    ways["datasets.map"] = lambda: through_map(dataset, RowMap(scorer))
    return ways


def measure_free(rows: list[dict], count: int, rounds: int) -> dict:
    """Microseconds of CPU an example that the ways take beside the scoring."""
    found = {}
    for name, work in make_ways(Free(), rows).items():
        seconds = [timed(work)[0] for _ in range(rounds)]
        found[name] = statistics.median(seconds) / count * 1e6
        print(f"{name}: {found[name]:.0f} us an example beside the scoring")
    return found


def measure_rounds(scorer: Scorer, rows: list[dict], examples: list, rounds: int) -> dict:
    """CPU time and scores of each way, in turns."""
    scorer.score(examples[:50])
    ways = {"Scorer.score": lambda: scorer.score(examples).astype(np.float64), **make_ways(scorer, rows)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    differences = dict.fromkeys(ways, 0.0)
    for number in range(rounds):
        expected = None
        for name, work in ways.items():
            cpu, wall, found = timed(work)
            expected = found if expected is None else expected
            differences[name] = max(differences[name], float(np.abs(found - expected).max()))
            times[name].append((cpu, wall))
            print(f"round {number}, {name}: {cpu:.2f} s of CPU, {wall:.2f} s")
    result = {}
    for name, found in times.items():
        ratios = [mine[0] / base[0] for mine, base in zip(found, times["Scorer.score"], strict=True)]
        result[name] = {
            "cpu_seconds": [cpu for cpu, _ in found],
            "seconds": [wall for _, wall in found],
            "cpu_against_score": statistics.median(ratios),
            "largest_difference": differences[name],
        }
        print(f"{name}: {statistics.median(ratios):.3f} x the CPU time, scores differ by {differences[name]:g} at most")
    return {"examples": len(examples), "rows": len(rows), "precision": scorer.precision, "ways": result}


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
    parser.add_argument("--parts", default="rounds,free,padding")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    parts = options.parts.split(",")
    disable_progress_bars()
    disable_caching()
    pool = [row for row in read_rows(POOL) if any(turn["role"] == "listener" for turn in row["turns"][1:])]
    scorer = Scorer.load(options.scorer, threads=1)
    results = read_result("loaders")
    everything = [example for row in pool for example in row_examples(row)]
    if "rounds" in parts:
        results["rounds"] = measure_rounds(scorer, *take(pool, options.examples), options.rounds)
    if "free" in parts:
        rows, examples = take(pool, len(everything))
        results["microseconds_beside_scoring"] = measure_free(rows, len(examples), options.rounds)
    if "padding" in parts:
        results["padding_by_chunk"] = padding(scorer, everything, [250, 500, 1000, 2000, len(everything)])
        print("padding by examples at a time:", results["padding_by_chunk"])
    write_result("loaders", results)


if __name__ == "__main__":
    main()
