"""The engine: the partition adds up, rows leave as they came, rejected rows are kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from length_scorer import LengthScorer, rows_of, write_rows

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import changed_files
from efficient_empathy.scorer import engine
from efficient_empathy.scorer.engine import describe_run, run
from efficient_empathy.scorer.job import Job
from efficient_empathy.scorer.progress import JsonEvents
from efficient_empathy.selection import PaperPolicy


def test_the_subsets_partition_the_examples_and_agree_with_the_rule(job):
    manifest = run(job, LengthScorer(), PaperPolicy()).manifest
    assert manifest["counts"]["rows"] == 300
    assert manifest["counts"]["examples"] == 600
    assert sum(subset["examples"] for subset in manifest["subsets"].values()) == 600
    assert sum(subset["share"] for subset in manifest["subsets"].values()) == pytest.approx(1, abs=1e-5)
    seen = []
    for name in ("sensibility", "rationality", "discarded"):
        rows = rows_of(job.out / name)
        assert len(rows) == manifest["subsets"][name]["examples"] > 0
        assert manifest["subsets"][name]["mean"]["sensibility"] == pytest.approx(
            np.mean([r["ee_sensibility"] for r in rows]), abs=1e-4
        )
        for row in rows:
            s, r = row["ee_sensibility"], row["ee_rationality"]
            expected = "sensibility" if r < 5 < s else "discarded" if s < 5 < r else "rationality"
            assert row["ee_subset"] == name == expected
            assert row["turns"][row["ee_turn"]]["role"] == "listener"
            assert s == len(row["turns"][row["ee_turn"]]["text"]) % 11
            assert row["ee_id"] == f"{row['id']}_turn:{row['ee_turn']}"
        # Input order within a subset.
        assert [row["n"] for row in rows] == sorted(row["n"] for row in rows)
        seen += [row["ee_id"] for row in rows]
    assert len(set(seen)) == 600
    ties = sum(
        5 in (row["ee_sensibility"], row["ee_rationality"]) for n in manifest["subsets"] for row in rows_of(job.out / n)
    )
    assert manifest["counts"]["ties_at_threshold"] == ties > 0
    assert changed_files(job.out) == []


def test_what_goes_out_is_the_row_that_came_in(job, tmp_path):
    run(job, LengthScorer())
    before = (tmp_path / "in.jsonl").read_bytes().splitlines()
    after = [line for path in sorted((job.out / "examples").iterdir()) for line in path.read_bytes().splitlines()]
    assert len(after) == 600
    # Each row comes twice, once for each listener turn, its own bytes unchanged up to the closing brace.
    assert all(line.startswith(before[index // 2][:-1]) for index, line in enumerate(after))
    assert not any(b"ee_subset" in line for line in after)


def test_what_is_decided_on_is_what_is_written(tmp_path):
    class AlmostFive(LengthScorer):
        def score(self, examples):
            # Rounded to 4 decimals: 5, a tie; -0.
            return np.array([[5.00004, -0.00001]] * len(examples), np.float32)

    job = Job((str(write_rows(tmp_path / "in.jsonl", 2)),), tmp_path / "out")
    manifest = run(job, AlmostFive(), PaperPolicy()).manifest
    assert manifest["subsets"]["rationality"]["examples"] == manifest["counts"]["ties_at_threshold"] == 4
    line = (job.out / "rationality" / "part-00000.jsonl").read_bytes().splitlines()[0]
    assert b'"ee_sensibility":5.0,"ee_rationality":0.0,' in line


def test_rejected_rows_are_kept_counted_and_stop_nothing(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", 300, bad={3, 250})
    job = Job((str(path),), tmp_path / "out", unit_bytes=5000)
    manifest = run(job, LengthScorer(), PaperPolicy()).manifest
    counts = manifest["counts"]
    assert (counts["rows"], counts["rejected"], counts["examples"]) == (300, 2, 596)
    rejected = rows_of(job.out / "rejected")
    assert [row["line"] for row in rejected] == [4, 251]
    assert set(rejected[0]) == {"file", "line", "reason", "detail", "raw"}
    assert rejected[0]["raw"] == "not json"
    assert counts["rejected_by_reason"] == {rejected[0]["reason"]: 2}


def test_too_many_rejected_rows_stop_the_run_which_can_go_on(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", 300, bad=set(range(10, 40)))
    job = Job((str(path),), tmp_path / "out", unit_bytes=5000)
    with pytest.raises(EmpathyError, match=r"30 of \d+ rows.*--max-rejected 0.05.*30 times, first at .*in.jsonl:11"):
        run(job, LengthScorer(), PaperPolicy())
    # It stopped after 100 rows, not at the end.
    done = len(list((job.out / ".units").glob("[0-9]*.json")))
    assert 0 < done < describe_run(job, LengthScorer(), PaperPolicy())["units"]
    more = Job(job.inputs, job.out, unit_bytes=5000, max_rejected=0.5)
    assert run(more, LengthScorer(), PaperPolicy()).manifest["counts"]["rejected"] == 30
    with pytest.raises(EmpathyError, match=r"--max-rejected 0\.05"):
        run(job, LengthScorer(), PaperPolicy())


def test_a_small_input_is_judged_at_the_end(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", 10, bad={1})
    with pytest.raises(EmpathyError, match="1 of 10 rows"):
        run(Job((str(path),), tmp_path / "out"), LengthScorer())
    outcome = run(Job((str(path),), tmp_path / "out", max_rejected=1), LengthScorer())
    assert outcome.manifest["counts"]["examples"] == 18


def test_machines_are_told_of_success_only_when_all_is_written_and_of_a_finished_folder_too(tmp_path):
    def told(job):
        lines = []
        try:
            run(job, LengthScorer(), progress=JsonEvents(lines.append))
        except EmpathyError:
            assert not (job.out / "manifest.json").exists()
        return [(event["event"], event["examples"]) for event in map(orjson.loads, lines)]

    path = write_rows(tmp_path / "in.jsonl", 10, bad={1})
    job = Job((str(path),), tmp_path / "out")
    assert told(job) == [("start", 0), ("stopped", 18)]
    assert told(replace(job, max_rejected=1)) == [("start", 18), ("done", 18)]
    assert told(replace(job, max_rejected=1)) == [("start", 18), ("done", 18)]


def test_a_score_that_is_no_number_stops_the_run(job):
    class Broken(LengthScorer):
        def score(self, examples):
            return np.full((len(examples), 2), np.nan, np.float32)

    with pytest.raises(EmpathyError, match=r"not a number at .*in.jsonl:1"):
        run(job, Broken(), PaperPolicy())


def test_the_policy_is_checked_before_any_work(tmp_path):
    class Warmth(LengthScorer):
        dimensions = ("warmth", "turn")

    job = Job((str(tmp_path / "missing.jsonl"),), tmp_path / "out")
    with pytest.raises(EmpathyError, match="'turn', whose field ee_turn"):
        run(job, Warmth(), PaperPolicy())
    Warmth.dimensions = ("warmth", "clarity")
    with pytest.raises(EmpathyError, match="has: warmth, clarity"):
        run(job, Warmth(), PaperPolicy())
    with pytest.raises(EmpathyError, match=r"missing\.jsonl"):
        run(job, Warmth())
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_the_run_would_refuse_and_counts_what_is_done(job, tmp_path):
    assert describe_run(job, LengthScorer(), PaperPolicy())["units_done"] == 0
    run(job, LengthScorer(), PaperPolicy())
    planned = describe_run(job, LengthScorer(), PaperPolicy())
    assert planned["units_done"] == planned["units"] > 5
    with pytest.raises(EmpathyError, match="written by a run that differs in the policy"):
        describe_run(job, LengthScorer(), PaperPolicy(threshold=6))
    assert describe_run(replace(job, overwrite=True), LengthScorer(), PaperPolicy(threshold=6))["units_done"] == 0
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    with pytest.raises(EmpathyError, match="is not empty, and no run of ee-cli wrote it"):
        describe_run(replace(job, out=tmp_path / "foreign"), LengthScorer(), PaperPolicy())


@pytest.mark.parametrize(
    "options",
    [
        {"inputs": ()},
        {"examples": "all"},
        {"format": "csv"},
        {"max_rejected": 1.5},
        {"chunk": 0},
        {"unit_bytes": 0},
    ],
)
def test_a_job_s_options_are_checked(tmp_path, options):
    with pytest.raises(EmpathyError, match=next(iter(options))):
        Job(**{"inputs": ("a.jsonl",), "out": tmp_path, **options})


def test_the_output_folder_is_no_url():
    with pytest.raises(EmpathyError, match="must be a local path, not the URL 's3:/bucket/out'"):
        Job(("a.jsonl",), "s3://bucket/out")


def test_memory_holds_a_chunk_not_a_unit(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", 100)
    scorer = LengthScorer()
    run(Job((str(path),), tmp_path / "out", chunk=20), scorer)
    assert max(scorer.calls) <= 21  # a conversation's two examples stay together
    assert sum(scorer.calls) == 200


def test_a_subset_can_be_rated_again_and_old_fields_are_replaced(job, tmp_path):
    first = run(job, LengthScorer(), PaperPolicy()).manifest
    again = Job((str(job.out),), tmp_path / "again")
    with pytest.raises(EmpathyError, match="is or lies in the input"):
        run(Job((str(job.out),), job.out / "again"), LengthScorer())
    second = run(again, LengthScorer(), PaperPolicy()).manifest
    assert second["subsets"] == first["subsets"]
    line = next((again.out / "sensibility").iterdir()).read_bytes().splitlines()[0]
    assert line.count(b"ee_sensibility") == 1


def test_a_row_that_comes_after_the_cut_is_noticed(job, monkeypatch):
    plan_units = engine.plan_units

    def slowly(inputs, unit_bytes):
        units = plan_units(inputs, unit_bytes)
        with open(job.inputs[0], "ab") as file:
            file.write(b'{"prompt": "a", "response": "b"}\n')
        return units

    monkeypatch.setattr(engine, "plan_units", slowly)
    with pytest.raises(EmpathyError, match="changed while it was read"):
        run(job, LengthScorer(), PaperPolicy())
    monkeypatch.undo()
    assert run(job, LengthScorer(), PaperPolicy()).manifest["counts"]["rows"] == 301


@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        ("**/*.jsonl", True),
        ("*/*/*.jsonl", True),
        ("*/s*/part-*", True),
        ("*/*.jsonl", False),
        ("in*.jsonl", False),
        ("**/in*.jsonl", False),
    ],
)
def test_a_pattern_that_would_match_the_output_is_refused(job, tmp_path, monkeypatch, pattern, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more" / "set").mkdir(parents=True)
    for name in ("more/x.jsonl", "more/set/part-1.jsonl"):
        (tmp_path / name).write_bytes((tmp_path / "in.jsonl").read_bytes())
    given = replace(job, inputs=(pattern,), out=Path("out"))
    if refused:
        with pytest.raises(EmpathyError, match="would match what is written to 'out'"):
            run(given, LengthScorer(), PaperPolicy())
        assert not (tmp_path / "out").exists()
    else:
        run(given, LengthScorer(), PaperPolicy())
        assert run(given, LengthScorer(), PaperPolicy()).already_done
