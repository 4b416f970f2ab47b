"""What of the Ray engine can be seen without a cluster: options, room, what a node lacks, a missing extra."""

import dataclasses
import os
import sys

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from length_scorer import LengthScorer, write_rows

from efficient_empathy.dialogues import plan_units
from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.errors import EmpathyError, MissingExtraError
from efficient_empathy.manifest import versions
from efficient_empathy.scorer import ray_actor, runfolder
from efficient_empathy.scorer.adapters import RowOptions
from efficient_empathy.scorer.adapters.ray_data import _ScoresBatches
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import VERSIONED, Job
from efficient_empathy.scorer.ray_actor import DONE, FAILED, Task, UnitRater
from efficient_empathy.scorer.ray_engine import room_for
from efficient_empathy.scorer.ray_options import RayOptions
from efficient_empathy.scorer.ray_pool import cause_of, check_versions
from efficient_empathy.selection import PaperPolicy
from efficient_empathy.selection.commands import filter_command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": -1}, "gpus must be 0, a share below 1 such as 0.5, or a whole number, not -1"),
        ({"gpus": 1.5}, "not 1.5"),
        ({"gpus": float("nan")}, "not nan"),
        ({"retries": -1}, "retries must be a whole number from 0, not -1"),
        ({"start_seconds": 0}, "start_seconds must be above 0, not 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(EmpathyError, match=message):
        RayOptions(**options)


@pytest.mark.parametrize(
    ("node", "threads", "gpus", "actors"),
    [
        ({"CPU": 4.0}, 1, 0, 4),
        ({"CPU": 5.0}, 2, 0, 2),
        ({"CPU": 8.0}, 1, 1, 0),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.25, 8),
        ({"CPU": 6.0, "GPU": 2.0}, 1, 0.25, 6),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.4, 4),  # two a GPU: a share never spans two
        ({"CPU": 8.0, "GPU": 1.0}, 1, 0.1, 8),
        ({"CPU": 8.0, "GPU": 5.0}, 1, 2, 2),
        ({}, 1, 0, 0),
    ],
)
def test_a_node_has_room_for_so_many_actors(node, threads, gpus, actors):
    assert room_for(node, threads, gpus) == actors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--address", "auto"], "--address is for --engine ray"),
        (["--gpus", "1"], "--gpus is for --engine ray"),
        (["--engine", "ray", "--device", "cpu", "--gpus", "1"], "--gpus 1 and --device cpu exclude each other"),
        (["--engine", "ray", "--device", "cuda", "--gpus", "0"], "--gpus 0 and --device cuda exclude each other"),
    ],
)
def test_options_that_do_not_go_together_are_refused(scorer_folder, tmp_path, words, message):
    path = write_rows(tmp_path / "in.jsonl", 2)
    command = ["--scorer", str(scorer_folder), str(path), "-o", str(tmp_path / "out"), *words]
    with pytest.raises(EmpathyError, match=message):
        CliRunner().invoke(filter_command, command, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named_before_anything_is_written(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'efficient-empathy\[ray\]'"):
        run(dataclasses.replace(job, ray=RayOptions()), LengthScorer())
    assert not job.out.exists()


@pytest.fixture
def task(job):
    """A run that has begun."""
    unfinished = runfolder.temporary_folder(job.out)
    unfinished.mkdir(parents=True)
    (unfinished / "ray-1").touch()
    (job.out / "examples").mkdir()
    sizes = {job.inputs[0]: os.path.getsize(job.inputs[0])}
    return Task(job, None, LengthScorer(), 1, "ray-1", None, job.inputs[0], sizes)


def test_an_actor_rates_a_unit_and_tells_its_counts_once(task):
    rater = UnitRater(task)
    kind, facts = rater.start()
    assert (kind, facts["versions"]) == (DONE, versions(*VERSIONED))
    unit = plan_units(task.job.inputs, task.job.unit_bytes)[2]
    kind, (result, counts) = rater.rate(unit)
    assert kind == DONE
    assert result.unit["index"] == 2
    assert counts == result.examples
    assert rater.news() == (2, {})
    assert (task.job.out / "examples" / "part-00002.jsonl").is_file()


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        ("out", "the output folder '.*' is not the one of the run. Every node must see it"),
        ("input", "there is no file or folder '.*missing.jsonl'"),
        ("folder", "there is no folder '/no/such/folder', from where inputs or output are named"),
    ],
)
def test_a_node_that_lacks_something_says_so_at_once(task, tmp_path, monkeypatch, lacks, message):
    monkeypatch.setattr(ray_actor, "_LOOK_SECONDS", 0.0)
    changes = {
        "out": {"run": "ray-2"},
        "input": {"first_input": str(tmp_path / "missing.jsonl")},
        "folder": {"folder": "/no/such/folder"},
    }
    kind, said = UnitRater(dataclasses.replace(task, **changes[lacks])).start()
    assert kind == FAILED
    with pytest.raises(EmpathyError, match=f"on node '.*': {message}"):
        raise EmpathyError(said)


def test_an_actor_refuses_another_file_of_the_same_name_and_a_run_that_has_ended(task):
    rater = UnitRater(dataclasses.replace(task, sizes={task.job.inputs[0]: 5}))
    rater.start()
    unit = plan_units(task.job.inputs, task.job.unit_bytes)[0]
    size = os.path.getsize(task.job.inputs[0])
    kind, said = rater.rate(unit)
    assert kind == FAILED
    assert f"has {size} bytes on node" in said
    assert "and 5 where the run was started" in said
    (runfolder.temporary_folder(task.job.out) / "ray-1").unlink()
    kind, said = rater.rate(unit)
    assert kind == FAILED
    assert "has ended, or another has begun" in said
    assert not list((task.job.out / "examples").iterdir())


def test_a_node_with_other_versions_is_refused():
    here = versions(*VERSIONED)
    check_versions({"host": "n2", "versions": {**here, "python": "3.99"}}, gpus=0)
    check_versions({"host": "n2", "versions": {**here, "onnxruntime": "0.1"}}, gpus=0.5)
    with pytest.raises(EmpathyError, match=f"node 'n2' has numpy 0.1, here it is {here['numpy']}"):
        check_versions({"host": "n2", "versions": {**here, "numpy": "0.1"}}, gpus=0.5)
    del here["orjson"]
    with pytest.raises(EmpathyError, match="node 'n2' has orjson not installed"):
        check_versions({"host": "n2", "versions": here}, gpus=0)


def test_the_cause_of_a_loss_is_told_in_a_line():
    died = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: UnitRater\n\tactor_id: 1\n\tpid: 7\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
    )
    assert cause_of(RuntimeError(died)).endswith("its worker process has died. Worker exit type: SYSTEM_ERROR")
    assert "\n" not in cause_of(RuntimeError(died))
    failed = (
        "The actor died because of an error raised in its creation task, …\n  File x\nModuleNotFoundError: No module"
    )
    assert cause_of(RuntimeError(failed)) == "ModuleNotFoundError: No module"
    assert cause_of(RuntimeError("")) == "RuntimeError"


def test_the_local_engine_is_the_default(tmp_path):
    assert Job(("a.jsonl",), tmp_path).ray is None


def test_score_dataset_refuses_a_score_that_is_no_number():
    class Broken(LengthScorer):
        def open(self):
            return self

        def score(self, examples):
            return np.array([[1.0, 2.0], [np.nan, 1.0]], np.float32)

    table = pa.table({"context": ["a", "b"], "response": ["c", "d"]})
    with pytest.raises(EmpathyError, match="not a number at row 1 of this batch; try --precision fp32"):
        _ScoresBatches(Broken(), RowOptions())(table)


class Opened(LengthScorer):
    """Stands for a scorer on its way to a node."""

    def open(self):
        """Itself."""
        return self


def test_batches_of_ray_data_are_rows_like_those_of_all_adapters():
    table = pa.table(
        {
            "context": [["a"], None, ["why"]],
            "response": ["so sorry", "lost", "make a plan"],
            "n": [1, 2, 3],
            "ee_old": ["x", "x", "x"],
        }
    )
    found = _ScoresBatches(Opened(), RowOptions(PaperPolicy()))(table)
    assert found.column_names == [
        *("context", "response", "n", "ee_id", "ee_turn", "ee_sensibility", "ee_rationality", "ee_subset", "ee_reject"),
    ]
    assert found["n"].to_pylist() == [1, 2, 3]
    assert found["context"].to_pylist() == table["context"].to_pylist()
    scores = LengthScorer().score([Example("", "", 1, (Turn("speaker", "a"),), "so sorry")])
    assert found["ee_sensibility"].to_pylist()[0] == scores[0, 0]
    assert found["ee_sensibility"].null_count == found["ee_subset"].null_count == 1
    assert [reason is None for reason in found["ee_reject"].to_pylist()] == [True, False, True]
    # A batch whose rows are all bad has columns of the same types: Ray joins them.
    bad = _ScoresBatches(Opened(), RowOptions(PaperPolicy()))(table.slice(1, 1))
    assert bad.schema.types[3:] == found.schema.types[3:]
    # No column that may hold a dialogue.
    assert _ScoresBatches(Opened(), RowOptions(bad_rows="drop"))(pa.table({"n": [1, 2]})).num_rows == 0
