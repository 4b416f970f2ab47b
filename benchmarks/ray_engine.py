"""How fast ``--engine ray`` with two actors is beside the local engine with two workers, on this machine, same bytes.

python benchmarks/ray_engine.py --scorer SCORER-FOLDER [--examples 200000] [--tier transformer] [--runs 1]

Whole commands in turns, local first in every other run. A Ray of its own is started and ended within each command; ``speed_ratio``
is of the rating time that run.json tells, which includes that start, and ``whole_ratio`` of the commands' whole time, both over all
runs together. The result goes to benchmarks/results/ray_engine.json, beside those of other tiers and numbers.
"""

import argparse
import json
import tempfile
from pathlib import Path

from common import read_result, run_command, write_result
from filtering import digest
from throughput import write_input

from efficient_empathy.environment import usable_cores

ENGINES = {"local": ["--engine", "local"], "ray": ["--engine", "ray", "--address", "local"]}


def one_run(scorer: str, tier: str, source: Path, out: Path, engine: str) -> dict:
    """One whole `ee-cli filter`, with what it says of itself."""
    words = ["filter", "--scorer", scorer, str(source), "-o", str(out), "--progress", "none", "--workers", "2"]
    cost = run_command([*words, "--threads", "1", "--tier", tier, *ENGINES[engine]])
    facts = json.loads((out / "run.json").read_text())
    return {
        "engine": engine,
        "seconds": cost.seconds,
        "rating_seconds": facts["seconds"],
        "examples_per_second": facts["examples_per_second"],
        "sha256": digest(out),
    }


def total(results: list[dict], name: str) -> float:
    """Sum over all runs."""
    return sum(result[name] for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--tier", default="transformer")
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, list[dict]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.jsonl"
        count = write_input(source, options.examples)
        for number in range(options.runs):
            for engine in list(ENGINES)[:: -1 if number % 2 else 1]:
                result = one_run(options.scorer, options.tier, source, Path(folder) / f"{engine}-{number}", engine)
                found[engine].append(result)
                print(
                    f"run {number}: {engine}: {result['examples_per_second']:.1f}/s, {result['seconds']:.1f} s whole",
                    flush=True,
                )
    result = {
        "examples": count,
        "tier": options.tier,
        "cores": usable_cores(),
        "speed_ratio": total(found["local"], "rating_seconds") / total(found["ray"], "rating_seconds"),
        "whole_ratio": total(found["local"], "seconds") / total(found["ray"], "seconds"),
        "same_bytes": len({result["sha256"] for results in found.values() for result in results}) == 1,
        "runs": [result for results in found.values() for result in results],
    }
    print(f"speed of ray to local: {result['speed_ratio']:.3f}; same bytes: {result['same_bytes']}")
    write_result("ray_engine", {**read_result("ray_engine"), f"{options.tier}-{count}": result})


if __name__ == "__main__":
    main()
