"""The tiers of a scorer folder against sentence-transformers, model2vec and fastText: the same rows, in turns, in one run.

The rivals have an environment of their own, since they need other versions than this project:

    python -m venv rivals-env
    rivals-env/bin/pip install "sentence-transformers[onnx]" "model2vec[distill,train]" fasttext-wheel
    python benchmarks/rivals.py --scorer SCORER-FOLDER --rivals-python rivals-env/bin/python [--examples 2000] [--runs 5]

Each system gets the same EmpatheticDialogues examples as text in memory: the rivals the turns joined by blanks, this project
its examples. All take as many threads as they like. A linear head stands behind sentence-transformers; model2vec and
fastText are trained on the scorer's own decisions for these rows, since only their speed is asked for here.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, read_rows, write_result
from filtering import POOL

from efficient_empathy.dialogues import Example, Turn
from efficient_empathy.dialogues.examples import examples_of
from efficient_empathy.dialogues.formats import parse_row
from efficient_empathy.scorer import Scorer
from efficient_empathy.selection import PaperPolicy

RIVALS = ("st-torch", "st-onnx-int8", "model2vec", "fasttext")
BARS = (
    ("transformer-int8", "st-torch", 4.0),
    ("transformer-int8", "st-onnx-int8", 1.3),
    ("fast", "model2vec", 2.0),
    ("fast", "fasttext", 1.0),
)
"""Ours, the rival's, how many times as fast ours should be."""


class Rivals:
    """The process that holds the rivals."""

    def __init__(self, python: str, rows: Path, backbone: Path):
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "rival_systems.py"), str(rows), str(backbone)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **command: str) -> dict[str, float]:
        """Have one command done; a rival that fails stops the benchmark."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the rivals' process ended at {command}: its message stands above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def text_of(example: Example) -> str:
    turns: list[Turn | str] = [*example.context, example.response]
    return " ".join(turn if isinstance(turn, str) else turn.text for turn in turns)


def read_examples(count: int) -> list[Example]:
    """So many examples, evenly spread over the data set."""
    rows = read_rows(POOL)
    found = [example for i, row in enumerate(rows) for example in examples_of(parse_row(row, str(i)), "every-turn")]
    return found[:: max(1, len(found) // count)][:count]


def our_systems(folder: str) -> dict[str, Scorer]:
    """The transformer in each precision, and the fast tier where the folder has one."""
    tiers = Scorer.load(folder, device="cpu").spec.tiers
    systems = {
        f"transformer-{precision}": Scorer.load(folder, device="cpu", tier="transformer", precision=precision)
        for precision in tiers["transformer"]
    }
    if "fast" in tiers:
        systems["fast"] = Scorer.load(folder, device="cpu", tier="fast")
    return systems


def measure(ours: dict[str, Scorer], examples: list[Example], rivals: Rivals, names: list[str], runs: int) -> dict:
    """Each system in turn, several times; the first turn of each is not counted."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in [*ours, *names]}
    for number in range(runs + 1):
        for name, found in turns.items():
            if name in ours:
                start, cpu = time.perf_counter(), time.process_time()
                ours[name].score(examples)
                taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            else:
                taken = rivals.ask(run=name)
            if number:
                found.append(taken)
    return {
        name: {
            "examples_per_second": statistics.median(len(examples) / turn["seconds"] for turn in found),
            "cpu_ms_an_example": statistics.median(1000 * turn["cpu_seconds"] / len(examples) for turn in found),
            "runs": found,
        }
        for name, found in turns.items()
    }


def compare(systems: dict[str, Any]) -> list[dict]:
    """The bars: medians over the turns of the ratio within one turn, by the clock and by CPU time."""
    compared = []
    for our, rival, bar in BARS:
        if our in systems and rival in systems:
            pairs = list(zip(systems[our]["runs"], systems[rival]["runs"], strict=True))
            ratios = {key: statistics.median(b[key] / a[key] for a, b in pairs) for key in ("seconds", "cpu_seconds")}
            compared.append(
                {
                    "ours": our,
                    "rival": rival,
                    "bar": bar,
                    "ratio": ratios["seconds"],
                    "cpu_ratio": ratios["cpu_seconds"],
                }
            )
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--rivals-python", required=True)
    parser.add_argument("--rivals", default=",".join(RIVALS))
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    from efficient_empathy.distill.backbone import open_backbone  # only the benchmark needs torch, to find the folder

    examples, ours, names = read_examples(options.examples), our_systems(options.scorer), options.rivals.split(",")
    scores = ours["transformer-int8" if "transformer-int8" in ours else "transformer-fp32"].score(examples)
    decisions = PaperPolicy(5.0).decide(scores, ("sensibility", "rationality"))
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        lines = [json.dumps({"text": text_of(e), "label": str(d)}) for e, d in zip(examples, decisions, strict=True)]
        rows.write_text("\n".join(lines), encoding="utf-8")
        rivals = Rivals(options.rivals_python, rows, Path(open_backbone("minilm", 128).source))
        for name in names:
            rivals.ask(load=name)
        systems = measure(ours, examples, rivals, names, options.runs)
        rivals.close()
    for name, figures in systems.items():
        print(f"{name:20}{figures['examples_per_second']:>10.0f}/s{figures['cpu_ms_an_example']:>10.2f} ms of CPU time")
    bars = compare(systems)
    for bar in bars:
        print(
            f"{bar['ours']} against {bar['rival']}: {bar['ratio']:.2f} (CPU {bar['cpu_ratio']:.2f}), bar {bar['bar']}"
        )
    write_result("rivals", {"examples": len(examples), "systems": systems, "bars": bars})


if __name__ == "__main__":
    main()
