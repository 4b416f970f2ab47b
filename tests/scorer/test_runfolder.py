"""The output folder: a killed run ends in the same bytes, nothing is done twice, nothing of others is touched."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from length_scorer import LengthScorer, tree, write_rows

from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.engine import describe_run, run
from efficient_empathy.scorer.job import Job
from efficient_empathy.selection import ExpressionPolicy, PaperPolicy

HERE = Path(__file__).parent


def test_the_same_run_twice_gives_the_same_bytes(job, tmp_path):
    run(job, LengthScorer(), PaperPolicy())
    run(replace(job, out=tmp_path / "again"), LengthScorer(), PaperPolicy())
    assert len(list((job.out / ".units").glob("[0-9]*.json"))) > 5
    assert tree(job.out) == tree(tmp_path / "again")


def test_scores_that_company_does_not_change_give_the_same_bytes_whatever_the_chunk(job, tmp_path):
    run(job, LengthScorer(), PaperPolicy())
    other = replace(job, out=tmp_path / "again", chunk=7)
    run(other, LengthScorer(), PaperPolicy())
    noted = ("run.json", "manifest.json", ".units/plan.json", ".units/lock")
    assert tree(job.out, noted) == tree(other.out, noted)
    # A scorer in int8 may give others, so a run does not go on with another chunk.
    with pytest.raises(EmpathyError, match="the options \\(chunk was 70, is 7\\)"):
        run(replace(job, chunk=7), LengthScorer(), PaperPolicy())


def test_what_is_secret_in_a_url_is_kept_nowhere_and_the_run_goes_on(tmp_path):
    rows = write_rows(tmp_path / "in.jsonl", 300).read_bytes()
    fsspec.filesystem("memory").pipe("/secrets/in.jsonl?sig=SECRET", rows)
    job = Job(("memory://secrets/in.jsonl?sig=SECRET",), tmp_path / "out", unit_bytes=5000)
    manifest = run(job, LengthScorer(), PaperPolicy()).manifest
    assert manifest["counts"]["examples"] == 600
    assert [record["path"] for record in manifest["inputs"]] == ["memory:///secrets/in.jsonl"]
    before = tree(job.out, without=())
    assert not [name for name, content in before.items() if b"SECRET" in content]
    (record := sorted((job.out / ".units").glob("[0-9]*.json"))[0]).unlink()
    planned = describe_run(job, LengthScorer(), PaperPolicy())
    assert planned["units"] - planned["units_done"] == 1
    assert "SECRET" not in str(planned)
    scorer = LengthScorer()
    run(job, scorer, PaperPolicy())
    assert 0 < sum(scorer.calls) < 600
    assert record.read_bytes() == before[f".units/{record.name}"]
    fsspec.filesystem("memory").pipe("/secrets/in.jsonl?sig=OTHER", rows)
    with pytest.raises(EmpathyError, match=r"the inputs \('memory:///secrets/in.jsonl#\w{12}' is gone") as caught:
        run(replace(job, inputs=("memory://secrets/in.jsonl?sig=OTHER",)), LengthScorer(), PaperPolicy())
    assert "SECRET" not in str(caught.value)
    assert "OTHER" not in str(caught.value)


def test_a_finished_folder_is_recognised_without_scoring(job):
    first = run(job, LengthScorer(), PaperPolicy())
    before = tree(job.out, without=())
    scorer = LengthScorer()
    second = run(job, scorer, PaperPolicy())
    assert scorer.calls == []
    assert (first.already_done, second.already_done) == (False, True)
    assert first.manifest == second.manifest
    assert not (job.out / ".units" / "unfinished").exists()
    assert before == tree(job.out, without=())


def test_a_part_that_is_lost_or_cut_short_is_written_again(job):
    run(job, LengthScorer(), PaperPolicy())
    before = tree(job.out)
    parts = sorted((job.out / "sensibility").iterdir())
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-5])
    scorer = LengthScorer()
    assert not run(job, scorer, PaperPolicy()).already_done
    assert 0 < sum(scorer.calls) < 300
    assert before == tree(job.out)


KILLED = """
import sys; sys.path.insert(0, sys.argv[3])
from pathlib import Path
from length_scorer import LengthScorer
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job
from efficient_empathy.selection import PaperPolicy
job = Job((sys.argv[1],), Path(sys.argv[2]), unit_bytes=5000, chunk=10, format=sys.argv[4])
run(job, LengthScorer(0.002), PaperPolicy())
"""


def start_run(job, folder):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", KILLED, job.inputs[0], str(folder), str(HERE), job.format]
    return subprocess.Popen(command, env=environment)


def wait_for(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("container", ["jsonl", "parquet"])
def test_a_run_killed_at_several_moments_ends_in_the_bytes_of_one_that_was_not(job, tmp_path, container):
    job = Job(job.inputs, job.out, unit_bytes=5000, chunk=10, format=container)
    straight = Job(job.inputs, tmp_path / "straight", unit_bytes=5000, chunk=10, format=container)
    run(straight, LengthScorer(), PaperPolicy())
    for units_done, delay in ((0, 0.0), (1, 0.02), (4, 0.05)):
        process = start_run(job, job.out)
        wait_for(
            lambda n=units_done: len(list((job.out / ".units").glob("[0-9]*.json"))) >= n and job.out.is_dir(), process
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (job.out / "manifest.json").exists()
    scorer = LengthScorer()
    run(job, scorer, PaperPolicy())
    assert sum(scorer.calls) < 600 - 100  # what was done before the kills was not done again
    assert tree(job.out) == tree(straight.out)
    assert not (job.out / ".units" / "unfinished").exists()


@pytest.mark.slow
def test_two_runs_at_once_in_one_folder_are_refused(job):
    process = start_run(job, job.out)
    try:
        wait_for(lambda: (job.out / ".units" / "plan.json").is_file(), process)
        with pytest.raises(EmpathyError, match="another run is working in"):
            run(job, LengthScorer(), PaperPolicy())
    finally:
        process.kill()
        process.wait()


def test_what_differs_from_the_run_before_is_named(job, tmp_path):
    run(job, LengthScorer(), PaperPolicy())

    class Other(LengthScorer):
        digest = "other"

    class Fast(LengthScorer):
        tier = "fast"

    def same(**changes):
        return Job(**{"inputs": job.inputs, "out": job.out, "unit_bytes": 5000, **changes})

    write_rows(tmp_path / "more.jsonl", 3)
    for changed, scorer, policy, match in [
        (same(), LengthScorer(), PaperPolicy(4), "the policy .threshold was 5.0, is 4"),
        (same(), LengthScorer(), None, "the policy"),
        (same(), Other(), PaperPolicy(), "the scorer .digest was lengths, is other"),
        (same(), Fast(), PaperPolicy(), "the scorer .tier was null, is fast"),
        (same(format="parquet"), LengthScorer(), PaperPolicy(), "the options .format was jsonl, is parquet"),
        (
            same(examples="last-turn"),
            LengthScorer(),
            PaperPolicy(),
            "the options .examples was every-turn, is last-turn",
        ),
        (
            same(inputs=(*job.inputs, str(tmp_path / "more.jsonl"))),
            LengthScorer(),
            PaperPolicy(),
            "the inputs .*is new",
        ),
    ]:
        with pytest.raises(EmpathyError, match=match):
            run(changed, scorer, policy)
    data = Path(job.inputs[0]).read_bytes()
    Path(job.inputs[0]).write_bytes(data.replace(b"a", b"b", 1))  # the same size, other bytes
    with pytest.raises(EmpathyError, match=r"has changed.*--overwrite"):
        run(job, LengthScorer(), PaperPolicy())
    Path(job.inputs[0]).write_bytes(data)  # another time of change, the same bytes: it is the same input
    assert run(job, LengthScorer(), PaperPolicy()).already_done


def test_overwrite_starts_over_and_leaves_what_is_not_ours(job, tmp_path):
    run(job, LengthScorer(), PaperPolicy())
    (job.out / "discarded" / "notes.txt").write_text("mine")
    other = ExpressionPolicy({"long": "sensibility > 6"})
    over = Job(job.inputs, job.out, unit_bytes=5000, overwrite=True)
    run(over, LengthScorer(), other)
    assert sorted(path.name for path in job.out.iterdir() if path.is_dir()) == [".units", "discarded", "long"]
    assert (job.out / "discarded" / "notes.txt").read_text() == "mine"
    (job.out / "discarded" / "notes.txt").unlink()
    fresh = Job(job.inputs, tmp_path / "fresh", unit_bytes=5000)
    run(fresh, LengthScorer(), other)
    assert tree(job.out) == tree(fresh.out)


def test_a_folder_of_somebody_else_and_the_inputs_are_safe(job, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.txt").write_text("x")
    raw = tmp_path / "raw"
    raw.mkdir()
    write_rows(raw / "a.jsonl", 3)
    for inputs, out, match in [
        (job.inputs, tmp_path / "theirs", "not empty"),
        (job.inputs, tmp_path / "theirs" / "a.txt", "is a file"),
        (job.inputs, tmp_path / "in.jsonl", "is or lies in the input"),
        ((str(raw),), raw, "is or lies in the input"),
        ((str(raw),), raw / "deep" / "out", "is or lies in the input"),
        ((str(raw / "*.jsonl"),), raw, "lies in the output folder"),
    ]:
        for overwrite in (False, True):
            with pytest.raises(EmpathyError, match=match):
                run(Job(inputs, out, overwrite=overwrite), LengthScorer())
    assert sorted(path.name for path in raw.iterdir()) == ["a.jsonl"]


def test_an_input_that_changes_while_it_is_read_is_refused(job):
    class Touching(LengthScorer):
        def score(self, examples):
            with open(job.inputs[0], "ab") as file:
                file.write(b"\n")
            return super().score(examples)

    with pytest.raises(EmpathyError, match="changed while it was read"):
        run(job, Touching(), PaperPolicy())


def test_a_file_behind_a_url_that_is_overwritten_while_it_is_read_is_refused(tmp_path):
    rows = write_rows(tmp_path / "in.jsonl", 300).read_bytes()
    system = fsspec.filesystem("memory")
    system.pipe("/changing/in.jsonl", rows)

    class Overwriting(LengthScorer):
        def score(self, examples):
            system.pipe("/changing/in.jsonl", rows + rows)
            return super().score(examples)

    job = Job(("memory://changing/in.jsonl",), tmp_path / "out", unit_bytes=5000)
    with pytest.raises(EmpathyError, match=r"'memory://changing/in\.jsonl' changed while it was read"):
        run(job, Overwriting(), PaperPolicy())


def test_a_run_that_goes_on_after_an_upgrade_says_both_versions(job, monkeypatch):
    here = run(job, LengthScorer(), PaperPolicy()).manifest["versions"]
    assert "," not in here["numpy"]
    sorted((job.out / ".units").glob("[0-9]*.json"))[0].unlink()
    monkeypatch.setattr("efficient_empathy.scorer.rating._versions", lambda: {**here, "numpy": "99.0"})
    found = run(job, LengthScorer(), PaperPolicy()).manifest["versions"]
    assert found == {**here, "numpy": f"{here['numpy']}, 99.0"}
