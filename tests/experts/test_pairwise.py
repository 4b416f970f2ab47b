"""Pairwise judging from end to end, against a real server with manners of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.answer_folders import read_answers
from efficient_empathy.experts.pairwise import compare, compare_all, plan_pairs, recompute
from efficient_empathy.experts.pairwise_options import PairwiseOptions, pairwise_options
from efficient_empathy.experts.pairwise_report import pairwise_section
from efficient_empathy.manifest import changed_files, write_manifest

ROOT = str(Path(__file__).parents[2])
REPLIES = re.compile(r"<reply_a>\n(.*?)\n</reply_a>\n\n<reply_b>\n(.*?)\n</reply_b>", re.DOTALL)


def write_answers(folder: Path, texts: list[str], prefix: str = "c") -> Path:
    """An answers folder; two contexts a conversation."""
    folder.mkdir()
    with open(folder / "answers.jsonl", "w") as file:
        for index, text in enumerate(texts):
            context = [{"role": "speaker", "text": f"Story {index}."}]
            row = {"id": f"{prefix}{index}", "dialogue_id": f"d{index // 2}", "context": context, "answer": text}
            more = {"reference": None, "tokens": 3, "finish": "end", "nll": None, "nll_tokens": None}
            file.write(json.dumps({**row, **more}) + "\n")
    write_manifest(folder, "answers", {}, ["answers.jsonl"])
    return folder


@pytest.fixture
def systems(tmp_path) -> dict[str, Path]:
    """Twelve answers each: ``long`` has the longer one in 9 contexts, 2 are equal, 1 is empty."""
    long = [f"I am so sorry about story {i}, truly." for i in range(12)]
    short = [f"Oh, story {i}." for i in range(12)]
    long[1] = short[1] = "Same words."
    long[2], short[2] = "Same. ", "Same."
    long[3] = ""
    return {name: write_answers(tmp_path / name, texts) for name, texts in (("long", long), ("short", short))}


@pytest.fixture
def options(judge_server, tmp_path, monkeypatch):
    """Options for the test server: $0.0002 an answer of 100 + 10 tokens."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {m: {input: 1, output: 10}}")

    def make(pairs=200, criteria=None, **changes):
        given = {"base_url": judge_server.url, "prices": prices, "attempts": 2, "concurrency": 4, **changes}
        return PairwiseOptions(JudgeOptions("openai:m", **given), criteria, pairs, 200)

    return make


def shown(request: dict) -> tuple[str, str]:
    """Reply A and reply B as the judge reads them."""
    return REPLIES.search(request["messages"][-1]["content"]).groups()


def say(reply, letter: str):
    return reply(content=json.dumps({"verdict": letter}))


@pytest.fixture
def longer(judge_server, reply):
    """Makes the server prefer the longer reply."""

    def behave(request, times):
        a, b = (0 if text.startswith("(The listener") else len(text) for text in shown(request))
        return say(reply, "A" if a > b else "B")

    judge_server.behave = behave


def test_a_judge_that_prefers_the_longer_reply(systems, options, longer, judge_server, tmp_path):
    out = tmp_path / "out"
    result = compare(systems["long"], systems["short"], options(), out)
    # 12 pairs: 2 equal (blanks at the ends do not count), 1 lost with nothing said, 9 won.
    assert (result.first, result.second) == ("long", "short")
    assert (result.wins, result.ties, result.losses, result.identical) == (9, 2, 1, 2)
    assert result.empty == (1, 0)
    assert result.win_rate.value == pytest.approx(10 / 12)
    assert (result.flip_rate, result.first_place, result.longer_wins) == (0, 0.5, 1)
    assert result.sign_test == result.sign_test_holm == pytest.approx(2 * (1 + 10) / 1024)
    # Two orders of ten pairs, each once; the equal ones were not asked about.
    assert judge_server.asked.total() == 20 == len(judge_server.asked)
    request = judge_server.requests[0]
    assert request["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == ["A", "B", "C"]

    rows = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    by_id = {row["id"]: row for row in rows}
    assert len(rows) == 12
    assert by_id["c3"]["verdicts"] == ["second", "second"]
    assert by_id["c0"]["shares"] == [{"first": 1, "second": 0, "tie": 0}] * 2
    assert (by_id["c2"]["identical"], by_id["c2"]["outcome"]) == (True, "tie")
    assert recompute(out / "pairs.jsonl", 200) == (result,)
    assert json.loads((out / "results.json").read_text())[0]["shares"]["wins"] == pytest.approx(9 / 12)
    assert changed_files(out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["kind"], manifest["answers"], manifest["usd"]) == ("pairwise", 20, pytest.approx(0.004))
    assert manifest["systems"]["long"] == [read_answers(systems["long"]).digest]

    # Run again, nothing is asked and every byte is the same; the other way round, the same questions serve.
    before = {path.name: path.read_bytes() for path in out.glob("*.json*")}
    assert compare(systems["long"], systems["short"], options(), out) == result
    assert {path.name: path.read_bytes() for path in out.glob("*.json*")} == before
    store = out / "answers.sqlite"
    back = compare(systems["short"], systems["long"], options(store=store), tmp_path / "back")
    assert (back.wins, back.losses, back.longer_wins) == (1, 9, 1)
    assert back.length_controlled.value == pytest.approx(1 - result.length_controlled.value)
    assert judge_server.asked.total() == 20


def test_a_judge_that_prefers_the_first_place_gives_only_ties(systems, options, judge_server, reply, tmp_path):
    judge_server.behave = lambda request, times: say(reply, "A")
    result = compare(systems["long"], systems["short"], options(), tmp_path / "out")
    assert (result.wins, result.ties, result.losses) == (0, 12, 0)
    assert (result.win_rate.value, result.win_rate.low, result.win_rate.high) == (0.5, 0.5, 0.5)
    assert (result.flip_rate, result.first_place, result.sign_test, result.longer_wins) == (1, 1, 1, None)


def test_what_cannot_be_read_is_kept_and_unscored(systems, options, judge_server, reply, tmp_path):
    def behave(request, times):
        a, _ = shown(request)
        if "story 4" in a:
            return reply(content='{"verdict": ')
        if "story 5" in a:
            return reply(content='{"verdict": "both"}')
        return reply(status=400) if "story 6" in a else say(reply, "C")

    judge_server.behave = behave
    args = systems["long"], systems["short"]
    result = compare(*args, options(), tmp_path / "out")
    # Stories 4, 5 and 6 fail in both orders.
    assert result.unscored == {"http-400": 1, "no-verdict": 1, "not-offered": 1}
    assert (result.wins, result.ties, result.losses, result.pairs) == (0, 9, 0, 12)
    judge_server.behave = lambda request, times: say(reply, "C")
    before = judge_server.asked.total()
    assert compare(*args, options(), tmp_path / "out").unscored == {"no-verdict": 1, "not-offered": 1}
    assert judge_server.asked.total() == before + 2
    assert compare(*args, options(retry_unscored=True), tmp_path / "out").ties == 12
    assert judge_server.asked.total() == before + 6


def test_what_arrived_before_a_refusal_is_not_asked_again(systems, options, judge_server, reply, tmp_path):
    judge_server.behave = lambda r, times: say(reply, "C") if judge_server.asked.total() <= 8 else reply(status=401)
    args = systems["long"], systems["short"]
    with pytest.raises(EmpathyError, match="refused the key"):
        compare(*args, options(concurrency=1), tmp_path / "out")
    assert not (tmp_path / "out" / "pairs.jsonl").exists()
    judge_server.behave = lambda request, times: say(reply, "C")
    assert compare(*args, options(), tmp_path / "out").ties == 12
    # Only the question that was refused stands twice.
    assert sorted(judge_server.asked.values()) == [1] * 19 + [2]


@pytest.mark.slow
def test_killed_and_run_again_asks_nothing_twice(systems, options, judge_server, reply, tmp_path):
    def slowly(request, times):
        time.sleep(0.1)
        return say(reply, "C")

    judge_server.behave = slowly
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from efficient_empathy.distill.options import JudgeOptions\n"
        "from efficient_empathy.experts.pairwise import compare\n"
        "from efficient_empathy.experts.pairwise_options import PairwiseOptions\n"
        "first, second, out, url = sys.argv[1:]\n"
        "options = PairwiseOptions(JudgeOptions('openai:m', base_url=url, concurrency=1))\n"
        "compare(Path(first), Path(second), options, Path(out))\n"
    )
    paths = [str(systems["long"]), str(systems["short"]), str(tmp_path / "out"), judge_server.url]
    process = subprocess.Popen([sys.executable, "-c", script, *paths], env={**os.environ, "PYTHONPATH": ROOT})
    deadline = time.monotonic() + 60
    while judge_server.asked.total() < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 6 <= len(judge_server.asked) < 20
    assert compare(systems["long"], systems["short"], options(), tmp_path / "out").ties == 12
    # At most the one question under way at the kill.
    assert len(judge_server.asked) == 20
    assert judge_server.asked.total() <= 21


def test_the_limit_is_kept_and_what_is_left_is_counted(systems, options, longer, tmp_path):
    limited = options(max_usd=0.0035, concurrency=1, max_tokens=16)
    report = compare_all({n: [f] for n, f in systems.items()}, limited, tmp_path / "out", "short")
    (result,) = report.results
    assert 0 < result.not_asked < 10
    assert 0 < report.usd <= 0.0035
    assert result.scored + result.not_asked == 12
    with pytest.raises(EmpathyError, match="--max-usd needs a price"):
        compare(systems["long"], systems["short"], options(max_usd=1, prices=None), tmp_path / "out")


def test_several_systems_meet_the_baseline_on_the_same_contexts(systems, options, longer, judge_server, tmp_path):
    copy = write_answers(tmp_path / "copy", [answer.text for answer in read_answers(systems["long"]).answers])
    three = {"short": [systems["short"]], "long": [systems["long"]], "copy": [copy]}
    report = compare_all(three, options(pairs=6), tmp_path / "out")
    assert [(r.first, r.second, r.pairs) for r in report.results] == [("long", "short", 6), ("copy", "short", 6)]
    one, other = report.results
    assert (one.wins, one.sign_test) == (other.wins, other.sign_test)
    assert one.sign_test_holm == pytest.approx(min(1, 2 * one.sign_test))
    rows = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows[:6]] == [row["id"] for row in rows[6:]]
    # Six conversations hold the twelve contexts: one of each.
    assert len({row["dialogue_id"] for row in rows[:6]}) == 6
    # Equal texts are asked about once, whoever wrote them.
    assert set(judge_server.asked.values()) == {1}
    assert report.asked == judge_server.asked.total() <= 12


def test_training_seeds_answer_in_turn(systems, options, longer, tmp_path):
    silent = write_answers(tmp_path / "silent", [""] * 12)
    report = compare_all({"a": [systems["long"], silent], "b": [systems["short"]]}, options(), tmp_path / "out", "b")
    # Six contexts of the twelve are answered by the second seed, which says nothing.
    assert report.results[0].empty[0] in (6, 7)
    assert report.results[0].losses >= 6


def test_a_plan_asks_nothing_and_counts_what_is_stored(systems, options, longer, judge_server, tmp_path):
    out, given = tmp_path / "out", {n: [f] for n, f in systems.items()}
    plan = plan_pairs(given, options(), out)
    assert (plan.comparisons, plan.pairs, plan.identical, plan.asking.calls) == (1, 12, 2, 20)
    assert plan.asking.usd == pytest.approx((plan.asking.prompt_tokens + 10 * plan.asking.completion_tokens) / 1e6)
    assert judge_server.asked.total() == 0
    assert not out.exists()
    compare_all(given, options(), out)
    assert (plan_pairs(given, options(), out).asking.stored, plan_pairs(given, options(), out).asking.calls) == (20, 0)
    # Another question is another answer.
    assert plan_pairs(given, options(criteria="Shorter is better."), out).asking.calls == 20
    section = pairwise_section(given, options(prices=None), out, dry_run=True)
    assert "calls               0, two a pair" in section.text
    assert "no price for 'openai:m'" in section.text
    assert section.facts["asking"]["usd"] is None


def test_the_section_says_it_in_text_and_facts(systems, options, longer, tmp_path):
    given = {n: [f] for n, f in systems.items()}
    section = pairwise_section(given, options(), tmp_path / "out", baseline="short")
    assert "long against short: 12 pairs, 12 scored" in section.text
    assert "win 9 (75.0 %), tie 2 (16.7 %), lose 1 (8.3 %)" in section.text
    assert re.search(r"won by the longer one +100\.0 %", section.text)
    assert "$0.0040" in section.text
    assert json.loads(json.dumps(section.facts))["results"][0]["wins"] == 9


def test_refuses_what_cannot_be_compared(systems, options, tmp_path):
    other = write_answers(tmp_path / "other", ["x"] * 12, prefix="e")
    with pytest.raises(EmpathyError, match="do not answer the same contexts"):
        compare(systems["long"], other, options(), tmp_path / "out")
    with pytest.raises(EmpathyError, match="at least two systems"):
        compare_all({"long": [systems["long"]]}, options(), tmp_path / "out")
    with pytest.raises(EmpathyError, match="no system 'x' to be the baseline"):
        compare_all({n: [f] for n, f in systems.items()}, options(), tmp_path / "out", "x")
    with pytest.raises(EmpathyError, match="are called the same"):
        compare(systems["long"], systems["long"], options(), tmp_path / "out")
    with pytest.raises(EmpathyError, match="pairs must be from 1 to"):
        options(pairs=0)
    (tmp_path / "pairs.jsonl").write_text('{"id": "c1"}\n')
    with pytest.raises(EmpathyError, match="line 1 is no row of verdicts"):
        recompute(tmp_path / "pairs.jsonl")


def test_every_flag_reaches_the_object(tmp_path):
    seen = []

    @click.command()
    @pairwise_options()
    @click.option("--seed", type=int, default=0)
    @click.option("--resamples", type=int, default=1000)
    def command(pairing: PairwiseOptions | None, seed: int, resamples: int) -> None:
        seen.append(pairing)

    for line in (
        "",
        "--judge openai:m",
        "--judge local:m --pairs 5 --criteria x --seed 3 --max-usd 2 --resamples 50",
    ):
        CliRunner().invoke(command, line.split(), catch_exceptions=False)
    judging = JudgeOptions("local:m", seed=3, max_usd=2)
    assert seen == [None, PairwiseOptions(JudgeOptions("openai:m")), PairwiseOptions(judging, "x", 5, 50)]
