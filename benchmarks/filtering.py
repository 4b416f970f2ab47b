"""All EmpatheticDialogues train conversations through `ee-cli filter`, twice: counts, memory, equal bytes, speed.

python benchmarks/filtering.py --scorer SCORER-FOLDER [--runs 2]
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

from common import DATA, read_rows, run_command, write_result

POOL = "empathetic_dialogues.train.jsonl.gz"
TIMES = {"run.json", ".units/plan.json"}
"""What holds times, and so differs between runs."""


def digest(folder: Path) -> str:
    """One hash over all files of a folder, without those that hold times."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in TIMES and not name.endswith("lock"):
            found.update(name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    rows = read_rows(POOL)
    turns = sum(1 for row in rows for i, turn in enumerate(row["turns"]) if turn["role"] == "listener" and i > 0)
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.runs):
            out = Path(scratch) / f"subsets-{number}"
            cost = run_command(["filter", "--scorer", options.scorer, str(DATA / POOL), "-o", str(out)])
            manifest = json.loads((out / "manifest.json").read_text())
            subsets = {name: part["examples"] for name, part in manifest["subsets"].items()}
            runs.append({"seconds": cost.seconds, "peak_mb": cost.peak_mb, "sha256": digest(out), "subsets": subsets})
            print(
                f"run {number}: {cost.seconds:.0f} s, {cost.peak_mb:.0f} MB, {turns / cost.seconds:.0f} examples/s, {subsets}"
            )
    result = {"conversations": len(rows), "listener_turns": turns, "runs": runs}
    result["counts_add_up"] = all(sum(run["subsets"].values()) == turns for run in runs)
    result["same_bytes"] = len({run["sha256"] for run in runs}) == 1
    print(f"{turns} listener turns; counts add up: {result['counts_add_up']}; same bytes: {result['same_bytes']}")
    write_result("filtering", result)


if __name__ == "__main__":
    main()
