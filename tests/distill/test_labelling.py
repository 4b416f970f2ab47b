"""Labelling from end to end: what is asked, kept, paid and written, also when it is killed."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from efficient_empathy.dialogues import stream_examples
from efficient_empathy.dialogues.files import find_files
from efficient_empathy.distill.labelling import label, plan_labels
from efficient_empathy.distill.labels import check_labels, load_labelled
from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import read_manifest_file

CANARY = "sk-canary-0123456789abcdef"
ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def options(judge_server, tmp_path, monkeypatch):
    """Options for the test server, with a price of $1 a million in and $10 out: $0.0002 an answer of 100 + 10 tokens."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {m: {input: 1, output: 10}}")

    def make(**changes):
        return JudgeOptions("openai:m", **{"base_url": judge_server.url, "prices": prices, "attempts": 3, **changes})

    return make


def texts(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_labels_the_budget_once_and_writes_what_it_cost(pool, tmp_path, options, judge_server):
    out = tmp_path / "labels.jsonl"
    report = label([str(pool)], out, options(budget=20))
    assert (report.examples, report.scored, report.unscored, report.not_asked, report.asked) == (20, 20, {}, 0, 20)
    assert report.usd == pytest.approx(20 * 0.0002)
    rows = texts(out)
    assert {"id", "digest", "sensibility", "rationality", "judge", "rubric", "time"} == set(rows[0])
    manifest = json.loads((tmp_path / "labels.manifest.json").read_text())
    assert (manifest["scored"], manifest["answers"], manifest["usd"]) == (20, 20, report.usd)
    assert manifest["forms"] == {"json_schema": 20}

    before = out.read_bytes(), (tmp_path / "labels.manifest.json").read_bytes()
    again = label([str(pool)], out, options(budget=20))
    assert (again.asked, again.scored, again.usd) == (0, 20, report.usd)
    assert (out.read_bytes(), (tmp_path / "labels.manifest.json").read_bytes()) == before
    more = label([str(pool)], out, options(budget=30))
    assert (more.asked, more.scored) == (10, 30)
    assert set(judge_server.asked.values()) == {1}


def test_the_labels_join_to_the_dialogues_they_are_about(pool, tmp_path, options):
    label([str(pool)], tmp_path / "labels.jsonl", options(budget=5))
    rejected: Counter[str] = Counter()
    found = load_labelled(
        tmp_path / "labels.jsonl", stream_examples([str(pool)], "every-turn", rejected), Rubric.load()
    )
    assert found.scores.tolist() == [[7, 3]] * 5
    assert not rejected


def test_the_same_text_under_two_ids_is_asked_once(tmp_path, options, judge_server):
    pool = tmp_path / "twins.jsonl"
    turns = [{"role": "speaker", "text": "Hello."}, {"role": "listener", "text": "Hi."}]
    pool.write_text("".join(json.dumps({"id": name, "turns": turns}) + "\n" for name in "abc"))
    assert label([str(pool)], tmp_path / "labels.jsonl", options()).examples == 1
    assert judge_server.asked.total() == 1


def test_every_example_of_a_bad_server_ends_scored_or_counted(pool, tmp_path, options, judge_server, reply):
    ways = [
        lambda times: reply(),
        lambda times: reply(status=429, headers={"Retry-After": "0.1"}) if times == 1 else reply(),
        lambda times: reply(status=500) if times == 1 else reply(),
        lambda times: reply(status=500, headers={"Retry-After": "0"}),
        lambda times: reply(content="{broken"),
        lambda times: reply(content='Well, {"sensibility": 4, "rationality": 6}, I would say.'),
        lambda times: reply(content='{"sensibility": 14, "rationality": 6}'),
        lambda times: reply(content='{"sensibility": 4}'),
        lambda times: reply(body=b"<html>"),
        lambda times: (time.sleep(2.5), reply())[1],
    ]

    def behave(request, times):
        number = int(request["messages"][-1]["content"].split("Story ")[1].split(".")[0])
        return ways[number % 10](times)

    judge_server.behave = behave
    out = tmp_path / "labels.jsonl"
    report = label([str(pool)], out, options(timeout=1.5))
    # Three examples of each way: the 1st, 2nd, 3rd and 6th end well.
    assert report.scored == 12 == len(texts(out))
    assert report.unscored == {
        "http-500": 3,
        "no-verdict": 3,
        "out-of-range": 3,
        "missing-dimension": 3,
        "bad-response": 3,
        "timeout": 3,
    }
    assert report.examples == 30 == report.scored + sum(report.unscored.values())
    with sqlite3.connect(tmp_path / "labels.sqlite") as store:
        kept = [raw for (raw,) in store.execute("SELECT raw FROM answers WHERE reason = 'no-verdict'")]
    assert kept == ["{broken"] * 3

    # What was answered badly is not asked again unless told to; what was not answered is.
    judge_server.behave = lambda request, times: reply()
    again = label([str(pool)], out, options())
    assert (again.asked, again.scored) == (6, 18)
    better = label([str(pool)], out, options(retry_unscored=True))
    assert (better.asked, better.scored, better.unscored) == (12, 30, {})
    # The answers that could not be read were paid for: 18 + 12 with scores, 9 with tokens counted and without scores,
    # 3 whose tokens nobody counted.
    assert better.usd > 39 * 0.0002


def test_a_judge_of_whom_nothing_can_be_read_is_not_asked_all(pool, tmp_path, options, judge_server, reply):
    judge_server.behave = lambda request, times: reply(content="")
    message = r"none of the first 20 answers could be read \(empty-answer\).*raise --max-tokens.*--retry-unscored"
    with pytest.raises(EmpathyError, match=message):
        label([str(pool)], tmp_path / "labels.jsonl", options(concurrency=1))
    assert judge_server.asked.total() == 20
    # They are kept. Asked anew, one that can be read is enough to go on.
    judge_server.behave = lambda request, times: reply(content="") if judge_server.asked.total() > 21 else reply()
    again = label([str(pool)], tmp_path / "labels.jsonl", options(concurrency=1, retry_unscored=True))
    assert (again.asked, again.scored, again.unscored) == (30, 1, {"empty-answer": 29})


def test_never_spends_more_than_the_limit(pool, tmp_path, options, judge_server):
    out = tmp_path / "labels.jsonl"
    limited = options(max_usd=0.0055, concurrency=4)
    report = label([str(pool)], out, limited)
    assert 0 < report.scored < 30
    assert report.scored + report.not_asked == 30
    assert report.usd <= 0.0055
    # Run again, the limit still holds for all answers together; a higher one goes on.
    again = label([str(pool)], out, limited)
    assert (again.asked, again.usd) == (0, report.usd)
    rest = label([str(pool)], out, options(max_usd=1))
    assert (rest.asked, rest.scored) == (30 - report.scored, 30)
    assert set(judge_server.asked.values()) == {1}


def test_a_limit_holds_where_the_server_counts_no_tokens(pool, tmp_path, options, judge_server, reply):
    judge_server.behave = lambda request, times: reply(usage=False)
    report = label([str(pool)], tmp_path / "labels.jsonl", options(max_usd=0.02))
    assert 0 < report.scored < 30
    assert 0 < report.usd <= 0.02


def test_a_limit_needs_a_price(pool, tmp_path, options, judge_server):
    with pytest.raises(EmpathyError, match="--max-usd needs a price"):
        label([str(pool)], tmp_path / "labels.jsonl", options(max_usd=1, prices=None))
    assert judge_server.asked.total() == 0


def test_a_plan_asks_and_writes_nothing_and_counts_what_is_stored(pool, tmp_path, options, judge_server):
    out = tmp_path / "labels.jsonl"
    before = sorted(tmp_path.iterdir())
    plan = plan_labels([str(pool)], out, options(budget=20))
    assert (plan.examples, plan.stored, plan.calls) == (20, 0, 20)
    assert plan.usd == pytest.approx((plan.prompt_tokens * 1 + plan.completion_tokens * 10) / 1e6)
    assert sorted(tmp_path.iterdir()) == before
    assert judge_server.asked.total() == 0
    label([str(pool)], out, options(budget=15))
    plan = plan_labels([str(pool)], out, options(budget=20))
    assert (plan.stored, plan.calls) == (15, 5)
    assert plan_labels([str(pool)], out, JudgeOptions("openai:gpt-4o-mini", budget=20)).usd is not None
    assert plan_labels([str(pool)], out, JudgeOptions("openai:unheard-of", budget=20)).usd is None


def test_a_dead_server_is_not_asked_a_thousand_times(pool, tmp_path, options, judge_server, reply):
    judge_server.behave = lambda request, times: reply(status=500, headers={"Retry-After": "0"})
    with pytest.raises(EmpathyError, match=r"last 2\d questions got no answer \(http-500\)"):
        label([str(pool)], tmp_path / "labels.jsonl", options(attempts=1, concurrency=2))
    assert judge_server.asked.total() < 30
    assert not (tmp_path / "labels.jsonl").exists()


def test_what_arrived_before_a_refusal_is_kept(pool, tmp_path, options, judge_server, reply):
    judge_server.behave = lambda request, times: reply() if judge_server.asked.total() <= 10 else reply(status=401)
    with pytest.raises(EmpathyError, match="refused the key"):
        label([str(pool)], tmp_path / "labels.jsonl", options(concurrency=1))
    judge_server.behave = lambda request, times: reply()
    assert label([str(pool)], tmp_path / "labels.jsonl", options()).asked == 20


@pytest.mark.parametrize("last", ["the manifest", "the labels"])
def test_killed_while_it_writes_the_same_command_goes_on(pool, options, judge_server, monkeypatch, last):
    from efficient_empathy.distill import labelling

    def killed(*_):
        raise KeyboardInterrupt

    folder = pool.parent
    writes = {"the manifest": "write_manifest_file", "the labels": "write_labels"}
    with monkeypatch.context() as patch:
        patch.setattr(labelling, writes[last], killed)
        with pytest.raises(KeyboardInterrupt):
            label([str(folder)], folder / "labels.jsonl", options())
    report = label([str(folder)], folder / "labels.jsonl", options())
    assert (report.asked, report.scored, report.rejected) == (0, 30, {})
    assert check_labels(folder / "labels.jsonl") is not None


def test_the_store_is_no_file_that_is_written_over(pool, tmp_path, options):
    for store in ("labels.jsonl", "labels.manifest.json"):
        with pytest.raises(EmpathyError, match="name another file"):
            label([str(pool)], tmp_path / "labels.jsonl", options(store=tmp_path / store))


def test_nothing_to_judge(tmp_path, options):
    (tmp_path / "pool.jsonl").write_text('{"what": 1}\n')
    with pytest.raises(EmpathyError, match=r"no listener turn to judge in .*1 rows could not be read"):
        label([str(tmp_path / "pool.jsonl")], tmp_path / "labels.jsonl", options())


def test_progress_counts_up_to_all(pool, tmp_path, options):
    seen = []
    label([str(pool)], tmp_path / "labels.jsonl", options(budget=5), progress=seen.append)
    assert [state.done for state in seen] == [0, 1, 2, 3, 4, 5]
    assert {state.total for state in seen} == {5}
    assert seen[-1].usd == pytest.approx(0.001)


def run_label(pool: Path, url: str, *more: str) -> list[str]:
    code = "from efficient_empathy.cli import main; main()"
    paths = ["--dialogues", str(pool), "-o", str(pool.parent / "labels.jsonl")]
    return [sys.executable, "-c", code, "label", *paths, "--judge", "openai:m", "--base-url", url, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ROOT, "OPENAI_API_KEY": CANARY, "OPENAI_LOG": "debug"}


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 8])
def test_killed_and_run_again_asks_nothing_that_was_answered(pool, judge_server, reply, concurrency):
    def slowly(request, times):
        time.sleep(0.1)
        return reply()

    judge_server.behave = slowly
    command = run_label(pool, judge_server.url, "--concurrency", str(concurrency))
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while judge_server.asked.total() < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.3)
    asked_before = set(judge_server.asked)
    assert 12 <= len(asked_before) < 30
    with sqlite3.connect(pool.parent / "labels.sqlite") as store:
        (kept,) = store.execute("SELECT COUNT(*) FROM answers").fetchone()
    # Only questions under way at the kill have no answer in the store.
    assert len(asked_before) - concurrency <= kept <= len(asked_before)

    done = subprocess.run([*command, "--json"], env=environment(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["asked"] == 30 - kept
    twice = [text for text, times in judge_server.asked.items() if times > 1]
    assert len(twice) == len(asked_before) - kept
    assert len(judge_server.asked) == 30


def test_the_key_is_in_no_file_and_in_no_output(pool, judge_server, reply):
    def echo(request, times):
        said = judge_server.authorizations[-1]
        if judge_server.asked.total() % 2:
            return reply(content=f'{{"sensibility": 1, "rationality": 2}} {said}')
        return reply(status=400, message=f"what is {said}?")

    judge_server.behave = echo
    done = subprocess.run(
        run_label(pool, judge_server.url), env=environment(), capture_output=True, text=True, check=True
    )
    assert judge_server.authorizations[0] == f"Bearer {CANARY}"
    assert CANARY not in done.stdout + done.stderr
    for path in pool.parent.iterdir():
        assert CANARY.encode() not in path.read_bytes()


def test_the_command_exits_2_with_one_line_for_what_the_user_can_mend(pool, judge_server, reply):
    judge_server.behave = lambda request, times: reply(status=401)
    quiet = {**environment(), "OPENAI_LOG": ""}
    command = run_label(pool, judge_server.url)
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: the judge at http://127.0.0.1")
    assert done.stderr.count("\n") == 1


def test_questions_that_are_always_refused_do_not_stop_a_later_run(pool, tmp_path, options, judge_server, reply):
    def behave(request, times):
        number = int(request["messages"][-1]["content"].split("Story ")[1].split(".")[0])
        return reply(status=400, message="this dialogue is found unfit") if number < 25 else reply()

    judge_server.behave = behave
    out = tmp_path / "labels.jsonl"
    # Five answers in the store, and 25 questions left that no run will get an answer to.
    first = label([str(pool)], out, options(concurrency=30, attempts=1))
    assert (first.scored, first.unscored) == (5, {"http-400": 25})
    again = label([str(pool)], out, options(concurrency=1, attempts=1))
    assert (again.asked, again.scored, again.unscored) == (25, 5, {"http-400": 25})


def test_a_judge_that_refuses_everything_is_given_up(pool, tmp_path, options, judge_server, reply):
    judge_server.behave = lambda request, times: reply(status=400, message="bad request")
    with pytest.raises(EmpathyError, match=r"last 2\d questions got no answer \(http-400\)"):
        label([str(pool)], tmp_path / "labels.jsonl", options(attempts=1, concurrency=2))


def test_a_limit_is_passed_by_one_answer_of_a_model_that_thinks(pool, tmp_path, options, judge_server, reply):
    def thinking(request, times):
        return reply(status=400, message="Unsupported parameter: 'max_tokens'.") if "max_tokens" in request else reply()

    judge_server.behave = thinking
    # 4,096 tokens at $10 a million would cost $0.041: after the first answer nothing more is asked.
    report = label([str(pool)], tmp_path / "labels.jsonl", options(max_usd=0.03, concurrency=8))
    assert report.scored == 1
    assert judge_server.asked.total() == 2


def test_a_question_flagged_with_403_does_not_stop_the_next_run(pool, tmp_path, options, judge_server, reply):
    judge_server.behave = lambda request, times: reply(status=403 if "Story 7." in str(request) else 200)
    for asked in (30, 1):
        report = label([str(pool)], tmp_path / "labels.jsonl", options())
        assert (report.asked, report.scored, report.unscored) == (asked, 29, {"http-403": 1})


def test_a_key_that_may_do_nothing_stops_a_fresh_run(pool, tmp_path, options, judge_server, reply):
    judge_server.behave = lambda request, times: reply(status=403)
    with pytest.raises(EmpathyError, match=r"no answer \(http-403\).*when the key may be used for this model"):
        label([str(pool)], tmp_path / "labels.jsonl", options(concurrency=1))
    assert judge_server.asked.total() == 20


def test_what_timed_out_counts_against_the_limit(pool, tmp_path, options, judge_server, reply):
    judge_server.behave = lambda request, times: (time.sleep(0.5), reply())[1]
    report = label([str(pool)], tmp_path / "labels.jsonl", options(timeout=0.1, max_usd=0.0055, concurrency=1))
    assert report.usd == 0
    assert report.unscored == {"timeout": report.asked}
    assert 0 < report.asked < 20


def test_each_attempt_that_may_be_billed_counts_against_the_limit(pool, tmp_path, options, judge_server, reply, caplog):
    """Each question's first attempt comes back as 503: the server behind the gateway may have worked and may bill it."""
    busy = reply(status=503, headers={"Retry-After": "0"})
    judge_server.behave = lambda request, times: busy if times == 1 else reply()
    out = tmp_path / "labels.jsonl"
    report = label([str(pool)], out, options(max_usd=0.1, concurrency=4))
    with sqlite3.connect(tmp_path / "labels.sqlite") as store:
        bounds = [usd for (usd,) in store.execute("SELECT usd FROM lost")]
    # $10 a million: 256 tokens of the longest answer are $0.00256, and the question comes on top.
    assert min(bounds) > 0.00256
    assert report.usd + sum(bounds) <= 0.1
    assert report.usd + sum(bounds) > 0.08
    assert 0 < report.scored < 30  # without the lost attempts 30 answers of $0.0002 would cost $0.006
    assert len(bounds) >= report.scored
    assert f"${sum(bounds):.4f} of --max-usd are set aside" in caplog.text
    # They count in a later run, too.
    judge_server.behave = lambda request, times: reply()
    again = label([str(pool)], out, options(max_usd=0.1))
    assert again.asked < 3
    assert again.usd + sum(bounds) <= 0.1
    assert label([str(pool)], out, options(max_usd=1)).scored == 30


def test_attempts_that_were_lost_without_a_price_are_priced_later(pool, tmp_path, options, judge_server, reply):
    judge_server.behave = lambda request, times: (time.sleep(0.5), reply())[1]
    out = tmp_path / "labels.jsonl"
    first = label([str(pool)], out, options(prices=None, timeout=0.1, budget=5))
    assert first.unscored == {"timeout": 5}
    judge_server.behave = lambda request, times: reply()
    # Five times more than $0.00256 are taken.
    assert label([str(pool)], out, options(max_usd=0.0128, budget=5)).asked == 0


def test_a_name_that_would_be_read_as_something_else_is_refused_before_the_judge_is_asked(
    pool, tmp_path, options, judge_server
):
    for name in ("labels.jsonl.gz", "labels.jsonl.zst", "labels.parquet"):
        for act in (label, plan_labels):
            with pytest.raises(EmpathyError, match=r"written as plain JSONL, .* name it '.*labels\.jsonl'"):
                act([str(pool)], tmp_path / name, options())
    assert judge_server.asked.total() == 0
    assert not list(tmp_path.glob("labels*"))


def test_dialogues_are_not_written_over_and_labels_beside_them_are_no_dialogues(pool, options, judge_server):
    before = pool.read_bytes()
    with pytest.raises(EmpathyError, match="is one of the files of dialogues"):
        label([str(pool)], pool, options())
    assert pool.read_bytes() == before
    assert judge_server.asked.total() == 0
    folder = pool.parent
    for asked in (30, 0):
        report = label([str(folder)], folder / "labels.jsonl", options())
        assert (report.asked, report.scored, report.rejected) == (asked, 30, {})
        inputs = read_manifest_file(folder / "labels.manifest.json")["inputs"]
        assert [Path(record["path"]).name for record in inputs] == [pool.name]
    assert (
        find_files([str(folder)])
        == find_files([str(folder / "*.jsonl")])
        == find_files([str(folder / "*l*")])
        == [str(pool)]
    )
