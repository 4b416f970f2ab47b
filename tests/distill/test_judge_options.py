"""The options of judging on the command line."""

import json
from pathlib import Path

import click
from click.testing import CliRunner

from efficient_empathy.distill.commands import label_command
from efficient_empathy.distill.judge_options import judge_options
from efficient_empathy.distill.options import JudgeOptions


def options_of(arguments: list[str], required: bool = True) -> JudgeOptions | None:
    seen = []

    @click.command()
    @judge_options(required)
    @click.option("--seed", type=int, default=0)
    def command(judging: JudgeOptions | None, seed: int, rubric: Path | None = None) -> None:
        seen.append(judging)

    CliRunner().invoke(command, arguments, catch_exceptions=False)
    return seen[0] if seen else None


def test_defaults_are_those_of_the_object():
    assert options_of(["--judge", "openai:m"]) == JudgeOptions("openai:m")


def test_every_flag_reaches_the_object(tmp_path):
    prices, store = tmp_path / "prices.yaml", tmp_path / "store.sqlite"
    flags = f"--judge local:m --budget 5 --seed 3 --concurrency 2 --max-usd 1.5 --retry-unscored --timeout 9 --prices {prices}"
    more = f"--max-tokens 99 --store {store} --base-url http://x/v1 --api-key-env KEY"
    assert options_of(f"{flags} {more}".split()) == JudgeOptions(
        "local:m",
        budget=5,
        seed=3,
        store=store,
        base_url="http://x/v1",
        api_key_env="KEY",
        concurrency=2,
        max_usd=1.5,
        prices=prices,
        retry_unscored=True,
        max_tokens=99,
        timeout=9,
    )


def test_a_command_that_can_do_without_a_judge_gets_none():
    assert options_of([], required=False) is None
    assert options_of(["--judge", "openai:m"], required=False) == JudgeOptions("openai:m")


def test_dry_run_prints_a_table_or_json(pool):
    arguments = [
        "--dialogues",
        str(pool),
        "-o",
        str(pool.parent / "l.jsonl"),
        "--judge",
        "openai:gpt-4o-mini",
        "--dry-run",
    ]
    table = CliRunner().invoke(label_command, arguments, catch_exceptions=False)
    assert "calls               30" in table.stdout
    assert "dollars             about 0.0" in table.stdout
    plan = json.loads(CliRunner().invoke(label_command, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert (plan["calls"], plan["stored"]) == (30, 0)
    unknown = [*arguments, "--base-url", "http://127.0.0.1:9/v1"]
    assert "no price for" in CliRunner().invoke(label_command, unknown, catch_exceptions=False).stdout


def test_exits_1_when_nothing_could_be_scored(pool, judge_server, reply, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge_server.behave = lambda request, times: reply(content="no")
    arguments = ["--dialogues", str(pool), "-o", str(pool.parent / "l.jsonl"), "--judge", "openai:m", "--json"]
    arguments += ["--budget", "20"]
    done = CliRunner().invoke(label_command, [*arguments, "--base-url", judge_server.url], catch_exceptions=False)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["unscored"] == {"no-verdict": 20}
    judge_server.behave = lambda request, times: reply()
    again = [*arguments, "--base-url", judge_server.url, "--retry-unscored"]
    assert CliRunner().invoke(label_command, again, catch_exceptions=False).exit_code == 0
