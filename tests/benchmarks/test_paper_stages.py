"""The stages of a seed on tiny things: what is drawn, cut and kept, and a whole run that is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from claims.data import cut, draw_contexts, read_jsonl
from claims.plan import Ledger, Plan, Speed, Study
from claims.stages import STAGES, Job, Seed, finish, learn
from common import ROOT, Cost, draw_conversations, untouched
from paper import merge

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import read_manifest, write_manifest


def rated(folder: Path) -> Path:
    """What ``filter`` writes at T = 5 for five examples, by hand."""
    scores = {"a": (7.5, 2.0), "b": (5.5, 4.5), "c": (8.0, 5.5), "d": (6.5, 3.0), "e": (2.0, 8.0)}
    subsets = {"sensibility": "abd", "rationality": "c", "discarded": "e"}
    for name, ids in subsets.items():
        (folder / name).mkdir(parents=True)
        rows = [{"ee_id": i, "ee_sensibility": scores[i][0], "ee_rationality": scores[i][1]} for i in ids]
        text = "".join(json.dumps({**row, "ee_subset": name}) + "\n" for row in rows)
        (folder / name / "part-00000.jsonl").write_text(text)
    counts = {name: {"examples": len(ids)} for name, ids in subsets.items()}
    body = {"scorer": {"folder": "scorer"}, "subsets": counts}
    write_manifest(folder, "subsets", body, [f"{name}/part-00000.jsonl" for name in subsets])
    return folder


def ids(folder: Path) -> set[str]:
    return {row["ee_id"] for path in folder.glob("*.jsonl") for row in read_jsonl(path)}


def test_another_threshold_cuts_the_same_scores(tmp_path):
    pool = rated(tmp_path / "pool")
    # T = 7: S > 7 and R < 7 are a and c; S < 7 and R > 7 is e alone. T = 6: a, c and d. T = 4: b has R = 4.5 > 4.
    expected = {
        5: ({"a", "b", "d"}, {"c"}, {"e"}),
        7: ({"a", "c"}, {"b", "d"}, {"e"}),
        6: ({"a", "c", "d"}, {"b"}, {"e"}),
        4: ({"a", "d"}, {"b", "c"}, {"e"}),
    }
    for threshold, sets in expected.items():
        out = tmp_path / f"cut-{threshold}"
        cut(pool, out, float(threshold))
        names = ("sensibility", "rationality", "discarded")
        assert tuple(ids(out / name) for name in names) == sets
        manifest = read_manifest(out, "subsets")
        assert manifest["policy"]["threshold"] == threshold
        assert [manifest["subsets"][name]["examples"] for name in names] == [len(own) for own in sets]


def test_contexts_are_of_untouched_conversations_one_of_each_before_a_second():
    rows = [{"id": f"{c}-{turn}", "conv_id": f"c{c}"} for c in range(60) for turn in range(2)]
    fresh = {row["conv_id"] for row in rows if untouched(row["conv_id"])}
    assert 0 < len(fresh) < 60
    drawn = draw_contexts(rows, len(fresh) + 3)
    assert {row["conv_id"] for row in drawn} == fresh
    assert len({row["conv_id"] for row in drawn[: len(fresh)]}) == len(fresh)
    assert len({row["id"] for row in drawn}) == len(fresh) + 3
    assert draw_contexts(list(reversed(rows)), 5) == drawn[:5]


def test_labels_and_pools_are_drawn_by_conversation():
    rows = [{"id": str(i), "conv_id": f"c{i // 3}"} for i in range(30)]
    taken, rest = draw_conversations(rows, 10, 1)
    assert len(taken) == 10
    assert len(rest) == 30 - 12  # four conversations, of which two rows are left aside
    assert not {row["conv_id"] for row in taken} & {row["conv_id"] for row in rest}
    assert draw_conversations(rows, 10, 2)[0] != taken


def test_a_folder_belongs_to_one_plan(tmp_path):
    Study(Plan(), tmp_path).open()
    Study(Plan(), tmp_path, batch_size=32).open()
    with pytest.raises(EmpathyError, match="begun with examples 1400"):
        Study(Plan(examples=300), tmp_path).open()


def test_plans_that_cannot_decide_are_refused():
    with pytest.raises(EmpathyError, match="must hold 5"):
        Plan(thresholds=(4.0, 6.0))
    with pytest.raises(EmpathyError, match="200 or more"):
        Plan(resamples=100)


def test_a_stage_without_the_one_before_is_refused(tmp_path):
    with pytest.raises(EmpathyError, match="pool needs scorer first; missing: scorer-epitome, scorer"):
        Seed(Study(Plan(), tmp_path), 0).prepare("pool")


def test_a_job_runs_until_its_folder_is_whole_and_then_no_more(tmp_path):
    calls: list[list[str]] = []
    out = tmp_path / "out"

    class Tiny(Study):
        @property
        def run(self):
            return self.command

        def command(self, arguments):
            calls.append(arguments)
            if arguments == ["whole"]:
                out.mkdir()
                write_manifest(out, "expert", {}, [])
            return Cost(1.5, 20.0)

    study, ledger = Tiny(Plan(), tmp_path), Ledger(tmp_path / "costs.json")
    with pytest.raises(EmpathyError, match="without a manifest"):
        finish(Job("x", out, lambda: ["half"], 1.0, ledger), study)
    out.mkdir()  # what a killed command left
    job = Job("x", out, lambda: ["whole"], 1.0, ledger, afresh=True)
    finish(job, study)
    finish(job, study)
    assert calls == [["half"], ["whole"]]
    assert ledger.read() == {"x": {"attempts": 2, "seconds": 1.5, "peak_mb": 20}}


def test_estimates_learn_from_what_was_done(tmp_path):
    speed = Speed(tokens=150, answers=2, tokens_an_example=85)
    # (1500 + 2 * 32 / 3) * 85 / 150 / 60 + 0.3 minutes
    assert speed.training(1500) == pytest.approx(14.67, abs=0.01)
    study, ledger = Study(Plan(), tmp_path, speed=speed), Ledger(tmp_path / "costs.json")
    out = tmp_path / "answers"
    out.mkdir()
    write_manifest(out, "answers", {}, [])
    job = Job("answers/all", out, list, 1.0, ledger)
    ledger.begin(job.name)
    ledger.end(job.name, Cost(100.0, 1.0))
    learn(job, study)
    assert speed.answers == 5.0
    assert speed.answering(600) == pytest.approx(2.2)


def start(keep: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "benchmarks" / "paper.py"), "--small", "--keep", str(keep)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def marks(seed: Seed) -> dict[str, int]:
    """When the manifest of each finished job was written."""
    jobs = [job for stage in STAGES for job in seed.jobs(stage)]
    return {job.name: (job.out / "manifest.json").stat().st_mtime_ns for job in jobs if job.done}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_goes_on_and_repeats_no_finished_job(tmp_path):
    pytest.importorskip("peft", reason="peft is part of the experts extra")
    keep, log = tmp_path / "work", tmp_path / "log"
    seed, kept = Seed(Study(Plan(thresholds=(5.0, 6.0)), keep), 0), {}
    for last in ("experts/sensibility-T5", "answers/random"):
        process = start(keep, log)
        while "seconds" not in seed.ledger.read().get(last, {}):
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found = marks(seed)
        assert last in found
        assert "evaluation" not in found
        assert {name: found[name] for name in kept} == kept
        kept = found
    assert {"scorer-epitome", "scorer", "pool", "mixture", "answers/base"} <= kept.keys()
    assert start(keep, log).wait() == 0, log.read_text()
    after = marks(seed)
    assert {name: after[name] for name in kept} == kept
    assert after.keys() == {job.name for stage in STAGES for job in seed.jobs(stage)}
    attempts = {name: facts["attempts"] for name, facts in seed.ledger.read().items()}
    # Once each, but for the two that a kill may have hit.
    assert sum(attempts.values()) <= len(attempts) + 2
    assert attempts["scorer"] == attempts["pool"] == attempts["experts/sensibility-T5"] == 1
    result = json.loads((keep / "paper.json").read_text())
    assert result["pooled"]["seeds"] == [0]
    assert result["seeds"][0]["evaluated"]
    assert result["seeds"][0]["thresholds"]["5"]["jaccard"] == 1.0
    # On another day, in another folder, the seed still counts; under another plan it does not.
    plan = Plan(**{**result["plan"], "thresholds": tuple(result["plan"]["thresholds"])})
    later = merge(Study(plan, tmp_path / "another"), result, keep / "values")
    assert (later["seeds"], later["pooled"]) == (result["seeds"], result["pooled"])
    asked = [{**one, "contexts_sha256": "of others"} for one in result["seeds"]]
    assert merge(Study(plan, keep), {**result, "seeds": asked}, keep / "values")["seeds"] == result["seeds"]
    other = merge(Study(replace(plan, contexts=50), tmp_path / "another"), result, keep / "values")
    assert (other["seeds"], "pooled" in other) == ([], False)
    page = (keep / "results.md").read_text()
    assert "A smoke run on a tiny model" in page
    assert page.count("Verdict: **cannot tell**. (1 of the 3 seeds that a verdict needs.)") == 3
    # The base is asked once for all seeds, and nothing is left half done.
    assert not list(keep.rglob("*.work"))
    assert not [path for path in keep.rglob("*") if path.name.endswith(".new")]
