"""Several workers write what one writes; what happens to one of them is said, and nothing finished is lost."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from length_scorer import FailsOnceMet, LengthScorer, TellsItsThreads, tree, write_rows

from efficient_empathy.dialogues import plan_units
from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer import Scorer, workers
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job
from efficient_empathy.scorer.progress import Quiet
from efficient_empathy.scorer.workers import WorkerPlan, plan_workers
from efficient_empathy.selection import ExpressionPolicy, PaperPolicy

HERE = Path(__file__).parent


def with_workers(job, count, out=None):
    return dataclasses.replace(job, workers=count, out=out or job.out)


def units_done(out):
    return len(list((out / ".units").glob("[0-9]*.json")))


@pytest.mark.slow
@pytest.mark.parametrize("container", ["jsonl", "parquet"])
def test_one_two_and_three_workers_write_the_same_bytes(job, tmp_path, container):
    trees = []
    for count in (1, 2, 3):
        one = dataclasses.replace(job, workers=count, out=tmp_path / str(count), format=container)
        run(one, LengthScorer(), ExpressionPolicy({"long": "sensibility > 6"}))
        assert orjson.loads((one.out / "run.json").read_bytes())["workers"] == count
        trees.append(tree(one.out))
    assert len(trees[0]) > 20
    assert trees[0] == trees[1] == trees[2]


@pytest.mark.slow
def test_a_real_scorer_travels_and_is_told_of_its_threads(scorer_folder, job, tmp_path):
    scorer = Scorer.load(scorer_folder, device="cpu")
    manifests = [run(with_workers(job, n, tmp_path / str(n)), scorer, PaperPolicy()).manifest for n in (1, 2)]
    assert manifests[0] == manifests[1]
    assert manifests[0]["ran_on"] == ["CPUExecutionProvider"]
    with pytest.raises(EmpathyError, match=f"told of {max(1, usable_cores() // 2)} threads"):
        run(with_workers(job, 2, tmp_path / "told"), TellsItsThreads.load(scorer_folder), PaperPolicy())
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


@pytest.mark.slow
def test_progress_hears_of_every_example_and_every_unit(job):
    class Notes(Quiet):
        def __init__(self):
            self.examples, self.units = 0, []

        def chunk(self, counts):
            self.examples += sum(counts.values())

        def unit_done(self, index):
            self.units.append(index)

    notes = Notes()
    manifest = run(with_workers(job, 2), LengthScorer(), PaperPolicy(), notes).manifest
    assert notes.examples == manifest["counts"]["examples"] == 600
    assert sorted(notes.units) == list(range(units_done(job.out)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "killed",
            r"worker \d was killed by signal 9, as .* memory runs out while it rated '.*in.jsonl' from row \d+ on",
        ),
        ("exit", r"worker \d ended with exit code 3; .* run the same command again"),
    ],
)
def test_a_worker_that_dies_is_reported_and_what_was_finished_stays(job, tmp_path, how, said):
    run(with_workers(job, 1, tmp_path / "straight"), LengthScorer(), PaperPolicy())
    with pytest.raises(EmpathyError, match=said):
        run(with_workers(job, 2), FailsOnceMet("c200_turn:1", how), PaperPolicy())
    finished = units_done(job.out)
    assert 0 < finished < units_done(tmp_path / "straight")
    scorer = LengthScorer()
    run(with_workers(job, 1), scorer, PaperPolicy())
    assert sum(scorer.calls) < 600
    assert tree(job.out) == tree(tmp_path / "straight")


@pytest.mark.slow
def test_what_a_worker_finds_is_told_as_one_process_tells_it(job, tmp_path):
    messages = []
    for count in (1, 2):
        with pytest.raises(EmpathyError, match="not a number at") as caught:
            run(with_workers(job, count, tmp_path / str(count)), FailsOnceMet("c9_turn:3", "no number"), PaperPolicy())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.slow
def test_too_many_rejected_rows_stop_several_workers(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", 600, bad=set(range(10, 110)))
    job = Job((str(path),), tmp_path / "out", unit_bytes=5000, workers=2)
    with pytest.raises(EmpathyError, match=r"\d+ of \d+ rows could not be read, more than --max-rejected 0.05"):
        run(job, LengthScorer(0.01), PaperPolicy())
    assert 0 < units_done(job.out) < len(plan_units(job.inputs, job.unit_bytes))


RUN = """
import signal, sys; sys.path.insert(0, sys.argv[3])
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it would be ignored
from pathlib import Path
from length_scorer import LengthScorer
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job
from efficient_empathy.selection import PaperPolicy
job = Job((sys.argv[1],), Path(sys.argv[2]), unit_bytes=5000, chunk=10, workers=int(sys.argv[4]))
try:
    run(job, LengthScorer(float(sys.argv[5])), PaperPolicy())
except KeyboardInterrupt:
    print("stopped by hand")
"""


def start_run(job, count, seconds=0.02):
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", RUN, job.inputs[0], str(job.out), str(HERE), str(count), str(seconds)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True, **streams)


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.005)


def processes_of(group):
    """Processes of a group that are still there and no zombies."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def wait_for_the_end_of_all(group):
    """The workers end with their parent, and with them what multiprocessing runs beside."""
    end = time.monotonic() + 10
    while processes_of(group):
        assert time.monotonic() < end
        time.sleep(0.01)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes")


@needs_proc
@pytest.mark.slow
def test_killed_in_mid_run_with_several_workers_and_run_again_with_others(job, tmp_path):
    straight = Job(job.inputs, tmp_path / "straight", unit_bytes=5000, chunk=10)
    run(straight, LengthScorer(), PaperPolicy())
    for count, units in ((2, 1), (3, 4)):
        process = start_run(job, count)
        wait_for(lambda n=units: units_done(job.out) >= n, process)
        process.kill()
        process.communicate()
        assert not (job.out / "manifest.json").exists()
        wait_for_the_end_of_all(process.pid)
    scorer = LengthScorer()
    run(Job(job.inputs, job.out, unit_bytes=5000, chunk=10), scorer, PaperPolicy())
    assert sum(scorer.calls) < 600
    assert tree(job.out) == tree(straight.out)
    assert not (job.out / ".units" / "unfinished").exists()


@needs_proc
@pytest.mark.slow
def test_ctrl_c_stops_the_workers_quietly(job):
    process = start_run(job, 2, seconds=0.1)  # slow enough not to be at its end when it is stopped
    wait_for(lambda: units_done(job.out) >= 1, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and the workers
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("stopped by hand\n", "")
    wait_for_the_end_of_all(process.pid)
    assert not run(dataclasses.replace(job, chunk=10), LengthScorer(), PaperPolicy()).already_done


class WithThreads(LengthScorer):
    """Says of itself what the plan asks for."""

    threads = None
    device = "cpu"


@pytest.mark.parametrize(
    ("asked", "threads", "device", "units", "plan"),
    [
        ("auto", None, "cpu", 100, (4, 1)),
        ("auto", 2, "cpu", 100, (2, 2)),
        ("auto", 8, "cpu", 100, (1, 8)),
        ("auto", None, "cpu", 3, (3, 1)),
        ("auto", None, "cpu", 1, (1, 4)),  # one compressed file: the cores compute a batch each
        ("auto", None, "cpu", 0, (1, 4)),
        ("auto", None, "cuda", 100, (1, 4)),
        (1, None, "cpu", 100, (1, 4)),
        (2, None, "cpu", 100, (2, 2)),
        (6, None, "cpu", 100, (6, 1)),
        (6, 3, "cpu", 100, (6, 3)),
        (6, None, "cpu", 2, (2, 2)),
    ],
)
def test_the_cores_are_shared_out(tmp_path, monkeypatch, asked, threads, device, units, plan):
    monkeypatch.setattr(workers, "usable_cores", lambda: 4)
    scorer = WithThreads()
    scorer.threads, scorer.device = threads, device
    assert plan_workers(Job(("a.jsonl",), tmp_path, workers=asked), scorer, units) == WorkerPlan(*plan)
    assert plan_workers(Job(("a.jsonl",), tmp_path, workers=1), LengthScorer(), 5) == WorkerPlan(1, 4)


@pytest.mark.parametrize("asked", [0, -1, "many", 1.5])
def test_the_number_of_workers_is_checked(tmp_path, asked):
    with pytest.raises(EmpathyError, match=f"workers must be auto or at least 1, not {asked}"):
        Job(("a.jsonl",), tmp_path, workers=asked)
