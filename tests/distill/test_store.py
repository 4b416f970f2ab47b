"""The label store: what a key depends on, attempts, and survival."""

import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.judges import Answer, Usage
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.distill.store import LabelStore, answer_key
from efficient_empathy.errors import EmpathyError


@dataclass
class LengthJudge:
    """Rates by the length of the response."""

    name: str = "length:1"
    model: str = ""
    concurrency: int = 1
    max_completion_tokens: int = 0
    temperature: int = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """A parameter to vary."""
        return {"temperature": self.temperature}

    def ask(self, example: Example, rubric: Rubric) -> Answer:
        """The length, at most 10."""
        return Answer("", dict.fromkeys(rubric.names, min(10, len(example.response))))

    def describe(self) -> dict[str, Any]:
        """Nothing to say."""
        return {}

    def stop(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


RUBRIC = Rubric.load()


def test_key_depends_on_text_rubric_model_and_parameters_and_not_on_the_id(example):
    other = Rubric("other", RUBRIC.dimensions, RUBRIC.instructions)
    renamed = Example("elsewhere", "d9", 3, example.context, example.response)
    reworded = Example(example.id, "d1", 1, example.context, "Oh.")
    key = answer_key(example, RUBRIC, LengthJudge())
    assert answer_key(renamed, RUBRIC, LengthJudge()) == key
    others = [
        answer_key(reworded, RUBRIC, LengthJudge()),
        answer_key(example, other, LengthJudge()),
        answer_key(example, RUBRIC, LengthJudge(name="length:2")),
        answer_key(example, RUBRIC, LengthJudge(temperature=1)),
    ]
    assert len({key, *others}) == 5


def test_keeps_every_attempt_and_counts_the_latest(tmp_path: Path, example):
    judge = LengthJudge()
    first = Answer("what?", None, "no-verdict", Usage(10, 2, 1), "text")
    second = Answer('{"a": 1}\ud800', {"sensibility": 3, "rationality": 4.5}, None, Usage(10, 3), "json_schema")
    with LabelStore(tmp_path / "new" / "labels.sqlite") as store:
        assert store.latest(answer_key(example, RUBRIC, judge)) is None
        store.put(example, RUBRIC, judge, first, 0.5)
        store.put(example, RUBRIC, judge, second, None)
    with LabelStore(tmp_path / "new" / "labels.sqlite") as store:
        stored = list(store.all_of(answer_key(example, RUBRIC, judge)))
        assert [s.answer for s in stored] == [
            first,
            Answer('{"a": 1}?', second.scores, None, second.usage, "json_schema"),
        ]
        assert [s.usd for s in stored] == [0.5, None]
        assert store.latest(answer_key(example, RUBRIC, judge)) == stored[1]


def test_lost_attempts_are_kept_also_in_a_store_of_before(tmp_path: Path, example):
    path, key = tmp_path / "labels.sqlite", answer_key(example, RUBRIC, LengthJudge())
    with LabelStore(path) as store:
        store.put(example, RUBRIC, LengthJudge(), Answer("x", None, "no-verdict"), 0.5)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE lost")  # as it was before they were kept
    with LabelStore(path) as store:
        assert store.lost(key) == []
        store.put_lost(key, 0.25)
        store.put_lost(key, None)
        store.put_lost("another", 9.0)
    with LabelStore(path) as store:
        assert store.lost(key) == [0.25, None]
        assert [stored.usd for stored in store.all_of(key)] == [0.5]


def test_what_put_returned_from_survives_the_end_of_the_process(tmp_path: Path):
    script = (
        "import os, sys\n"
        "from efficient_empathy.dialogues.types import Example\n"
        "from efficient_empathy.distill.judges import Answer\n"
        "from efficient_empathy.distill.options import JudgeOptions\n"
        "from efficient_empathy.distill.openai_judge import OpenAIJudge\n"
        "from efficient_empathy.distill.rubric import Rubric\n"
        "from efficient_empathy.distill.store import LabelStore\n"
        "store = LabelStore(sys.argv[1])\n"
        "judge = OpenAIJudge.connect('m', JudgeOptions('openai:m'), ask=False)\n"
        "for n in range(5):\n"
        "    store.put(Example('a', 'a', 1, (), str(n)), Rubric.load(), judge, Answer('x', None, 'no-verdict'), None)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "labels.sqlite"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], env={**os.environ, "PYTHONPATH": root}, check=False
    )
    assert done.returncode == -9
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT COUNT(*) FROM answers").fetchone() == (5,)


def test_refuses_a_file_that_is_no_store(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("hello, this is not a database at all" * 10)
    with pytest.raises(EmpathyError, match="as a label store"):
        LabelStore(tmp_path / "notes.txt")
    with pytest.raises(EmpathyError, match="as a label store"):
        LabelStore(tmp_path)


def test_an_answer_has_scores_or_a_reason():
    with pytest.raises(ValueError, match="either"):
        Answer("x", None)
    with pytest.raises(ValueError, match="either"):
        Answer("x", {"a": 1}, "no-verdict")


def test_a_store_that_fails_in_mid_run_says_what_is_kept(tmp_path: Path):
    store = LabelStore(tmp_path / "labels.sqlite")
    store._connection.execute("DROP TABLE answers")
    with pytest.raises(EmpathyError, match=r"'.*labels.sqlite' cannot be used: no such table.*answered before is kept"):
        store.latest("x")
