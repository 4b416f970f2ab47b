"""One small folder of each kind that the project writes, made by what writes it."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job
from efficient_empathy.scorer.scorer import Scorer
from efficient_empathy.selection import PaperPolicy

# The tiny model, the experts and their subsets are those of the tests of the mixture.
_spec = importlib.util.spec_from_file_location("moe_fixtures", Path(__file__).parents[1] / "moe" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
sys.modules["moe_fixtures"] = _fixtures
_spec.loader.exec_module(_fixtures)
make_tiny_lm, tiny_lm, subsets = _fixtures.make_tiny_lm, _fixtures.tiny_lm, _fixtures.subsets
make_expert, experts = _fixtures.make_expert, _fixtures.experts

_PAPER = PaperPolicy()

# The scorer counts: S is words of the response + 2, R words of the context + 3.
ROWS = [
    ("warm", "a", "b c d e f"),  # S 7, R 4: sensibility
    ("both", "a a a", "b c d e f"),  # S 7, R 6: rationality
    ("cold", "a a a", "b"),  # S 3, R 6: discarded
    ("tie", "a", "b c d"),  # S 5, R 4: a tie, so rationality
    ("low", "a", "b"),  # S 3, R 4: low on both, so rationality
]


def write_rows(path: Path) -> Path:
    """The rows above, and one that cannot be read."""
    lines = [json.dumps({"id": name, "context": [c], "response": r}) for name, c, r in ROWS]
    path.write_text("\n".join([*lines, '{"id": "broken", "context": []', ""]))
    return path


@pytest.fixture
def tmp_path(tmp_path):
    """Two folders further down than usual: verify looks round, and must not find the equal files of another test."""
    inner = tmp_path / "home" / "project"
    inner.mkdir(parents=True)
    return inner


@pytest.fixture
def make_run(scorer_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Filters (or, without a policy, scores) the rows above with a scorer that counts words."""

    def make(name: str = "run", policy: Any = _PAPER, container: str = "jsonl", scorer: Path | None = None) -> Path:
        rows = tmp_path / "rows.jsonl"
        if not rows.exists():
            write_rows(rows)
        job = Job((str(rows),), tmp_path / name, format=container, max_rejected=1.0)
        run(job, Scorer.load(scorer or scorer_folder), policy)
        return job.out

    return make


@pytest.fixture
def make_labels(judge_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Labels of the rows above, by a judge on a local server."""
    from efficient_empathy.distill.labelling import label
    from efficient_empathy.distill.options import JudgeOptions

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def make() -> Path:
        rows = tmp_path / "dialogues.jsonl"
        rows.write_text("\n".join(json.dumps({"id": n, "context": [c], "response": r}) for n, c, r in ROWS) + "\n")
        label([str(rows)], tmp_path / "labels.jsonl", JudgeOptions("openai:m", base_url=judge_server.url))
        return tmp_path / "labels.jsonl"

    return make


@pytest.fixture
def make_answers(tmp_path: Path) -> Callable[..., Path]:
    """Writes an answers folder of four contexts, without a model."""
    from efficient_empathy.manifest import write_manifest

    def make(name: str = "answers", text: str = "so sorry") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            {
                "id": f"r{index}",
                "dialogue_id": f"c{index // 2}",
                "context": [{"role": "speaker", "text": f"Story {index}."}],
                "reference": "I am sorry.",
                "answer": f"{text} {index}",
                "tokens": 3,
                "finish": "end",
                "nll": 2.0,
                "nll_tokens": 4,
            }
            for index in range(4)
        ]
        (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        counts = {"contexts": 4, "answered": 4, "ended": 4, "length": 0, "refused": {}}
        model = {"kind": "base", "base": {"name": "tiny", "digest": "0" * 64}}
        body = {"model": model, "options": {}, "inputs": {}, "counts": counts, "renderer": {"template_hash": "one"}}
        write_manifest(folder, "answers", body, ["answers.jsonl"])
        return folder

    return make


class WordScorer:
    """Scores the number of words."""

    digest, precision = "d" * 64, "fp32"
    dimensions = ("length",)

    def __init__(self) -> None:
        self.scales = {"length": (0.0, 10.0)}

    def score(self, examples: Any) -> np.ndarray:
        """(n, 1)."""
        return np.array([[len(example.response.split())] for example in examples], np.float32)


@pytest.fixture
def make_evaluation(make_answers: Any, tmp_path: Path) -> Callable[[], Path]:
    """Compares two systems by a scorer that counts words."""
    pytest.importorskip("nltk", reason="nltk is part of the experts extra")
    from efficient_empathy.experts.evaluation import EvaluateOptions, evaluate
    from efficient_empathy.experts.evaluation_files import write_evaluation

    def make() -> Path:
        systems = {"a": [make_answers("a")], "b": [make_answers("b", "oh")]}
        scorers = {"words": WordScorer()}
        write_evaluation(evaluate(systems, EvaluateOptions(resamples=100), scorers), scorers, tmp_path / "evaluation")
        return tmp_path / "evaluation"

    return make


@pytest.fixture
def make_pairwise(make_answers: Any, judge_server: Any, reply: Any, tmp_path: Path) -> Callable[[], Path]:
    """Has a local judge compare two systems: always for the reply that it is shown first."""
    from efficient_empathy.distill.options import JudgeOptions
    from efficient_empathy.experts.pairwise import compare
    from efficient_empathy.experts.pairwise_options import PairwiseOptions

    def make() -> Path:
        judge_server.behave = lambda request, times: reply(content='{"verdict": "A"}')
        options = PairwiseOptions(JudgeOptions("openai:m", base_url=judge_server.url), None, 200, 200)
        compare(make_answers("c"), make_answers("d", "oh"), options, tmp_path / "pairwise")
        return tmp_path / "pairwise"

    return make


@pytest.fixture
def make_mixture(experts: list[Path], tiny_lm: Path, tmp_path: Path) -> Callable[[], Path]:
    """A mixture of two experts whose router was not trained."""
    pytest.importorskip("peft", reason="peft is part of the experts extra")
    from efficient_empathy.experts.bases import find_base, load_base
    from efficient_empathy.moe.adapters import read_adapters
    from efficient_empathy.moe.artifact import Mixture, write_mixture
    from efficient_empathy.moe.options import RouterOptions
    from efficient_empathy.moe.router import attach

    def make() -> Path:
        adapters, base = read_adapters(experts[:2]), find_base(str(tiny_lm))
        model, _ = load_base(base)
        router = attach(model, adapters, RouterOptions())
        named = [{"name": adapter.name, "adapter": adapter.digest} for adapter in adapters]
        mixture = Mixture(base.describe(), {}, named, {}, {}, {"selection": {}}, {}, {})
        (tmp_path / "log.csv").write_text("step\n")
        write_mixture(router, mixture, adapters, "# a card", tmp_path / "moe", tmp_path / "log.csv")
        return tmp_path / "moe"

    return make
