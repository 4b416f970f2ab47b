"""The answers folder: its rows, its counts, and that a killed run goes on to the same bytes."""

import math

import orjson
import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")

from tiny_words import WORDS  # noqa: E402

from efficient_empathy.dialogues.types import Turn  # noqa: E402
from efficient_empathy.errors import EmpathyError  # noqa: E402
from efficient_empathy.experts import answers  # noqa: E402
from efficient_empathy.experts.answer_folders import read_answers  # noqa: E402
from efficient_empathy.experts.answers import AnswerJob, write_answers  # noqa: E402
from efficient_empathy.experts.contexts import ContextOptions  # noqa: E402
from efficient_empathy.experts.decoding import Prompt, answer  # noqa: E402
from efficient_empathy.experts.decoding_options import DecodingOptions  # noqa: E402
from efficient_empathy.experts.models import LanguageModel, LoadOptions, load_language_model  # noqa: E402
from efficient_empathy.experts.rendering import Renderer  # noqa: E402
from efficient_empathy.manifest import changed_files, read_manifest  # noqa: E402

TURNS = ("speaker", "listener")


@pytest.fixture(scope="module")
def model(tiny_lm):
    return load_language_model(str(tiny_lm), LoadOptions(max_tokens=128, system=None))


@pytest.fixture
def contexts(tmp_path):
    rows = []
    for number in range(11):
        words = WORDS[number : number + 2 + number % 5]
        turns = [{"role": TURNS[place % 2], "text": " ".join(words)} for place in range(1 + number % 4)]
        rows.append({"id": f"d{number}", "turns": turns})
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows) + b"broken\n")
    return str(path)


def _job(path, out, **changes):
    return AnswerJob((path,), out, **{"decoding": DecodingOptions(max_new_tokens=8, batch_size=4), **changes})


def _rows(folder):
    return [orjson.loads(line) for line in (folder / "answers.jsonl").read_bytes().splitlines()]


def _bytes(folder):
    return {name: (folder / name).read_bytes() for name in ("answers.jsonl", "manifest.json")}


def test_rows_and_counts(model, contexts, tmp_path):
    outcome = write_answers(_job(contexts, tmp_path / "out"), model)
    rows = _rows(tmp_path / "out")
    # Turns by number: 1 2 3 4 1 2 3 4 1 2 3; the listener has the last word where they are even: five times.
    assert [row["id"] for row in rows[:4]] == ["d0_turn:1", "d1_turn:1", "d2_turn:3", "d3_turn:3"]
    assert [row["reference"] is None for row in rows] == [True, False] * 5 + [True]
    assert [row["nll"] is None for row in rows] == [row["reference"] is None for row in rows]
    counts = read_manifest(tmp_path / "out", "answers")["counts"]
    assert counts == outcome.manifest["counts"]
    assert (counts["contexts"], counts["answered"], counts["references"], counts["references_measured"]) == (
        11,
        11,
        5,
        5,
    )
    assert counts["ended"] + counts["length"] == counts["answered"]
    assert counts["tokens"] == sum(row["tokens"] for row in rows)
    assert counts["reference_tokens"] == sum(row["nll_tokens"] or 0 for row in rows)
    assert (counts["refused"], counts["rejected"]) == ({}, {"invalid-json": 1})
    (reject,) = [orjson.loads(line) for line in (tmp_path / "out/rejected/part-00000.jsonl").read_bytes().splitlines()]
    assert list(reject) == ["file", "line", "reason", "detail", "raw"]
    assert (reject["line"], reject["raw"]) == (12, "broken")
    assert changed_files(tmp_path / "out") == []
    assert [answer.id for answer in read_answers(tmp_path / "out").answers] == [row["id"] for row in rows]
    named = (tmp_path / "out/manifest.json").read_text()
    assert '"in.jsonl"' in named
    assert str(tmp_path.parent) not in named


def test_answers_and_likelihoods_are_those_of_one_row_by_itself(model, contexts, tmp_path):
    write_answers(_job(contexts, tmp_path / "out"), model)
    for row in _rows(tmp_path / "out"):
        turns = [Turn(turn["role"], turn["text"]) for turn in row["context"]]
        prompt, _ = model.renderer.prompt(turns)
        (alone,) = answer(model, [Prompt(row["id"], prompt)], DecodingOptions(max_new_tokens=8, use_cache=False))
        assert (row["answer"], row["tokens"], row["finish"]) == (
            model.renderer.text(alone.tokens),
            len(alone.tokens),
            alone.finish,
        )
        if row["reference"] is not None:
            response = model.renderer.response(row["reference"])
            with torch.no_grad():
                logits = model.model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
            expected = -sum(logits[place, token].item() for place, token in zip(places, response, strict=True))
            assert math.isclose(row["nll"], expected, abs_tol=1e-3)
            assert row["nll_tokens"] == len(response)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("kill_at", [0, 1, 2])
def test_killed_and_run_again_gives_the_same_bytes(model, contexts, tmp_path, monkeypatch, kill_at):
    monkeypatch.setattr(answers, "_UNIT", 4)
    write_answers(_job(contexts, tmp_path / "whole"), model)
    calls, real = [], answers.answer_contexts

    def dying(*arguments):
        if len(calls) == kill_at:
            raise _KilledError
        calls.append(1)
        return real(*arguments)

    job = _job(contexts, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(answers, "answer_contexts", dying)
        with pytest.raises(_KilledError):
            write_answers(job, model)
    outcome = write_answers(job, model)
    assert outcome.answers == 11 - 4 * kill_at
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole")
    again = write_answers(job, model)
    assert (again.already_done, again.answers) == (True, 0)
    assert sorted(path.name for path in (tmp_path / "killed/.units").iterdir()) == ["lock", "plan.json"]


def test_another_run_in_the_same_folder_is_refused_or_starts_over(model, contexts, tmp_path):
    out = tmp_path / "out"
    write_answers(_job(contexts, out), model)
    before = _bytes(out)
    other = DecodingOptions(max_new_tokens=5, batch_size=4)
    with pytest.raises(EmpathyError, match=r"max_new_tokens was 8, is 5.*--overwrite"):
        write_answers(_job(contexts, out, decoding=other), model)
    assert _bytes(out) == before
    write_answers(_job(contexts, out, decoding=other, overwrite=True), model)
    assert max(row["tokens"] for row in _rows(out)) <= 5
    write_answers(_job(contexts, out, overwrite=True), model)
    assert _bytes(out) == before


def test_a_folder_of_another_command_is_left_alone(model, contexts, tmp_path):
    (tmp_path / "out/.units").mkdir(parents=True)
    (tmp_path / "out/.units/plan.json").write_text('{"inputs": []}')
    with pytest.raises(EmpathyError, match="another command"):
        write_answers(_job(contexts, tmp_path / "out", overwrite=True), model)


def test_what_cannot_be_answered_keeps_its_row(model, tmp_path, monkeypatch):
    # The instruction alone fills the prompt; the reference alone is longer than all that the model reads.
    path = tmp_path / "in.jsonl"
    rows = [
        {"id": "long", "prompt": "why", "response": " ".join(["sad"] * 140)},
        {"id": "cut", "prompt": " ".join(["happy"] * 150), "response": "glad"},
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    counts = write_answers(_job(str(path), tmp_path / "out"), model).manifest["counts"]
    assert (counts["references_refused"], counts["cut_contexts"]) == ({"response-too-long": 1}, 1)
    assert [row["nll"] is None for row in _rows(tmp_path / "out")] == [True, False]
    monkeypatch.setattr(model.renderer, "system", " ".join(["plan"] * 125))
    counts = write_answers(_job(str(path), tmp_path / "refused"), model).manifest["counts"]
    assert (counts["contexts"], counts["answered"], counts["refused"]) == (2, 0, {"prompt-too-long": 2})
    assert [(row["answer"], row["finish"]) for row in _rows(tmp_path / "refused")] == [("", "refused")] * 2


def test_without_likelihoods_and_a_few_drawn(model, contexts, tmp_path):
    job = _job(contexts, tmp_path / "out", nll=False, contexts=ContextOptions(limit=3, seed=1))
    counts = write_answers(job, model).manifest["counts"]
    assert (counts["contexts"], counts["references_measured"]) == (3, 0)


def test_prompts_and_answers_must_fit_the_model(model, tiny_lm, contexts, tmp_path):
    with pytest.raises(EmpathyError, match=r"reads 128 at most. Say --max-tokens 128"):
        write_answers(_job(contexts, tmp_path / "out"), load_language_model(str(tiny_lm)))
    trained = LanguageModel("warm", model.model, Renderer(model.renderer.tokenizer, 512), {"kind": "expert"})
    with pytest.raises(EmpathyError, match=r"'warm' reads 128 at most. Train it again, experts with --max-length 128"):
        write_answers(_job(contexts, tmp_path / "out"), trained)
    with pytest.raises(EmpathyError, match="Lower --max-new-tokens"):
        write_answers(_job(contexts, tmp_path / "out", decoding=DecodingOptions(max_new_tokens=120)), model)
    assert not (tmp_path / "out").exists()
