"""Label files: joined by digest, by id, or by what the row itself holds."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from efficient_empathy.distill.labels import load_labelled, write_labels
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.errors import EmpathyError

RUBRIC = Rubric.load()


def row(example, s=8, r=2, **more):
    return {"id": example.id, "digest": example.digest, "sensibility": s, "rationality": r, **more}


def test_joins_by_digest_before_id_and_keeps_the_files_order(tmp_path: Path, examples):
    path = tmp_path / "labels.jsonl"
    a, b, c = examples[:3]
    # The first row's id is another example's: its digest wins. The second has an id alone.
    write_labels(path, [{**row(b, 1, 2), "id": a.id}, {"id": c.id, "sensibility": 3.5, "rationality": 4}])
    found = load_labelled(path, iter(examples), RUBRIC)
    assert found.examples == [b, c]
    assert found.scores.dtype == np.float32
    assert found.scores.tolist() == [[1, 2], [3.5, 4]]
    assert found.skipped == {}


def test_a_row_that_holds_its_dialogue_is_example_and_label(tmp_path: Path):
    own = {
        "id": "d1_turn:1",
        "conv_id": "d1",
        "context": [{"role": "speaker", "text": "My dog died."}],
        "response": "Oh no.",
        "sensibility": 8,
        "rationality": 2,
    }
    path = tmp_path / "labels.jsonl.gz"
    path.write_bytes(gzip.compress(orjson.dumps(own) + b"\n\n"))
    found = load_labelled(path, None, RUBRIC)
    (example,) = found.examples
    assert (example.id, example.dialogue_id, example.response) == ("d1_turn:1", "d1", "Oh no.")
    assert found.scores.tolist() == [[8, 2]]


def test_counts_what_it_skips(tmp_path: Path, examples):
    path = tmp_path / "labels.jsonl"
    write_labels(path, [row(examples[0]), row(examples[11]), row(examples[1], None, None)])
    found = load_labelled(path, examples[:5], RUBRIC)
    assert found.examples == examples[:1]
    assert found.skipped == {"not-in-dialogues": 1, "unscored": 1}
    # The id is known, but the words that were judged are not those that it has now.
    write_labels(path, [row(examples[0]), {**row(examples[1]), "digest": "0" * 64}])
    assert load_labelled(path, examples, RUBRIC).skipped == {"not-in-dialogues": 1}
    write_labels(path, [row(examples[11])] * 3)
    with pytest.raises(EmpathyError, match="none of the 3 labels"):
        load_labelled(path, None, RUBRIC)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sensibility": 11}, "'sensibility' is 11; it must be a number from 0 to 10"),
        ({"sensibility": "8"}, "must be a number"),
        ({"sensibility": True}, "must be a number"),
        ({"rationality": None}, "'rationality' is missing"),
        ({"rubric": "0" * 64}, "judged by another rubric"),
    ],
)
def test_refuses_a_score_that_is_none_of_ours_and_names_the_line(tmp_path: Path, examples, more, message):
    path = tmp_path / "labels.jsonl"
    write_labels(path, [row(examples[0], rubric=RUBRIC.digest), {**row(examples[1]), **more}])
    with pytest.raises(EmpathyError, match=message) as caught:
        load_labelled(path, examples, RUBRIC)
    assert "line 2" in str(caught.value)


def test_names_a_file_that_is_missing_broken_or_empty(tmp_path: Path):
    with pytest.raises(EmpathyError, match="cannot read the labels"):
        load_labelled(tmp_path / "none.jsonl", None, RUBRIC)
    path = tmp_path / "labels.jsonl"
    for text, message in [("", "holds no labels"), ("{", "line 1 is not valid JSON"), ("[1]", "must be a JSON object")]:
        path.write_text(text)
        with pytest.raises(EmpathyError, match=message):
            load_labelled(path, None, RUBRIC)


@pytest.mark.parametrize("ending", [".parquet", ".gz", ".jsonl.gz", ".bz2", ".lz4", ".jsonl.zst"])
def test_a_name_that_would_be_read_as_something_else_is_not_written(tmp_path: Path, examples, ending):
    path = tmp_path / f"labels{ending}"
    with pytest.raises(EmpathyError, match=f"not as {path.suffix}"):
        write_labels(path, [row(examples[0])])
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(orjson.dumps(row(examples[0])))  # what would stand there could not be read
    with pytest.raises(EmpathyError, match="cannot read the labels"):
        load_labelled(path, examples, RUBRIC)


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.json", "labels.v2", "labels"])
def test_what_is_written_under_any_other_name_is_read_under_it(tmp_path: Path, examples, name):
    write_labels(tmp_path / name, [row(examples[0])])
    assert load_labelled(tmp_path / name, examples, RUBRIC).examples == examples[:1]


def test_reads_the_judged_validation_rows(shared_data: Path):
    found = load_labelled(shared_data / "ed_paper_scores.valid.jsonl.gz", None, RUBRIC)
    assert found.scores.shape == (len(found.examples), 2) == (5712, 2)
    assert found.skipped == {}
    # The paper's judge on 5,712 rows that could be matched to their dialogues: sensibility mean 7.2, rationality 4.1.
    assert found.scores.mean(0).tolist() == pytest.approx([7.2, 4.1], abs=0.06)


def test_an_id_that_several_examples_have_joins_nothing(tmp_path: Path, examples):
    path = tmp_path / "labels.jsonl"
    a, b = examples[:2]
    other = replace(b, id=a.id)
    write_labels(path, [{"id": a.id, "sensibility": 1, "rationality": 2}])
    with pytest.raises(EmpathyError, match=f"line 1: different examples are called '{a.id}'"):
        load_labelled(path, [a, other], RUBRIC)
    # The same words twice are one example, and a digest says which is meant.
    assert load_labelled(path, [a, a], RUBRIC).examples == [a]
    write_labels(path, [row(other)])
    assert load_labelled(path, [a, other], RUBRIC).examples == [other]


def test_a_text_that_was_labelled_before_is_counted_and_passed_over(tmp_path: Path, examples):
    path = tmp_path / "labels.jsonl"
    a, b = examples[:2]
    again = replace(a, id="elsewhere_turn:1", dialogue_id="elsewhere")
    write_labels(path, [row(a, 8, 2), row(b), row(a, 3, 3), {"id": again.id, "sensibility": 5, "rationality": 5}])
    found = load_labelled(path, [a, b, again], RUBRIC)
    assert found.examples == [a, b]
    assert found.scores.tolist() == [[8, 2], [8, 2]]
    assert found.skipped == {"same-text-again": 2}


def test_a_byte_order_mark_is_passed_over(tmp_path: Path, examples):
    path = tmp_path / "labels.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + orjson.dumps(row(examples[0])) + b"\n")
    assert load_labelled(path, examples, RUBRIC).examples == examples[:1]
