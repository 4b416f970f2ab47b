"""``ee-cli distill`` on files: where labels come from, how they find their dialogues, and what is refused."""

import hashlib
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
        (("--labels", "{tmp}/stray.jsonl", "--max-usd", "2"), "--max-usd is for asking a judge"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", 39), "--budget 39: at least 40 labelled examples are needed"),
        (("--backbone", "{tmp}/nowhere"), "neither a folder with a model nor a model the Hub has"),
        (("--max-length", 65), "has positions for 64 tokens at most"),
        (("--layers", 3), "--layers 3: .* has 2"),
    ],
)
def test_what_stops_the_training_is_said_before_the_judge_is_paid(
    words, message, tiny_bert, make_synthetic, judge_server, tmp_path, monkeypatch, capsys
):
    dialogues = write_rows(tmp_path / "pool.jsonl", dialogue_rows(make_synthetic(60)[0]))
    asking = ("--dialogues", dialogues, "--judge", "openai:m", "--base-url", judge_server.url)
    words = [str(word).format(tmp=tmp_path) for word in words]
    common = ("--backbone", tiny_bert, "--max-length", 64)
    code, error = main_exit(monkeypatch, capsys, *asking, *common, *words, "-o", tmp_path / "out")
    assert code == 2
    assert re.search(message, error)
    assert judge_server.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]


def test_the_missing_wheel_is_said_before_the_judge_is_paid(
    make_synthetic, judge_server, tmp_path, monkeypatch, capsys
):
    from efficient_empathy.distill import backbone

    monkeypatch.setattr(backbone, "_WHEEL_MODULE", "no_such_wheel")
    dialogues = write_rows(tmp_path / "pool.jsonl", dialogue_rows(make_synthetic(60)[0]))
    asking = ("--dialogues", dialogues, "--judge", "openai:m", "--base-url", judge_server.url)
    code, error = main_exit(monkeypatch, capsys, *asking, "-o", tmp_path / "out")
    assert (code, "the wheel of the default backbone is not installed" in error) == (2, True)
    assert judge_server.requests == []


def test_one_rubric_judges_and_is_learnt(tmp_path):
    from efficient_empathy.distill.from_files import DistillRequest
    from efficient_empathy.distill.options import JudgeOptions
    from efficient_empathy.errors import EmpathyError

    own, asked = tmp_path / "own.yaml", ("pool.jsonl",)
    judging = JudgeOptions("openai:m", rubric=own)
    assert DistillRequest(tmp_path / "out", asked, judging=judging).rubric == own
    assert DistillRequest(tmp_path / "out", asked, judging=judging, rubric=own).rubric == own
    assert DistillRequest(tmp_path / "out", asked, judging=JudgeOptions("openai:m")).rubric is None
    for wrong, said in ((JudgeOptions("openai:m"), "the paper's two dimensions"), (judging, "own.yaml")):
        with pytest.raises(EmpathyError, match=f"would be asked by .*{said}.* give judging the same rubric"):
            DistillRequest(tmp_path / "out", asked, judging=wrong, rubric=tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        ({"name": "openai:m", "temperature": 0}, {"judge": "openai:m"}),
        ({"name": "local:x.gguf", "weights": "ab" * 32}, {"judge": "local:x.gguf", "judge_weights": "ab" * 32}),
        ({"name": "local:org/model", "weights": "org/model"}, {"judge": "local:org/model"}),
    ],
)
def test_the_judge_is_named_as_the_labels_name_it(judge, expected, tmp_path):
    from efficient_empathy.distill.from_files import _named_judge
    from efficient_empathy.distill.labels import LABELS, label_manifest
    from efficient_empathy.manifest import write_manifest_file

    labels = tmp_path / "scorer.labels.jsonl"
    write_manifest_file(label_manifest(labels), LABELS, {"judge": judge}, {})
    assert _named_judge(labels) == expected


def test_a_local_judge_s_path_does_not_go_into_the_folder(
    make_synthetic, tiny_bert, tiny_options, tmp_path, monkeypatch
):
    from efficient_empathy.distill import labelling, local_judge, pipeline
    from efficient_empathy.distill.from_files import DistillRequest, distill_from_files
    from efficient_empathy.distill.judges import Answer
    from efficient_empathy.distill.options import JudgeOptions

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "x.gguf").write_bytes(b"weights")
    dialogues = write_rows(tmp_path / "pool.jsonl", dialogue_rows(make_synthetic(60)[0]))
    monkeypatch.setattr(local_judge, "open_backend", lambda local: None)
    scores = iter(range(1000))
    monkeypatch.setattr(
        local_judge.LocalJudge,
        "ask",
        lambda self, *_: Answer("{}", {"sensibility": next(scores) % 10, "rationality": next(scores) % 7}),
    )
    seen = {}
    monkeypatch.setattr(pipeline, "distill", lambda data, *_: seen.update(data.provenance))
    judging = JudgeOptions(f"local:{tmp_path}/home/x.gguf")
    options = tiny_options(tiny_bert)
    distill_from_files(DistillRequest(tmp_path / "scorer", (str(dialogues),), judging=judging, options=options))
    assert seen["judge"] == "local:x.gguf"
    assert seen["judge_weights"] == hashlib.sha256(b"weights").hexdigest()
    assert str(tmp_path) not in str(seen)
    assert labelling.default_store(tmp_path / "scorer.labels.jsonl").is_file()


def test_no_flag_means_two_things():
    # The judge's options and our own meet in one command.
    flags = [flag for option in distill_command.params for flag in option.opts]
    names = [option.name for option in distill_command.params]
    assert len(set(flags)) == len(flags)
    assert len(set(names)) == len(names)
