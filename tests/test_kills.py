"""SIGKILL at random moments: filter ends in the same bytes, no label is paid for twice, distill goes on or starts again."""

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efficient_empathy.audit.verifying import verify
from efficient_empathy.dialogues import stream_examples
from efficient_empathy.manifest import read_manifest
from efficient_empathy.scorer.scorer import Scorer

ROOT, HERE = Path(__file__).parents[1], Path(__file__).parent
KILLS = int(os.environ.get("EE_TEST_KILLS", "6"))
"""20 in a whole check: `EE_TEST_KILLS=20 pytest tests/test_kills.py`; fewer in every run of the suite, for its time."""
START = "from efficient_empathy.cli import main; main()"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def environment(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "OMP_NUM_THREADS": "1", **more}


def start(*words, **more):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, *map(str, words)], env=environment(**more), start_new_session=True, **quiet
    )


def kill(process, condition, delay):
    """Kill a process, and its workers with it, some time after a condition holds; False if it ended before."""
    end = time.monotonic() + 300
    while process.poll() is None and not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(delay)
    if process.poll() is not None:
        assert process.returncode == 0, process.stderr.read().decode()
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def tree(folder):
    """Every file with its bytes, but for what holds times."""
    times = {"run.json", ".units/plan.json", ".units/lock"}
    files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in times}


def write_rows(path, count):
    """Conversations of two examples each, of differing lengths, some that cannot be read."""
    lots = random.Random(1)
    with open(path, "w") as file:
        for index in range(count):
            if index % 97 == 5:
                file.write("not json\n")
                continue
            texts = [" ".join("word" for _ in range(lots.randint(1, 8))) for _ in range(4)]
            roles = ("speaker", "listener", "speaker", "listener")
            turns = [{"role": role, "text": text} for role, text in zip(roles, texts, strict=True)]
            file.write(json.dumps({"id": f"c{index}", "turns": turns}) + "\n")
    return path


def test_filter_ends_in_the_bytes_of_an_uninterrupted_run(scorer_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 4000)
    counted, straight, out = tmp_path / "counted", tmp_path / "straight", tmp_path / "out"
    words = (HERE / "killing.py", "filter", rows)
    assert start(*words, straight, scorer_folder, 1, COUNTED=str(tmp_path / "counted-straight")).wait() == 0
    units = [json.loads(path.read_bytes()) for path in (straight / ".units").glob("[0-9]*.json")]
    total, largest = read_manifest(straight)["counts"]["examples"], max(sum(u["examples"].values()) for u in units)
    assert len(units) > 80

    def done():
        return len(list((out / ".units").glob("[0-9]*.json")))

    lots, allowed, killed = random.Random(0), total, 0
    counted.touch()
    while killed < KILLS:
        workers, before = 1 + killed % 3, done()
        process = start(*words, out, scorer_folder, workers, COUNTED=str(counted))
        # Half of the moments are counted from the start of the process, half from its first work.
        wanted = before + lots.randint(1, 3) if killed % 2 else 0
        if not kill(process, lambda wanted=wanted: done() >= wanted, lots.uniform(0, 0.08 if killed % 2 else 1.5)):
            break  # it was done before all kills were; what was killed so far counts below
        killed += 1
        assert not (out / "manifest.json").exists()
        assert done() >= before  # what is done stays done
        allowed += workers * largest
    assert killed == KILLS
    assert start(*words, out, scorer_folder, 2, COUNTED=str(counted)).wait() == 0
    assert tree(out) == tree(straight)
    assert not (out / ".units" / "unfinished").exists()
    assert verify(out, deep=True).problems == []
    # Lost at each kill is at most the unit that each worker had in hand.
    rated = sum(int(line) for line in counted.read_text().split())
    assert total <= rated <= allowed


def test_label_asks_for_nothing_that_was_answered(judge_server, reply, tmp_path):
    count, pool, out = 400, tmp_path / "pool.jsonl", tmp_path / "labels.jsonl"
    with open(pool, "w") as file:
        for d in range(count):
            turns = [{"role": "speaker", "text": f"Story {d}."}, {"role": "listener", "text": f"Answer {d}."}]
            file.write(json.dumps({"id": f"d{d}", "turns": turns}) + "\n")

    def slowly(request, times):
        time.sleep(0.03)
        return reply()

    judge_server.behave = slowly
    number_of = {e.digest: int(e.response.split()[1][:-1]) for e in stream_examples([str(pool)], "every-turn", {})}

    def asked():
        found = {}
        for text, times in list(judge_server.asked.items()):
            number = int(re.findall(r"Answer (\d+)\.", text)[-1])
            found[number] = found.get(number, 0) + times
        return found

    def stored():
        store = tmp_path / "labels.sqlite"
        if not store.exists():
            return set()
        with sqlite3.connect(store) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            rows = connection.execute("SELECT example FROM answers").fetchall() if "answers" in tables else []
        return {number_of[digest] for (digest,) in rows}

    lots, killed, in_hand = random.Random(0), 0, 0
    words = (
        "-c",
        START,
        "label",
        "--dialogues",
        pool,
        "-o",
        out,
        "--judge",
        "openai:m",
        "--base-url",
        judge_server.url,
    )
    while killed < KILLS:
        concurrency = 1 + 3 * (killed % 2)
        kept, times = stored(), asked()
        process = start(*words, "--concurrency", concurrency, OPENAI_API_KEY="none")
        wanted = judge_server.asked.total() + lots.randint(1, 10) if killed % 4 else 0
        answered = kill(process, lambda wanted=wanted: judge_server.asked.total() >= wanted, lots.uniform(0, 0.2))
        time.sleep(0.1)  # for what was under way
        assert answered, f"all was labelled before it could be killed {KILLS} times"
        killed += 1
        in_hand += concurrency
        assert kept <= stored()  # what was paid for is kept
        assert all(asked()[number] == times[number] for number in kept)  # and was not asked for again
    kept, times = stored(), asked()
    process = start(*words, "--concurrency", 4, OPENAI_API_KEY="none")
    assert process.wait() == 0, process.stderr.read().decode()
    found = asked()
    assert all(found[number] == times[number] for number in kept)
    assert sorted(found) == list(range(count))
    # Asked twice at most: what was under way at a kill, and had no answer yet.
    assert count <= sum(found.values()) <= count + in_hand
    labels = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["id"] for row in labels) == sorted(f"d{d}_turn:1" for d in range(count))
    assert verify(out).problems == []


def test_distill_goes_on_or_starts_again(tiny_bert, make_synthetic, tmp_path):
    examples, scores = make_synthetic(100)
    others, _ = make_synthetic(60, seed=2, prefix="p")

    def row(example, **more):
        context = [turn.text for turn in example.context]
        return {
            "id": example.id,
            "conv_id": example.dialogue_id,
            "context": context,
            "response": example.response,
            **more,
        }

    labels, pool = tmp_path / "labels.jsonl", tmp_path / "pool.jsonl"
    judged = [{"sensibility": float(s), "rationality": float(r)} for s, r in scores]
    with open(labels, "w") as file:
        file.writelines(json.dumps(row(e, **j)) + "\n" for e, j in zip(examples, judged, strict=True))
    pool.write_text("".join(json.dumps(row(example)) + "\n" for example in others))
    words = [sys.executable, str(HERE / "killing.py"), "distill", labels, pool, tiny_bert, tmp_path, KILLS]
    done = subprocess.run(list(map(str, words)), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["straight"], seen["last"], seen["killed"], seen["half_written"]) == (0, 0, KILLS, 0)
    assert seen["resumed"] > 0  # stages that were finished were not done again
    straight, killed = (Scorer.load(tmp_path / name) for name in ("straight", "killed"))
    assert killed.digest == straight.digest
    assert not (tmp_path / "killed.work").exists()
    assert not list(tmp_path.glob(".killed.*"))  # what was half written is gone
    assert verify(tmp_path / "killed").problems == []
