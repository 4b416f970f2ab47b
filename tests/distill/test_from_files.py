"""``ee-cli distill`` on files: where labels come from, how they find their dialogues, and what is refused."""

import re
import sys

import orjson
import pytest
from click.testing import CliRunner

from efficient_empathy.distill.commands import distill_command
from efficient_empathy.manifest import read_manifest, sha256_file
from efficient_empathy.scorer import Scorer

pytest.importorskip("torch", reason="torch is part of the distill extra")


def write_rows(path, rows):
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def dialogue_rows(examples):
    """Whole conversations: the synthetic ones hold two examples each, told here as one dialogue of four turns."""
    for first, second in zip(examples[::2], examples[1::2], strict=True):
        turns = [*first.context, first.response, second.context[-1], second.response]
        texts = [turn if isinstance(turn, str) else turn.text for turn in turns]
        roles = ("speaker", "listener", "speaker", "listener")
        yield {
            "id": first.dialogue_id,
            "turns": [{"role": role, "text": text} for role, text in zip(roles, texts, strict=True)],
        }


def label_rows(examples, scores):
    for example, (sensibility, rationality) in zip(examples, scores.tolist(), strict=True):
        yield {"id": example.id, "sensibility": sensibility, "rationality": rationality}


def own_rows(examples, scores):
    """Example and label in one."""
    for example, row in zip(examples, label_rows(examples, scores), strict=True):
        yield {**row, "conv_id": example.dialogue_id, "context": example.context[0].text, "response": example.response}


def call(*words):
    return CliRunner().invoke(distill_command, [str(word) for word in words], catch_exceptions=False)


def main_exit(monkeypatch, capsys, *words):
    """Exit code and stderr of ``ee-cli distill …``, as a shell sees them."""
    from efficient_empathy import cli

    monkeypatch.setattr(sys, "argv", ["ee-cli", "distill", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, capsys.readouterr().err


@pytest.fixture
def common(tiny_bert):
    return ("--backbone", tiny_bert, "--max-length", 64, "--holdout", 0.3, "--epochs", 1)


@pytest.mark.slow
def test_rows_that_hold_dialogue_and_labels_in_one(make_synthetic, common, tmp_path):
    labels = write_rows(tmp_path / "judged.jsonl", own_rows(*make_synthetic(60)))
    out = tmp_path / "scorer"
    result = call("--labels", labels, "-o", out, *common)
    assert result.exit_code == 0
    assert "sensibility (0 to 10), rationality (0 to 10)" in result.stdout
    assert "TF-IDF + ridge" in result.stdout
    manifest = read_manifest(out, "scorer")
    assert manifest["labels"]["examples"] == 60
    assert manifest["labels"]["file"] == {"name": "judged.jsonl", "sha256": sha256_file(labels)}
    assert manifest["labels"]["skipped"] == {}
    assert manifest["unlabelled_examples_read"] == 0
    assert Scorer.load(out, device="cpu").dimensions == ("sensibility", "rationality")


@pytest.mark.slow
def test_labels_are_joined_by_id_to_the_dialogues(make_synthetic, common, tmp_path):
    examples, scores = make_synthetic(80)
    dialogues = write_rows(tmp_path / "pool.jsonl", [*dialogue_rows(examples), {"id": "bad", "turns": 3}])
    stray = {"id": "nobody_turn:1", "sensibility": 3, "rationality": 4}
    labels = write_rows(tmp_path / "labels.jsonl", [*label_rows(examples[:60], scores[:60]), stray])
    out = tmp_path / "scorer"
    result = call("--dialogues", dialogues, "--labels", labels, "-o", out, *common, "--json")
    assert set(orjson.loads(result.stdout)["quality"]["systems"]) >= {"scorer", "mean"}
    manifest = read_manifest(out)
    assert manifest["labels"]["examples"] == 60
    assert manifest["labels"]["skipped"] == {"not-in-dialogues": 1}
    assert sum(manifest["labels"]["unreadable_rows"].values()) == 1
    assert manifest["unlabelled_examples_read"] == 20  # what was not judged


@pytest.mark.slow
def test_high_effort_from_files_learns_from_what_was_not_judged(make_synthetic, tiny_bert, tiny_options, tmp_path):
    from efficient_empathy.distill.from_files import DistillRequest, distill_from_files
    from efficient_empathy.distill.settings import PoolOptions

    examples, scores = make_synthetic(120)
    dialogues = write_rows(tmp_path / "pool.jsonl", dialogue_rows(examples))
    labels = write_rows(tmp_path / "labels.jsonl", label_rows(examples[:60], scores[:60]))
    plan = PoolOptions(teachers=1, rated_examples=20, student_epochs=1)
    options = tiny_options(tiny_bert, epochs=1, effort="high", pool=plan)
    distill_from_files(DistillRequest(tmp_path / "scorer", (str(dialogues),), labels, options=options))
    manifest = read_manifest(tmp_path / "scorer")
    assert (manifest["unlabelled_examples_read"], manifest["training"]["rated_pool_examples"]) == (60, 20)


@pytest.mark.slow
def test_a_judge_s_answers_become_a_scorer(make_synthetic, common, judge_server, reply, tmp_path):
    examples, scores = make_synthetic(60)
    dialogues = write_rows(tmp_path / "pool.jsonl", dialogue_rows(examples))
    by_response = {e.response: row for e, row in zip(examples, scores.astype(int).tolist(), strict=True)}

    def judge(request, times):
        response = request["messages"][-1]["content"].split("</dialogue>")[0].rsplit("Listener: ", 1)[1].strip()
        sensibility, rationality = by_response[response]
        return reply(f'{{"sensibility": {sensibility}, "rationality": {rationality}}}')

    judge_server.behave = judge
    words = ("--dialogues", dialogues, "--judge", "openai:m", "--base-url", judge_server.url, "--budget", 50)
    plan = call(*words, "-o", tmp_path / "scorer", *common, "--dry-run")
    assert plan.stdout.splitlines()[0].split() == ["examples", "50"]
    assert judge_server.requests == []
    assert not (tmp_path / "scorer").exists()
    call(*words, "-o", tmp_path / "scorer", *common)
    assert len(judge_server.requests) == 50
    manifest = read_manifest(tmp_path / "scorer")
    assert manifest["labels"]["examples"] == 50
    assert manifest["labels"]["judge"] == "openai:m"
    assert manifest["labels"]["asked"]["scored"] == 50
    assert manifest["unlabelled_examples_read"] == 10
    # The labels stay beside the folder: another scorer from them asks nobody.
    call("--labels", tmp_path / "scorer.labels.jsonl", *words[:2], "-o", tmp_path / "again", *common)
    assert len(judge_server.requests) == 50


def test_labels_that_the_money_did_not_reach_for_are_not_done_without(
    make_synthetic, judge_server, tmp_path, monkeypatch, capsys
):
    dialogues = write_rows(tmp_path / "pool.jsonl", dialogue_rows(make_synthetic(60)[0]))
    (tmp_path / "prices.yaml").write_text("models: {m: {input: 1, output: 10}}")
    words = [
        "--judge",
        "openai:m",
        "--base-url",
        judge_server.url,
        "--prices",
        tmp_path / "prices.yaml",
        "--max-usd",
        "0.0055",
    ]
    code, error = main_exit(monkeypatch, capsys, "--dialogues", dialogues, *words, "-o", tmp_path / "out")
    assert code == 2
    assert re.search(
        r"--max-usd was reached: \d+ of 60 examples were not asked about\. .* --labels .*out\.labels\.jsonl", error
    )
    assert not (tmp_path / "out").exists()


def test_labels_or_a_judge_one_of_the_two(tmp_path, monkeypatch, capsys):
    labels = write_rows(tmp_path / "labels.jsonl", [])
    for words in ((), ("--labels", labels, "--judge", "openai:m", "--dialogues", labels)):
        code, error = main_exit(monkeypatch, capsys, *words, "-o", tmp_path / "out")
        assert code == 2
        assert error == "Error: say where the labels come from: --labels FILE or --judge KIND:MODEL, one of the two.\n"
    code, error = main_exit(monkeypatch, capsys, "--judge", "openai:m", "-o", tmp_path / "out")
    assert (code, "--judge needs dialogues to judge" in error) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--labels", "{tmp}/nowhere.jsonl"), "nowhere.jsonl"),
        (("--labels", "{tmp}/empty.jsonl"), "holds no labels"),
        (("--labels", ""), "'.' names no file"),
        (("--labels", "{tmp}/stray.jsonl"), "Name the dialogues that they are about with --dialogues"),
        (("--labels", "{tmp}/stray.jsonl", "--dry-run"), "--dry-run says what a judge would cost"),
        (("--labels", "{tmp}/stray.jsonl", "-o", "{tmp}"), "is already there. Choose another folder"),
        (("--labels", "{tmp}/stray.jsonl", "--seed", "-1"), "seed must be from 0"),
        (("--labels", "{tmp}/stray.jsonl", "--rubric", "{tmp}/none.yaml"), "cannot read the rubric"),
        (("--labels", "{tmp}/stray.jsonl", "--holdout", "0.9"), "--holdout"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence_and_exit_code_2(words, message, tmp_path, monkeypatch, capsys):
    write_rows(tmp_path / "empty.jsonl", [])
    write_rows(tmp_path / "stray.jsonl", [{"id": "x_turn:1", "sensibility": 3, "rationality": 4}])
    words = ["-o", tmp_path / "out", *(word.format(tmp=tmp_path) for word in words)]
    code, error = main_exit(monkeypatch, capsys, *words)
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_no_flag_means_two_things():
    # The judge's options and our own meet in one command.
    flags = [flag for option in distill_command.params for flag in option.opts]
    names = [option.name for option in distill_command.params]
    assert len(set(flags)) == len(flags)
    assert len(set(names)) == len(names)
