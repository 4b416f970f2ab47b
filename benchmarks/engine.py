"""What the engine itself costs an example, by stage, with a scorer that only looks at text lengths.

python benchmarks/engine.py [--examples 20000] [--shapes conversations,pairs,messages] [--runs 3] [--whole 100000,500000]

CPU time of one process in microseconds an example, the least of some runs. `lines` to `examples` are passes of their own
over the same file, each of which does what those before it do; `rate` is that and the rest up to committed files, without
the scorer; `run` is all, with hashing and cutting the input and the manifest. `--whole` runs whole jobs of these sizes
with two workers instead, for wall time and memory. `--write NAME` keeps the figures in benchmarks/results/NAME.json.
"""

import argparse
import gc
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
from common import read_rows, watch, write_result

from efficient_empathy.dialogues import plan_units, read_examples, read_unit
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job
from efficient_empathy.scorer.rating import rate_unit
from efficient_empathy.scorer.runfolder import describe_inputs, temporary_folder
from efficient_empathy.selection import PaperPolicy

POOL = "empathetic_dialogues.train.jsonl.gz"
STAGES = ("hash and cut", "lines", "JSON", "records", "examples", "rate", "run")


class LengthScorer:
    """Scores by text lengths; keeps count of the CPU time it took itself."""

    dimensions = ("sensibility", "rationality")
    digest = "lengths"

    def __init__(self) -> None:
        self.seconds = 0.0

    def score(self, examples: list) -> np.ndarray:
        """Rate examples."""
        start = time.process_time()
        response = np.array([len(e.response) for e in examples])
        context = np.array([len(e.context[-1].text) if e.context else 0 for e in examples])
        scores = np.stack([response % 97 / 9.7, context % 89 / 8.9], axis=1).astype(np.float32)
        self.seconds += time.process_time() - start
        return scores


def rows_of(shape: str) -> Iterator[dict]:
    """The data set as rows of a shape: whole conversations, or one row an example."""
    for row in read_rows(POOL):
        if shape == "conversations":
            yield row
            continue
        for turn in [i for i, t in enumerate(row["turns"]) if i and t["role"] == "listener"]:
            key = {"id": f"{row['id']}_turn:{turn}", "conv_id": row["id"], "emotion": row["emotion"]}
            if shape == "pairs":
                yield {**key, "context": row["turns"][:turn], "response": row["turns"][turn]["text"]}
            else:
                roles = {"speaker": "user", "listener": "assistant"}
                said = [{"role": roles[t["role"]], "content": t["text"]} for t in row["turns"][turn - 1 : turn + 1]]
                yield {**key, "messages": said}


def write_input(path: Path, shape: str, examples: int) -> int:
    """Write rows, all of them again and again, until they hold so many examples."""
    pool = [(orjson.dumps(row) + b"\n", _examples_in(row)) for row in rows_of(shape)]
    written = 0
    with open(path, "wb") as file:
        while written < examples:
            for line, count in pool:
                file.write(line)
                written += count
                if written >= examples:
                    break
    return written


def _examples_in(row: dict) -> int:
    turns = row.get("turns", ())
    return sum(turn["role"] == "listener" for turn in turns[1:]) if turns else 1


def cpu(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(source: Path, count: int, scratch: Path, runs: int) -> dict[str, float]:
    """Microseconds an example of each stage."""
    units = plan_units([str(source)], None)
    job = Job((str(source),), scratch / "out")
    scorer = LengthScorer()

    def hash_and_cut() -> None:
        describe_inputs([str(source)], None)
        plan_units([str(source)], None)

    def lines() -> None:
        from efficient_empathy.dialogues.blocks import read_range, split_lines

        with open(source, "rb") as file:
            for unit in units:
                for _ in split_lines(read_range(file, unit.start, unit.stop)):
                    pass

    def json_rows() -> None:
        with open(source, "rb") as file:
            for line in file:
                orjson.loads(line)

    def records() -> None:
        for unit in units:
            for _ in read_unit(unit):
                pass

    def examples() -> None:
        for unit in units:
            for _ in read_examples(unit):
                pass

    def rate() -> None:
        temporary_folder(job.out).mkdir(parents=True)
        for name in PaperPolicy().subsets:
            (job.out / name).mkdir()
        for unit in units:
            rate_unit(job, unit, scorer, PaperPolicy())

    def whole() -> None:
        run(job, scorer, PaperPolicy())

    found: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for _ in range(runs):
        works = (hash_and_cut, lines, json_rows, records, examples, rate, whole)
        for stage, work in zip(STAGES, works, strict=True):
            shutil.rmtree(job.out, ignore_errors=True)
            scorer.seconds = 0.0
            found[stage].append((cpu(work) - scorer.seconds) / count * 1e6)
    return {stage: min(times) for stage, times in found.items()}


def measure_whole(shape: str, sizes: list[int], scratch: Path) -> list[dict]:
    """Whole jobs with two workers, each in a process of its own: seconds and the largest memory of all processes."""
    found = []
    for size in sizes:
        source, out = scratch / f"{shape}-{size}.jsonl", scratch / f"{shape}-{size}"
        count = write_input(source, shape, size)
        cost = watch([sys.executable, __file__, "--one", str(source), str(out)])
        found.append({"examples": count, "seconds": cost.seconds, "peak_mb": cost.peak_mb})
        print(f"{shape}: {count:,} examples, 2 workers: {cost.seconds:.1f} s, {cost.peak_mb:.0f} MB")
        source.unlink()
        shutil.rmtree(out)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--shapes", default="conversations,pairs,messages")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--whole", metavar="SIZES", help="whole jobs of so many examples, e.g. 100000,500000")
    parser.add_argument("--one", nargs=2, metavar=("SOURCE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run(Job((options.one[0],), Path(options.one[1]), workers=2), LengthScorer(), PaperPolicy())
        return
    results: dict[str, dict | list] = {}
    if not options.whole:
        print(f"{'us an example':16}" + "".join(f"{stage:>14}" for stage in STAGES) + f"{'peak MB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes.split(","):
            if options.whole:
                sizes = [int(size) for size in options.whole.split(",")]
                results[shape] = measure_whole(shape, sizes, Path(folder))
                continue
            source = Path(folder) / f"{shape}.jsonl"
            count = write_input(source, shape, options.examples)
            stages = measure(source, count, Path(folder), options.runs)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
            bytes_an_example = os.path.getsize(source) / count
            results[shape] = {"examples": count, "bytes": bytes_an_example, "us": stages, "peak_mb": peak}
            print(f"{shape:16}" + "".join(f"{stages[stage]:14.1f}" for stage in STAGES) + f"{peak:10.0f}")
    if options.write:
        write_result(options.write, results)


if __name__ == "__main__":
    main()
