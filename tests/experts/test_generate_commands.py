"""``ee-cli generate``: what it prints, what it refuses, and --chat through a pipe."""

import orjson
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="torch is part of the experts extra")

from efficient_empathy.cli import app
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.generate_commands import generate_command


@pytest.fixture
def contexts(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"id": "a", "prompt": "my dog lost", "response": "so sorry"}, {"id": "b", "prompt": "why"}]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return str(path)


def _run(*arguments, **more):
    return CliRunner().invoke(
        generate_command, [str(argument) for argument in arguments], catch_exceptions=False, **more
    )


def test_answers_a_file(tiny_lm, contexts, tmp_path):
    arguments = (contexts, "--model", tiny_lm, "--max-tokens", 128, "--max-new-tokens", 5, "-o", tmp_path / "out")
    shown = _run(*arguments).stdout
    assert ["contexts", "2"] in [line.split() for line in shown.splitlines()]
    assert str(tmp_path / "out") in shown
    assert len((tmp_path / "out/answers.jsonl").read_bytes().splitlines()) == 2
    again = _run(*arguments, "--json")
    assert "Already done" in again.stderr
    assert orjson.loads(again.stdout)["counts"]["references"] == 1


def test_answers_that_were_damaged_are_made_again(tiny_lm, contexts, tmp_path, caplog):
    arguments = (contexts, "--model", tiny_lm, "--max-tokens", 128, "--max-new-tokens", 5, "-o", tmp_path / "out")
    _run(*arguments)
    answers = tmp_path / "out" / "answers.jsonl"
    whole = answers.read_bytes()
    for damage in (lambda: answers.write_bytes(whole[:-9]), answers.unlink):
        damage()
        assert "Already done" not in _run(*arguments).stderr
        assert "is not as it was written: 'answers.jsonl'" in caplog.text
        assert answers.read_bytes() == whole
        caplog.clear()


def test_a_base_model_is_not_named_by_base(tiny_lm, contexts, tmp_path):
    with pytest.raises(EmpathyError, match="Name a base model with --model"):
        _run(contexts, "--model", tiny_lm, "--base", "some/model", "-o", tmp_path / "out")


def test_an_instruction_of_none(tiny_lm, contexts, tmp_path):
    out = tmp_path / "out"
    shown = _run(contexts, "--model", tiny_lm, "--max-tokens", 128, "--system", "", "--json", "-o", out).stdout
    assert orjson.loads(shown)["renderer"]["system"] is None


def test_a_dry_run_needs_no_model_and_writes_nothing(contexts, tmp_path):
    shown = _run(contexts, "--model", "/nowhere", "-o", tmp_path / "out", "--dry-run", "--json").stdout
    assert orjson.loads(shown) == {"contexts": 2, "conversations": 2, "references": 1, "rejected": {}}
    assert not (tmp_path / "out").exists()


def test_chat_through_a_pipe(tiny_lm):
    arguments = ("--model", tiny_lm, "--max-tokens", 128, "--max-new-tokens", 5, "--chat")
    found = _run(*arguments, input="my dog lost\n/reset\nmy dog lost\n")
    first, reset, second = found.stdout.splitlines()
    assert reset == "(started over)"
    assert first == second
    assert "Talking to tiny-lm" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to answer"),
        (("in.jsonl",), "-o FOLDER"),
        (("--chat", "in.jsonl"), "leave CONTEXTS out"),
        (("--chat", "-o", "x"), "leave --out out"),
        (("in.jsonl", "-o", "x", "--temperature", "1"), "--temperature is for drawn tokens"),
        (("in.jsonl", "-o", "x", "--batch-size", "0"), "batch_size must be from 1"),
    ],
)
def test_what_does_not_go_together(arguments, message):
    with pytest.raises(EmpathyError, match=message):
        _run(*arguments)


def test_gates_of_a_model_without_a_router_are_refused_before_it_answers(tiny_lm, contexts, tmp_path):
    with pytest.raises(EmpathyError, match="is no mixture"):
        _run(contexts, "--model", tiny_lm, "--max-tokens", 128, "--show-gates", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_expert_brings_its_own_instruction(subsets):
    with pytest.raises(EmpathyError, match="prompted as it was trained"):
        _run("in.jsonl", "-o", "x", "--model", subsets, "--system", "be brief")


def test_the_group_knows_the_command():
    found = CliRunner().invoke(app, ["generate", "--help"])
    assert found.exit_code == 0
    assert "--chat" in found.stdout
