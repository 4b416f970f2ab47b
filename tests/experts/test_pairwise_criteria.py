"""What the judge is shown of two replies, and whom its verdict is for."""

import pytest

from efficient_empathy.dialogues.types import Turn
from efficient_empathy.distill.judges import EXPECTED_VALUE
from efficient_empathy.distill.local_backends import LocalModel
from efficient_empathy.distill.local_judge import LocalJudge
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.pairwise_criteria import METHOD, PairCriteria, ShownPair, winner

CONTEXT = (Turn("speaker", "My dog died."), Turn("listener", "Oh no."), Turn("speaker", "Last night."))
PAIR = ShownPair("c1", CONTEXT, "So sorry.", "")


def test_the_judge_sees_conversation_and_replies_and_neither_names_nor_ids():
    system, user = PairCriteria.load().prompt(PAIR)
    assert "Speaker: My dog died.\nListener: Oh no.\nSpeaker: Last night." in user["content"]
    assert "<reply_a>\nSo sorry.\n</reply_a>" in user["content"]
    assert "<reply_b>\n(The listener says nothing.)\n</reply_b>" in user["content"]
    assert user["content"].endswith("Which reply shows more empathy? A, B, or C for neither?")
    assert "affective" in system["content"]
    assert "c1" not in system["content"] + user["content"]


def test_a_digest_depends_on_what_is_seen_and_on_the_order():
    swapped = ShownPair("c1", CONTEXT, "", "So sorry.")
    renamed = ShownPair("c2", CONTEXT, "So sorry.", "")
    assert PAIR.digest == renamed.digest != swapped.digest
    ours = PairCriteria.load()
    assert PairCriteria("other name", ours.question, ours.criteria).digest == ours.digest
    others = {
        PairCriteria(ours.name, "Which?", ours.criteria).digest,
        PairCriteria(ours.name, ours.question, "x").digest,
    }
    assert len({ours.digest, *others}) == 3


def test_criteria_come_from_a_file_or_from_the_command_line(tmp_path):
    path = tmp_path / "brief.yaml"
    path.write_text("name: brevity\nquestion: Which reply is shorter?\ncriteria: >\n  Fewer words\n  are better.\n")
    assert PairCriteria.load(str(path)) == PairCriteria("brevity", "Which reply is shorter?", "Fewer words are better.")
    own = PairCriteria.load("The kinder one is better.")
    assert own.criteria == "The kinder one is better."
    for content, message in [
        ("name: x", "lacks question, criteria"),
        ("[", "not valid YAML"),
        ("- 1", "must be a mapping"),
    ]:
        path.write_text(content)
        with pytest.raises(EmpathyError, match=message):
            PairCriteria.load(str(path))
    with pytest.raises(EmpathyError, match="cannot read the criteria"):
        PairCriteria.load(str(tmp_path / "none.yml"))
    with pytest.raises(EmpathyError, match="--criteria is empty"):
        PairCriteria.load(" ")


def test_the_winner_is_a_system_and_not_a_place():
    a, b = {"A": 1.0, "B": 0.0, "C": 0.0}, {"A": 0.2, "B": 0.5, "C": 0.3}
    assert [winner(a, False), winner(a, True), winner(b, False), winner(b, True)] == [
        "first",
        "second",
        "second",
        "first",
    ]
    assert winner({"A": 0.2, "B": 0.3, "C": 0.5}, True) == "tie"
    assert winner({"A": 0.45, "B": 0.45, "C": 0.1}, False) == "tie"


class LetterBackend:
    """Says A with 0.6, B with 0.2 and C with 0.1, whatever it is asked."""

    form = "letters"

    def render(self, messages):
        """Both messages."""
        return "\n".join(message["content"] for message in messages)

    def following(self, text):
        """Only where a verdict is due."""
        return {"A": 0.6, "B": 0.2, "C": 0.1, "The": 0.1} if text.endswith('neither?{"verdict": "') else {}

    def count(self, text):
        """Letters."""
        return len(text)


def test_a_local_judge_answers_with_the_probabilities_of_the_letters():
    judge = LocalJudge(LocalModel("local:t", "t", "0"), LetterBackend(), METHOD)
    answer = judge.ask(PAIR, PairCriteria.load())
    # Of 0.9 that go to the letters.
    assert answer.scores == pytest.approx({"A": 0.6667, "B": 0.2222, "C": 0.1111})
    assert answer.raw == '{"verdict":{"A":0.6,"B":0.2,"C":0.1}}'
    assert judge.parameters["method"] == METHOD != EXPECTED_VALUE
