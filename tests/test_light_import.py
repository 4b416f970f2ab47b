"""Scoring and filtering need the run-time packages alone: shown in a process where the training packages cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import orjson

ROOT = Path(__file__).parents[1]

# Stands before every other finder, so that what it names is not there, whatever is installed.
BLOCK = """
import sys

class Absent:
    names = {
        "torch", "transformers", "lightning", "pytorch_lightning", "sklearn", "scipy", "optimum", "onnx", "peft", "openai", "ray",
        "pandas", "polars", "datasets", "datatrove",
    }

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run_without_training_packages(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BLOCK + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_the_block_blocks():
    result = run_without_training_packages("import sklearn")
    assert result.returncode == 1
    assert "No module named 'sklearn'" in result.stderr


def test_a_scorer_loads_and_scores(scorer_folder):
    code = """
import json
import efficient_empathy
from efficient_empathy import Example, Scorer, Turn
scorer = Scorer.load(sys.argv[1])
scores = scorer.score([Example("1", "1", 1, (Turn("speaker", "a"),), "b c d e f")])
assert not Absent.names & {name.partition(".")[0] for name in sys.modules}
print(json.dumps([scores.tolist(), scorer.dimensions, scorer.providers]))
"""
    result = run_without_training_packages(code, scorer_folder)
    assert result.returncode == 0, result.stderr
    scores, dimensions, providers = orjson.loads(result.stdout)
    # Five words and 2; CLS, SEP, role and one word of context.
    assert scores == [[7.0, 4.0]]
    assert dimensions == ["sensibility", "rationality"]
    assert "CPUExecutionProvider" in providers


def test_rows_are_scored_without_the_libraries_of_the_loaders(scorer_folder):
    code = """
from efficient_empathy import Scorer
from efficient_empathy.scorer.adapters import RowScorer, score_frame
scorer = Scorer.load(sys.argv[1])
columns = {"id": ["1"], "context": [["a"]], "response": ["b c d e f"]}
assert scorer.as_map()(columns)["ee_sensibility"] == [7.0]
print(RowScorer(scorer).rate([{"prompt": "a", "response": "b"}]).columns["ee_sensibility"])
"""
    result = run_without_training_packages(code, scorer_folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[3.0]"


def test_the_commands_that_need_no_training_run(scorer_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "p1", "context": ["a"], "response": "b c d e f"}\n')
    code = "from efficient_empathy.cli import main; sys.argv[0] = 'ee-cli'; main()"
    out = tmp_path / "subsets"
    result = run_without_training_packages(code, "filter", "--scorer", scorer_folder, rows, "-o", out)
    assert result.returncode == 0, result.stderr
    assert list((out / "sensibility").glob("part-*.jsonl"))
    for words in (["report", out], ["verify", out, scorer_folder]):
        result = run_without_training_packages(code, *words)
        assert result.returncode == 0, result.stderr


def test_distill_says_which_extra_is_missing(tmp_path):
    labels = tmp_path / "labels.jsonl"
    row = {"context": ["a"], "response": "b", "sensibility": 1, "rationality": 2}
    labels.write_bytes(orjson.dumps(row) + b"\n")
    code = "from efficient_empathy.cli import main; sys.argv[0] = 'ee-cli'; main()"
    result = run_without_training_packages(code, "distill", "--labels", labels, "-o", tmp_path / "scorer")
    assert result.returncode == 2
    assert "pip install 'efficient-empathy[distill]'" in result.stderr
    assert "Traceback" not in result.stderr
