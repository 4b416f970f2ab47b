"""A Ray cluster of two nodes writes what one machine writes, also when a node, an actor or the run itself is killed."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import orjson
import pytest
from length_scorer import FailsOnceMet, LengthScorer, tree, write_rows
from ray_cluster import TwoNodes, raters, said_by_us, wait_until

from efficient_empathy.dialogues import plan_units
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer import Scorer
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job
from efficient_empathy.scorer.progress import Quiet
from efficient_empathy.scorer.ray_options import RayOptions
from efficient_empathy.scorer.ray_scorer import ship_scorer
from efficient_empathy.selection import PaperPolicy

HERE = Path(__file__).parent
PYTHONPATH = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to see processes"),
]


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="ray is an extra of its own")
    with pytest.MonkeyPatch.context() as environment:
        # The nodes inherit it: what they import is what is tested, and the scorers of these tests.
        environment.setenv("PYTHONPATH", PYTHONPATH)
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = TwoNodes()
        yield cluster
        cluster.shutdown()


@pytest.fixture
def two_nodes(cluster):
    cluster.complete()
    return cluster


def on_ray(job, cluster, out, **options):
    return dataclasses.replace(job, out=out, workers=2, ray=RayOptions(cluster.address, **options))


def units_done(out):
    return len(list((out / ".units").glob("[0-9]*.json")))


class Notes(Quiet):
    """Counts what it is told."""

    def __init__(self):
        self.examples, self.units = 0, []

    def chunk(self, counts):
        """Add examples."""
        self.examples += sum(counts.values())

    def unit_done(self, index):
        """Add a unit."""
        self.units.append(index)


@pytest.mark.parametrize("container", ["jsonl", "parquet"])
def test_two_nodes_write_the_bytes_of_one_machine(two_nodes, scorer_folder, job, tmp_path, container):
    scorer = Scorer.load(scorer_folder, device="cpu")
    job = dataclasses.replace(job, format=container)
    local = run(dataclasses.replace(job, out=tmp_path / "local", workers=1), scorer, PaperPolicy()).manifest
    notes = Notes()
    ray = run(on_ray(job, two_nodes, tmp_path / "ray"), scorer, PaperPolicy(), notes).manifest
    assert local == ray
    assert ray["ran_on"] == ["CPUExecutionProvider"]
    assert notes.examples == ray["counts"]["examples"] == 600
    assert sorted(notes.units) == list(range(units_done(tmp_path / "ray")))
    assert len(tree(tmp_path / "local")) > 20
    assert tree(tmp_path / "local") == tree(tmp_path / "ray")
    assert not (tmp_path / "ray" / ".units" / "unfinished").exists()
    facts = orjson.loads((tmp_path / "ray" / "run.json").read_bytes())
    assert (facts["workers"], facts["threads"]) == (2, 1)


def test_paths_may_be_relative_to_where_the_run_was_started(two_nodes, job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = dataclasses.replace(job, inputs=("in.jsonl",))
    run(dataclasses.replace(short, out=Path("local"), workers=1), LengthScorer(), PaperPolicy())
    run(on_ray(short, two_nodes, Path("ray")), LengthScorer(), PaperPolicy())
    assert tree(tmp_path / "local") == tree(tmp_path / "ray")


def test_a_killed_node_takes_nothing_with_it(two_nodes, job, tmp_path, caplog):
    job = dataclasses.replace(job, chunk=10)
    run(dataclasses.replace(job, out=tmp_path / "local", workers=1), LengthScorer(), PaperPolicy())
    out = tmp_path / "ray"

    def kill():
        wait_until(lambda: units_done(out) >= 2)
        two_nodes.kill_second()

    killer = threading.Thread(target=kill)
    killer.start()
    notes = Notes()
    run(on_ray(job, two_nodes, out), LengthScorer(0.02), PaperPolicy(), notes)
    killer.join()
    assert "is rated again" in caplog.text
    assert notes.examples == 600
    assert len(notes.units) == len(set(notes.units)) == units_done(out)
    assert tree(out) == tree(tmp_path / "local")


def test_a_unit_whose_actors_die_again_and_again_is_named(two_nodes, job, tmp_path):
    with pytest.raises(EmpathyError, match=r"2 actors were lost .* while they rated '.*in.jsonl' from row \d+ on"):
        run(on_ray(job, two_nodes, tmp_path / "ray", retries=1), FailsOnceMet("c200_turn:1", "killed"), PaperPolicy())
    finished = units_done(tmp_path / "ray")
    assert finished > 0
    run(dataclasses.replace(job, out=tmp_path / "local", workers=1), LengthScorer(), PaperPolicy())
    assert finished < units_done(tmp_path / "local")
    run(dataclasses.replace(job, out=tmp_path / "ray", workers=1), LengthScorer(), PaperPolicy())
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_what_an_actor_finds_is_told_as_one_process_tells_it(two_nodes, job, tmp_path):
    scorer = FailsOnceMet("c9_turn:3", "no number")
    with pytest.raises(EmpathyError) as local:
        run(dataclasses.replace(job, out=tmp_path / "local", workers=1), scorer, PaperPolicy())
    with pytest.raises(EmpathyError) as ray:
        run(on_ray(job, two_nodes, tmp_path / "ray"), scorer, PaperPolicy())
    assert str(local.value) == str(ray.value)
    wait_until(lambda: not raters())


def test_a_scorer_folder_that_a_node_does_not_see_travels(two_nodes, scorer_folder, example, tmp_path):
    import ray

    folder = tmp_path / "scorer"
    shutil.copytree(scorer_folder, folder)
    scorer = Scorer.load(folder, device="cpu")
    expected = scorer.score([example]).tolist()
    ray.init(address=two_nodes.address, log_to_driver=False)
    try:
        shipped = ship_scorer(scorer, "cpu", threads=1)
        changed = dataclasses.replace(shipped, digest="0" * 64)
        shutil.rmtree(folder)
        score = ray.remote(lambda sent, examples: sent.open().score(examples).tolist())
        assert ray.get(score.remote(shipped, [example])) == expected
        with pytest.raises(EmpathyError, match="changed while it was sent"):
            changed.open()
    finally:
        ray.shutdown()


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it would be ignored
from pathlib import Path
from length_scorer import LengthScorer
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job
from efficient_empathy.scorer.ray_options import RayOptions
from efficient_empathy.selection import PaperPolicy
job = Job((sys.argv[1],), Path(sys.argv[2]), unit_bytes=5000, chunk=10, workers=2, ray=RayOptions(sys.argv[3]))
try:
    run(job, LengthScorer(0.05), PaperPolicy())
except KeyboardInterrupt:
    print("stopped by hand")
"""


def start_run(job, cluster):
    command = [sys.executable, "-c", RUN, job.inputs[0], str(job.out), cluster.address]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **streams)  # with the environment of the cluster


def test_only_complaints_of_ray_itself_are_left_out():
    rays = (
        "(raylet) It looks like you're creating a detached actor.\n"
        "(UnitRater pid=81, ip=10.0.0.2) slow\n"
        "[2026-11-23 09:01:02,345 E 81 99] (core) gcs_client.cc:12: timed out\n"
        "2026-11-23 09:01:02,345\tWARNING services.py:9 -- little memory\n"
    )
    ours = "Traceback (most recent call last):\n2026-11-23 09:01:02,345\tINFO worker.py:1 -- Started a local Ray\n"
    assert said_by_us(rays + ours + rays) == ours


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_leaves_no_actor_and_goes_on_without_ray(two_nodes, job, tmp_path, how):
    process = start_run(job, two_nodes)
    wait_until(lambda: units_done(job.out) >= 1 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, how)
    out, err = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert (out, said_by_us(err)) == ("stopped by hand\n", "")
    wait_until(lambda: not raters())
    assert not (job.out / "manifest.json").exists()
    scorer = LengthScorer()
    run(dataclasses.replace(job, workers=1, chunk=10), scorer, PaperPolicy())
    assert sum(scorer.calls) < 600
    run(Job(job.inputs, tmp_path / "straight", unit_bytes=5000, chunk=10), LengthScorer(), PaperPolicy())
    assert tree(job.out) == tree(tmp_path / "straight")


def test_the_command_line_with_a_ray_of_its_own(scorer_folder, job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # In a process of its own: one that has started a Ray by itself asks for its token wherever else it connects.
    code = "import sys; sys.argv[0] = 'ee-cli'; from efficient_empathy.cli import main; main()"
    command = [sys.executable, "-c", code, "filter", "--scorer", str(scorer_folder), job.inputs[0], "-o"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    here, there = (
        subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, env=environment)
        for words in (["here"], ["there", "--engine", "ray", "--address", "local", "--workers", "1"])
    )
    assert (there.returncode, said_by_us(there.stderr)) == (0, ""), there.stderr
    assert there.stdout == here.stdout.replace("written to: here", "written to: there")
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_a_cluster_that_is_not_there_is_said_at_once(job):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            EmpathyError, match=f"no Ray cluster at '{address}' that this machine belongs to: .*refused"
        ):
            run(dataclasses.replace(job, ray=RayOptions(address)), LengthScorer())


def test_a_run_that_finds_no_room_says_so(two_nodes, job):
    with pytest.raises(EmpathyError, match="has room for an actor of 1 CPU and 1 GPU; the nodes have: 1 CPU; 1 CPU"):
        run(dataclasses.replace(on_ray(job, two_nodes, job.out, gpus=1), workers="auto"), LengthScorer())
    with pytest.raises(EmpathyError, match="each needs 1 CPU and 1 GPU, free are 2 CPU in all"):
        run(on_ray(job, two_nodes, job.out, gpus=1, start_seconds=0.5), LengthScorer())


def test_too_many_rejected_rows_stop_the_actors(two_nodes, tmp_path):
    path = write_rows(tmp_path / "in.jsonl", 600, bad=set(range(10, 110)))
    job = Job((str(path),), tmp_path / "out", unit_bytes=5000)
    with pytest.raises(EmpathyError, match=r"\d+ of \d+ rows could not be read, more than --max-rejected 0.05"):
        run(on_ray(job, two_nodes, job.out), LengthScorer(0.01), PaperPolicy())
    assert len(list((job.out / ".units").glob("[0-9]*.json"))) < len(plan_units(job.inputs, job.unit_bytes))
    wait_until(lambda: not raters())


def test_score_dataset_gives_what_the_scorer_gives_and_each_row_once(two_nodes, scorer_folder, tmp_path):
    import ray

    from efficient_empathy.dialogues import read_records, record_examples
    from efficient_empathy.scorer.adapters import RowOptions
    from efficient_empathy.scorer.adapters.ray_data import score_dataset

    path = write_rows(tmp_path / "in.jsonl", 100)
    wanted = [example for record in read_records([str(path)]) for example in record_examples(record)]
    scores = Scorer.load(scorer_folder, device="cpu").score(wanted)
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    ray.init(address=two_nodes.address, log_to_driver=False)
    try:
        bad = {"id": "bad", "turns": [], "n": -1}
        dataset = ray.data.from_items([*rows, bad], override_num_blocks=4)
        found = score_dataset(dataset, scorer_folder, concurrency=1, batch_size=16).take_all()
        again = score_dataset(ray.data.from_items(found), scorer_folder).take_all()
        with pytest.raises(ray.exceptions.RayTaskError, match="bad_rows='keep' or 'drop'"):
            score_dataset(dataset, scorer_folder, RowOptions(bad_rows="raise"), concurrency=(1, 2)).take_all()
    finally:
        ray.shutdown()
    by_id = {row["ee_id"]: row for row in found if row["ee_reject"] is None}
    assert len(found) == len(wanted) + 1
    assert [row["id"] for row in found if row["ee_reject"] is not None] == ["bad"]
    for example, (first, second) in zip(wanted, scores.tolist(), strict=True):
        row = by_id.pop(example.id)
        assert (row["ee_turn"], row["ee_sensibility"], row["ee_rationality"]) == (example.turn, first, second)
        assert row["turns"] == rows[row["n"]]["turns"]
    assert not by_id
    assert sorted(map(repr, again)) == sorted(map(repr, found))
