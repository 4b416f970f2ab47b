"""The engine's way from a unit to examples agrees with the one through records and dialogues."""

import orjson
import pytest

from efficient_empathy.dialogues import Reject, plan_units, read_examples, read_unit, record_examples


@pytest.mark.parametrize("mode", ["every-turn", "last-turn"])
def test_reading_examples_at_once_gives_those_of_the_records(tmp_path, mode):
    turns = [{"role": role, "text": text} for role, text in zip(("speaker", "listener") * 2, "abcd", strict=True)]
    rows = [
        {"id": "p", "conv_id": "c", "prompt": "a\nb", "response": "ç"},
        {"prompt": "a", "completion": "b"},
        {"turns": turns},
        {"conv_id": "c", "turns": turns[:3]},
        {"id": "scored", "turns": turns, "ee_turn": 1},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"id": 5, "context": "a</s>b</s>c", "response": "d"},
        {"turns": turns, "ee_turn": 2},  # the speaker's
        {"turns": turns[1:3]},
        {"turns": [turns[0], {"role": "listener", "text": " "}]},
        {"prompt": "a", "response": ""},
        {"no": "format"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows) + b"no json\n")
    (unit,) = plan_units([str(path)])
    expected = [
        found if isinstance(found, Reject) else ((found.line, found.row, found.raw), record_examples(found, mode))
        for found in read_unit(unit)
    ]
    assert sum(isinstance(found, Reject) for found in expected) == 6
    assert list(read_examples(unit, mode)) == expected
