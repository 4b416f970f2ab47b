"""How fast a scorer folder rates: workers, threads, padding, equal bytes, memory.

python benchmarks/throughput.py --scorer SCORER-FOLDER [--parts workers,padding,bytes] [--examples 8000] [--runs 3]

``memory`` is a part of its own: whole runs over --memory-examples (1,000,000 and 5,000,000 by default) take their time.
The parts are put into benchmarks/results/throughput.json beside those of earlier runs.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
from common import DATA, read_result, read_rows, run_watched, write_result
from filtering import POOL, digest

from efficient_empathy.dialogues import read_records, record_examples
from efficient_empathy.scorer import Scorer
from efficient_empathy.scorer.batching import padding_share
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job
from efficient_empathy.selection import PaperPolicy

PLANS = ((1, 1), (1, 2), (2, 1), (2, 2))
"""Workers and threads of each."""


def is_listener(turns: list[dict], index: int) -> bool:
    return index > 0 and turns[index]["role"] == "listener"


def write_input(path: Path, examples: int) -> int:
    """Write EmpatheticDialogues conversations, the data set as often as needed, until they hold so many examples."""
    rows = read_rows(POOL)
    lines = [(json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows]
    counts = [sum(is_listener(row["turns"], index) for index in range(len(row["turns"]))) for row in rows]
    written = 0
    with open(path, "wb") as file:
        while written < examples:
            for line, count in zip(lines, counts, strict=True):
                file.write(line)
                written += count
                if written >= examples:
                    break
    return written


def one_run(scorer: str, source: Path, out: Path, workers: int, threads: int, *options: str) -> dict:
    """One whole `ee-cli filter`, with what it says of itself."""
    words = ["filter", "--scorer", scorer, str(source), "-o", str(out), "--progress", "none"]
    cost = run_watched([*words, "--workers", str(workers), "--threads", str(threads), *options])
    facts = json.loads((out / "run.json").read_text())
    return {
        "workers": facts["workers"],
        "threads": facts["threads"],
        "seconds": cost.seconds,
        "rating_seconds": facts["seconds"],
        "peak_mb": cost.peak_mb,
        "examples_per_second": facts["examples_per_second"],
        "padding_share": facts["padding_share"],
        "sha256": digest(out),
    }


def measure_workers(scorer: str, examples: int, runs: int, scratch: Path) -> dict:
    """Each plan in turn, several times, on the same rows."""
    source = scratch / "input.jsonl"
    count = write_input(source, examples)
    found: dict[tuple[int, int], list[dict]] = {plan: [] for plan in PLANS}
    for number in range(runs):
        for workers, threads in PLANS:
            out = scratch / f"{number}-{workers}-{threads}"
            result = one_run(scorer, source, out, workers, threads, "--tier", "transformer")
            found[workers, threads].append(result)
            print(
                f"run {number}: {workers} x {threads}: {result['examples_per_second']:.0f}/s, {result['peak_mb']:.0f} MB"
            )
    speeds = {plan: statistics.median(r["examples_per_second"] for r in results) for plan, results in found.items()}
    print(f"{'workers x threads':20}{'examples/s':>12}{'of 1 x 1':>10}{'peak MB':>10}")
    for plan, speed in speeds.items():
        peak = max(r["peak_mb"] for r in found[plan])
        print(f"{f'{plan[0]} x {plan[1]}':20}{speed:12.0f}{speed / speeds[1, 1]:10.2f}{peak:10.0f}")
    # Ratios within a round: what slows the machine for a while slows all plans of that round.
    ratios = [b["rating_seconds"] / a["rating_seconds"] for a, b in zip(found[2, 1], found[1, 1], strict=True)]
    return {
        "examples": count,
        "speeds": {f"{a}x{b}": speed for (a, b), speed in speeds.items()},
        "two_workers_to_one": statistics.median(ratios),
        "same_bytes": len({r["sha256"] for results in found.values() for r in results}) == 1,
        "runs": [r for results in found.values() for r in results],
    }


def measure_padding(scorer: str, examples: int) -> dict:
    """Padding of pools of the size that the engine scores at a time, on real lengths."""
    loaded = Scorer.load(scorer, device="cpu")
    encoder = loaded._tiers["transformer"]._get_encoder()
    pool = [e for record in read_records([str(DATA / POOL)], on_reject=lambda _: None) for e in record_examples(record)]
    chunk = Job(("x",), Path("x")).chunk
    pool = pool[: max(chunk, examples)]
    lengths = [encoder.encode(pool[start : start + chunk]).lengths for start in range(0, len(pool), chunk)]
    real = sum(int(part.sum()) for part in lengths)
    shares = {}
    for budget in (256, 512, 1024, 2048, 4096, 8192):
        computed = sum(float(part.sum()) / (1 - padding_share(part, budget)) for part in lengths)
        shares[str(budget)] = 1 - real / computed
    unsorted = sum(
        len(rows) * int(rows.max()) for part in lengths for rows in np.array_split(part, len(part) // 32 or 1)
    )
    result = {"examples": len(pool), "tokens_an_example": real / len(pool), "by_budget": shares}
    result["batches_of_32_in_input_order"] = 1 - real / unsorted
    for budget, share in shares.items():
        print(f"padding with {budget} tokens a batch: {100 * share:.1f} %")
    print(f"padding of batches of 32 in input order: {100 * result['batches_of_32_in_input_order']:.1f} %")
    return result


def measure_bytes(scorer: str, scratch: Path) -> dict:
    """The same rows with 1, 2 and 3 workers, in many small units."""
    source = scratch / "bytes.jsonl"
    count = write_input(source, 1500)
    hashes = {}
    for workers in (1, 2, 3):
        job = Job((str(source),), scratch / f"bytes-{workers}", unit_bytes=60_000, workers=workers)
        run(job, Scorer.load(scorer, tier="transformer"), PaperPolicy())
        hashes[workers] = digest(job.out)
    same = len(set(hashes.values())) == 1
    print(f"{count} examples with 1, 2 and 3 workers: same bytes: {same}")
    return {"examples": count, "same_bytes": same}


def measure_memory(scorer: str, sizes: list[int], options: list[str], scratch: Path) -> dict:
    """Peak memory of all processes of a run with two workers, at several sizes."""
    results = []
    for examples in sizes:
        source, out = scratch / f"{examples}.jsonl", scratch / f"out-{examples}"
        count = write_input(source, examples)
        result = one_run(scorer, source, out, 2, 1, *options)
        results.append({"examples": count, **result})
        print(f"{count:,} examples: {result['peak_mb']:.0f} MB, {result['seconds']:.0f} s")
        source.unlink()
        shutil.rmtree(out)
    peaks = [result["peak_mb"] for result in results]
    return {"runs": results, "largest_to_smallest": max(peaks) / min(peaks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--parts", default="padding,bytes,workers")
    parser.add_argument("--examples", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory-examples", default="1000000,5000000")
    parser.add_argument("--filter-options", default="", help="more options for the runs of the memory part")
    options = parser.parse_args()
    parts = options.parts.split(",")
    results = read_result("throughput")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if "padding" in parts:
            results["padding"] = measure_padding(options.scorer, options.examples)
        if "bytes" in parts:
            results["bytes"] = measure_bytes(options.scorer, scratch)
        if "workers" in parts:
            results["workers"] = measure_workers(options.scorer, options.examples, options.runs, scratch)
        if "memory" in parts:
            sizes = [int(size) for size in options.memory_examples.split(",")]
            results["memory"] = measure_memory(options.scorer, sizes, options.filter_options.split(), scratch)
    write_result("throughput", results)


if __name__ == "__main__":
    main()
