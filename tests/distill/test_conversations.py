"""Examples of one conversation find each other, also where their rows do not name it."""

import numpy as np
import orjson
import pytest

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.distill.conversations import conversation_name, join_conversations
from efficient_empathy.distill.labels import load_labelled
from efficient_empathy.distill.rubric import Rubric

SAD = "Oh no, how did that happen to the poor thing?"


def pair(own: str, *texts: str, conversation: str | None = None) -> Example:
    """An example whose turns alternate; the last is the response."""
    roles = ("speaker", "listener")
    turns = tuple(Turn(roles[index % 2], text) for index, text in enumerate(texts))
    return Example(own, conversation or own, len(turns) - 1, turns[:-1], turns[-1].text)


def conversations(*examples: Example) -> list[str]:
    return [example.dialogue_id for example in join_conversations(examples)]


def test_ids_of_our_own_form_name_the_conversation(caplog):
    rows = [pair("X_turn:3", "a", "b"), pair("Y_turn:1", "c", "d"), pair("X_turn:5", "e", "f")]
    with caplog.at_level("INFO"):
        assert conversations(*rows) == ["X", "Y_turn:1", "X"]
    assert "2 examples joined to the conversation that they were cut from" in caplog.text
    # Also to examples of a dialogue that is called so.
    whole = pair("X_turn:1", "g", "h", conversation="X")
    assert conversations(*rows, whole) == ["X", "Y_turn:1", "X", "X"]


def test_a_text_that_begins_another_s_context_is_of_its_conversation():
    first, third = pair("p", "My dog died.", "Oh no."), pair("k", "My dog died.", "Oh no.", "Yes.", "So sorry.")
    fifth = pair("m", "My dog died.", "Oh no.", "Yes.", "So sorry.", "Thanks.", "Of course.")
    assert conversations(first, third, fifth) == conversations(fifth, first, third) == ["k"] * 3
    assert conversations(first, fifth) == ["m", "m"]


@pytest.mark.parametrize(
    "other",
    [
        pair("k", "My dog died.", "Oh dear.", "Yes.", "So sorry."),  # another response stands in its context
        pair("k", "My dog died.", "So sorry."),  # the same context alone is no beginning of it
        pair("k", "My dog", "died.", "Oh no.", "So sorry."),  # the same letters, other turns
        Example("k", "k", 3, (*[Turn("speaker", t) for t in ("My dog died.", "Oh no.", "Yes.")],), "So sorry."),
    ],
)
def test_what_only_looks_alike_stays_apart(other):
    first = pair("p", "My dog died.", "Oh no.")
    rows = [first, other]
    assert all(one is two for one, two in zip(join_conversations(rows), rows, strict=True))


def test_conversations_that_rows_name_are_what_they_say():
    # Many chats begin alike; the rows say that these are two.
    greeting = ("Hi.", "Hello! How can I help?")
    one = pair("a_turn:1", *greeting, conversation="a")
    two = pair("b_turn:3", *greeting, "My dog died.", "So sorry.", conversation="b")
    assert conversations(one, two) == ["a", "b"]
    # A pair that names none is of the conversation that it begins.
    assert conversations(pair("r7", *greeting), two) == ["b", "b"]


def test_ids_that_end_like_ours_in_a_named_conversation_join_nothing():
    rows = [pair(f"X_turn:{turn}", str(turn), "b", conversation=f"c{turn}") for turn in (1, 3)]
    assert conversations(*rows) == ["c1", "c3"]


def test_labelled_pairs_without_a_conversation_are_split_as_one(tmp_path):
    pytest.importorskip("torch", reason="torch is part of the distill extra")
    from efficient_empathy.distill import pipeline
    from efficient_empathy.distill.settings import DistillOptions

    rows = []
    for c in range(30):
        texts = [f"Story {c}.", f"Answer {c}.", f"More {c}.", f"Again {c}."]
        for turn in (1, 3):
            # Half of the rows say by their ids what they were cut from, half only by their texts.
            own = f"c{c}_turn:{turn}" if c % 2 else f"row-{turn}-{c}"
            context = [{"role": ("speaker", "listener")[n % 2], "text": text} for n, text in enumerate(texts[:turn])]
            rows.append({"id": own, "context": context, "response": texts[turn], "sensibility": 1, "rationality": turn})
    (tmp_path / "labels.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    labelled = load_labelled(tmp_path / "labels.jsonl", None, Rubric.load())
    data = pipeline._joined(pipeline.LabelledData(labelled.examples, labelled.scores))
    for seed in range(5):
        split = pipeline._split(data, DistillOptions(holdout=0.3, seed=seed))
        # Both turns of each conversation lie side by side in the file.
        assert set((split.held_out // 2).tolist()).isdisjoint((split.rows // 2).tolist())
        assert len(split.held_out) == 18  # 0.3 of 60, in conversations of two
        assert len(np.union1d(split.rows, split.held_out)) == 60


def test_one_example_by_itself_tells_its_conversation():
    assert conversation_name(pair("X_turn:1", "a", "b", conversation="c")) == "c"
    assert conversation_name(pair("X_turn:3", "a", "b")) == "X"
    first, third = pair("p", "My dog died.", SAD), pair("k", "My dog died.", SAD, "Yes.", "So sorry.")
    told = Example("s", "s", 3, (Turn("system", "Be kind."), *third.context), third.response)
    assert len({conversation_name(example) for example in (first, third, told)}) == 1
    assert conversation_name(pair("q", "My dog died.", "Poor you, what happened then?")) != conversation_name(first)
    # What begins with a greeting alone is told apart by what follows it.
    hello = ("Hi", "Hello! How can I help?")
    one, other = (pair(own, *hello, text, "I see.") for own, text in (("r", "My dog died."), ("s", "I passed!")))
    assert conversation_name(one) != conversation_name(other)
    longer = pair("t", *hello, "My dog died.", "I see.", "Yes.", "So sorry.")
    assert conversation_name(longer) == conversation_name(one)
