"""What the benchmarks share: the real data, whole commands with their cost, results as JSON."""

import gzip
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import pretty_json, write_atomic

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    """Wall clock."""
    peak_mb: float
    """Largest resident set of the process, or with ``run_watched`` of all its processes together, in MB of 10^6 bytes."""


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


def run_inside(arguments: list[str]) -> Cost:
    """Run ``ee-cli`` in this very process: a smoke run of twenty commands would spend most of its time on imports."""
    from efficient_empathy.cli import app

    start = time.perf_counter()
    app(arguments, standalone_mode=False, auto_envvar_prefix="EE")
    return Cost(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def run_watched(arguments: list[str]) -> Cost:
    """Run ``ee-cli`` as ``run_command`` does, and watch the memory of all its processes, 20 times a second."""
    return watch([sys.executable, "-c", "from efficient_empathy.cli import main; main()", *arguments])


def watch(command: list[str]) -> Cost:
    """Run a command and watch the memory of all its processes, 20 times a second."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(resident_bytes, tree_of(process.pid))))
        time.sleep(0.05)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed")
    return Cost(time.perf_counter() - start, peak / 1e6)


def tree_of(pid: int) -> list[int]:
    """A process and all that it has started (Linux)."""
    children = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += [int(child) for child in tasks.read_text().split()]
        except OSError:
            continue  # it has ended
    return [pid, *(found for child in children for found in tree_of(child))]


def resident_bytes(pid: int) -> int:
    """Resident set of a process; 0 once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """Write a file of JSON lines, whole or not at all."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def draw_conversations(rows: list[dict], count: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Whole conversations until ``count`` rows are reached, and all other rows."""
    by_conversation: dict[str, list[dict]] = {}
    for row in rows:
        by_conversation.setdefault(row["conv_id"], []).append(row)
    order = sorted(by_conversation)
    np.random.default_rng(seed).shuffle(order)
    taken: list[dict] = []
    while order and len(taken) < count:
        taken += by_conversation[order.pop()]
    return taken[:count], [row for name in order for row in by_conversation[name]]


def untouched(conversation: str) -> bool:
    """Whether a conversation lies in the half that no recipe was chosen on."""
    return int(hashlib.sha256(conversation.encode()).hexdigest(), 16) % 2 == 1


def note_settings(keep: Path, settings: dict, name: str = "settings.json") -> None:
    """Note in a folder what its runs are made with, or see that it is what is noted there.

    Raises:
        EmpathyError: the folder was begun with other settings.
    """
    path, settings = keep / name, json.loads(json.dumps(settings))
    keep.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_atomic(path, pretty_json(settings))
    found = json.loads(path.read_text(encoding="utf-8"))
    if differing := [f"{key} {found.get(key)}" for key in settings if found.get(key) != settings[key]]:
        raise EmpathyError(f"'{keep}' was begun with {', '.join(differing)}. Give the same options, or another --keep.")


def write_result(name: str, result: dict) -> None:
    """Write a benchmark's figures to ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read_result(name: str) -> dict:
    """What an earlier run wrote, or nothing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
