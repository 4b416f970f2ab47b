"""The sample corpus is whole, and says of itself what is true."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import orjson
import pytest

from efficient_empathy.dialogues import examples_of, read_dialogues
from efficient_empathy.distill.labels import load_labelled
from efficient_empathy.distill.rubric import Rubric

SAMPLE = Path(__file__).parents[2] / "examples" / "sample"
STYLES = {"warm", "thoughtful", "both", "neither"}


@pytest.fixture(scope="module")
def rows():
    return [orjson.loads(line) for line in (SAMPLE / "dialogues.jsonl").read_bytes().splitlines()]


@pytest.fixture(scope="module")
def labels():
    return [orjson.loads(line) for line in (SAMPLE / "labels.jsonl").read_bytes().splitlines()]


def test_every_situation_has_four_responses_under_ids_of_their_own(rows):
    styles = defaultdict(set)
    for row in rows:
        situation, style = row["id"].split("-")
        assert situation == row["conversation_id"]
        styles[situation].add(style)
    assert len(rows) == 480
    assert len(styles) == 120
    assert all(found == STYLES for found in styles.values())
    # One situation's rows share everything but the response; no response stands twice.
    assert len({orjson.dumps([r["conversation_id"], r["context"], r["emotion"], r["topic"]]) for r in rows}) == 120
    assert len({row["response"] for row in rows}) == 480
    assert len({row["emotion"] for row in rows}) >= 50


def test_the_order_of_the_responses_does_not_follow_the_style(rows):
    first = Counter(row["id"].split("-")[1] for row in rows[::4])
    assert set(first) == STYLES
    assert max(first.values()) < 50
    assert not any(re.search(r"\b(sensibility|rationality|s\d{3})\b", row["response"].lower()) for row in rows)


def test_scores_are_on_the_scale_and_part_the_styles(labels):
    means = defaultdict(list)
    for label in labels:
        assert set(label) == {"id", "sensibility", "rationality"}
        assert label["sensibility"] in range(11)
        assert label["rationality"] in range(11)
        means[label["id"].split("-")[1]].append((label["sensibility"], label["rationality"]))
    # By design: warm is high on the first only, thoughtful on the second only. Ties at 5 happen.
    assert all(s >= 7 and r <= 5 for s, r in means["warm"])
    assert all(s <= 5 and r >= 6 for s, r in means["thoughtful"])
    assert all(s >= 6 and r >= 6 for s, r in means["both"])
    assert all(s <= 3 and r <= 3 for s, r in means["neither"])


def test_every_label_finds_its_example(rows):
    examples = [e for d in read_dialogues([str(SAMPLE / "dialogues.jsonl")]) for e in examples_of(d)]
    found = load_labelled(SAMPLE / "labels.jsonl", examples, Rubric.load(None))
    assert [example.id for example in found.examples] == [row["id"] for row in rows]
    assert found.skipped == {}
    assert len({example.dialogue_id for example in found.examples}) == 120


def test_the_page_quotes_the_lengths_and_questions_that_are_there(rows):
    page = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for style in STYLES:
        responses = [row["response"] for row in rows if row["id"].endswith(f"-{style}")]
        words = sum(len(response.split()) for response in responses) / len(responses)
        questions = 100 * sum("?" in response for response in responses) / len(responses)
        assert re.search(rf"\| {style} \| 120 \| .* \| {words:.1f} \| {questions:.0f} % \|", page), (
            style,
            words,
            questions,
        )


def test_the_raw_file_has_two_formats_and_two_bad_rows():
    rejects = []
    dialogues = list(read_dialogues([str(SAMPLE / "raw.jsonl")], on_reject=rejects.append))
    assert [(reject.line, reject.reason) for reject in rejects] == [(21, "invalid-json"), (42, "unknown-format")]
    assert len(dialogues) == len({dialogue.id for dialogue in dialogues}) == 60
    assert sum(len(list(examples_of(dialogue))) for dialogue in dialogues) == 102
    text = (SAMPLE / "raw.jsonl").read_text(encoding="utf-8")
    assert text.count('"messages"') == 41
    assert text.count('"conversations"') == 20
