"""Each format is told apart by its keys and gives the turns that it holds."""

import pickle

import pytest

from efficient_empathy.dialogues import RowError, Turn, parse_row

S, L = "My dog died.", "I am so sorry."
PAIR = (Turn("speaker", S), Turn("listener", L))

CONVERSATIONS = {
    "turns": {"turns": [{"role": "speaker", "text": S}, {"role": "listener", "text": L}]},
    "turns with other role names": {"turns": [{"role": "Human", "text": S}, {"role": "gpt", "text": L}]},
    "turns as JSON text": {"turns": f'[{{"role":"user","text":"{S}"}},{{"role":"assistant","text":"{L}"}}]'},
    "turns by column": {"turns": {"role": ["user", "assistant"], "text": [S, L]}},
    "messages": {"messages": [{"role": "user", "content": S}, {"role": "assistant", "content": L}]},
    "messages in parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": S}]}, {"role": "assistant", "content": L}]
    },
    "conversations": {"conversations": [{"from": "human", "value": S}, {"from": "gpt", "value": L}]},
}
PAIRS = {
    "context of turns": {"context": [{"role": "speaker", "text": S}], "response": L},
    "context of texts": {"context": [S], "response": L},
    "context as text": {"context": S, "response": L},
    "seeker": {"seeker": S, "response": L, "prompt": 1},
    "prompt and completion": {"prompt": S, "completion": L},
    "question and answer": {"question": S, "answer": L},
    "input and output": {"input": S, "output": L},
    "messages as prompt and completion": {
        "prompt": [{"role": "user", "content": S}],
        "completion": [{"role": "assistant", "content": L}],
    },
    "alpaca": {"instruction": S, "input": "", "output": L},
    "dolly": {"instruction": S, "context": "", "response": L, "category": "chat"},
}


@pytest.mark.parametrize("row", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_conversation_formats(row):
    dialogue = parse_row({"id": 7, "emotion": "sad", **row}, "f:1")
    assert (dialogue.id, dialogue.turns, dialogue.is_pair, dialogue.group) == ("7", PAIR, False, None)
    assert dialogue.meta == {"emotion": "sad"}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_pair_formats(row):
    dialogue = parse_row({"conv_id": "c1", **row}, "f:1")
    assert (dialogue.id, dialogue.turns, dialogue.is_pair, dialogue.group) == ("f:1", PAIR, True, "c1")
    assert dialogue.meta["conv_id"] == "c1"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": S, "context": "", "response": L},
        {"prompt": S, "context": [], "response": L},
        {"prompt": "", "question": S, "answer": L},
        {"prompt": S, "completion": " ", "answer": L},
        {"instruction": "", "input": "", "output": "", "prompt": S, "response": L},
        {"instruction": S, "input": "", "output": "", "response": L},
        {"instruction": "", "input": S, "output": L},
        {"messages": "", "conversations": None, "turns": [], "prompt": S, "response": L},
    ],
)
@pytest.mark.parametrize("answered", [True, False])
def test_a_blank_cell_does_not_hide_the_column_that_holds_the_text(row, answered):
    assert parse_row(row, "f:1", answered).turns == PAIR


def test_a_pair_whose_only_context_is_blank_stays_one():
    assert parse_row({"context": "", "response": L}, "f:1").turns == (Turn("speaker", ""), PAIR[1])


def test_developer_and_system_messages_are_system_turns():
    roles = ["system", "developer", "user", "assistant"]
    dialogue = parse_row({"messages": [{"role": role, "content": "x"} for role in roles]}, "f:1")
    assert [turn.role for turn in dialogue.turns] == ["system", "system", "speaker", "listener"]


@pytest.mark.parametrize("context", [["a", "b", "c"], "a</s>b</s>c", "a </s> b </s> c</s>", '["a", "b", "c"]'])
def test_roles_alternate_backwards_from_the_response(context):
    turns = parse_row({"context": context, "response": "d"}, "f:1").turns
    assert [(turn.role, turn.text) for turn in turns] == [
        ("speaker", "a"),
        ("listener", "b"),
        ("speaker", "c"),
        ("listener", "d"),
    ]


def test_an_even_context_begins_with_the_listener():
    turns = parse_row({"context": ["a", "b"], "response": "c"}, "f:1").turns
    assert [turn.role for turn in turns] == ["listener", "speaker", "listener"]


def test_a_text_that_begins_with_a_bracket_is_a_text():
    assert parse_row({"context": "[sigh] I lost it", "response": L}, "f:1").turns[0].text == "[sigh] I lost it"


def test_alpaca_input_system_and_history():
    row = {"instruction": "Comfort me.", "input": S, "output": L, "system": "Be kind.", "history": [["Hi", "Hello"]]}
    assert parse_row(row, "f:1").turns == (
        Turn("system", "Be kind."),
        Turn("speaker", "Hi"),
        Turn("listener", "Hello"),
        Turn("speaker", f"Comfort me.\n\n{S}"),
        Turn("listener", L),
    )


def test_an_instruction_beside_a_context_of_turns_is_no_alpaca():
    dialogue = parse_row({"instruction": "Be kind.", "context": [S], "response": L}, "f:1")
    assert dialogue.turns == PAIR
    assert dialogue.meta == {"instruction": "Be kind."}


def test_blank_turns_stay_so_that_indices_fit_the_row():
    row = {"turns": [{"role": "speaker", "text": S}, {"role": "listener", "text": ""}, {"role": "listener", "text": L}]}
    assert [turn.text for turn in parse_row(row, "f:1").turns] == [S, "", L]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "a", "conv_id": "c"}, "a"),
        ({"id": 0}, "0"),
        ({"id": None, "conv_id": "c"}, "c"),
        ({"id": "", "dialogue_id": 4}, "4"),
        ({"id": True}, "f:1"),
        ({}, "f:1"),
    ],
)
def test_ids_of_conversations(row, expected):
    assert parse_row({**CONVERSATIONS["turns"], **row}, "f:1").id == expected


def _turns(*turns):
    return {"turns": list(turns)}


BAD = [
    ({"text": "alone"}, "unknown-format"),
    ({}, "unknown-format"),
    ({"conv_id": "c", "utterance": "x"}, "unknown-format"),
    ({"turns": 3}, "unknown-format"),
    ({"turns": []}, "no-turns"),
    ({"turns": "[broken"}, "bad-turns"),
    ({"turns": {"role": ["user"], "text": []}}, "bad-turns"),
    (_turns("just text"), "bad-turn"),
    (_turns({"role": "narrator", "text": "x"}), "unknown-role"),
    (_turns({"role": ["user"], "text": "x"}), "unknown-role"),
    (_turns({"text": "x"}), "unknown-role"),
    (_turns({"role": "user", "text": None}), "empty-turn"),
    (_turns({"role": "user", "text": 5}), "empty-turn"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "tool-message"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tool-message"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "not-text"),
    ({"prompt": S, "response": ""}, "empty-response"),
    ({"prompt": S, "response": " \n"}, "empty-response"),
    ({"prompt": S, "response": None}, "empty-response"),
    ({"prompt": S, "response": 5}, "not-text"),
    ({"context": [S, 4], "response": L}, "bad-turn"),
    ({"instruction": S, "output": L, "history": ["x"]}, "bad-turn"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_what_cannot_be_read_has_a_reason(row, reason):
    with pytest.raises(RowError) as caught:
        parse_row(row, "f:1")
    assert caught.value.reason == reason
    assert caught.value.detail
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, copy.detail) == (caught.value.reason, caught.value.detail)
