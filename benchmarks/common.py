"""What the benchmarks share: the real data, whole commands with their cost, results as JSON."""

import gzip
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    """Wall clock."""
    peak_mb: float
    """Largest resident set of the process, in MB of 10^6 bytes."""


def read_rows(name: str) -> list[dict]:
    """Rows of one file of the real data; says so and stops where the data is missing."""
    path = DATA / name
    if not path.is_file():
        sys.exit(f"skipped: there is no real data at {path}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def run_command(arguments: list[str]) -> Cost:
    """Run ``ee-cli`` with these arguments; its progress is shown, a failure stops the benchmark."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", "from efficient_empathy.cli import main; main()", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"ee-cli {' '.join(arguments)} failed")
    return Cost(seconds, usage.ru_maxrss * 1024 / 1e6)


def write_result(name: str, result: dict) -> None:
    """Write a benchmark's figures to ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read_result(name: str) -> dict:
    """What an earlier run wrote, or nothing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
