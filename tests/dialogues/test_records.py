"""What goes out is the row that came in plus the new fields; a row with scores is the example it names."""

import datetime
import decimal

import orjson
import pytest

from efficient_empathy.dialogues import Record, RowError, parse_row, record_examples, with_fields

NEW = {"ee_id": "x_turn:1", "ee_turn": 1, "ee_sensibility": 7.25}
TAIL = b'"ee_id":"x_turn:1","ee_turn":1,"ee_sensibility":7.25}'
TURNS = [{"role": role, "text": text} for role, text in zip(("speaker", "listener") * 2, "abcd", strict=True)]


def _record(row, raw=None):
    dialogue = parse_row({**row, "turns": TURNS} if "response" not in row else row, "f.jsonl:1")
    return Record(row, dialogue, "f.jsonl", 1, raw)


@pytest.mark.parametrize(
    ("raw", "head"),
    [
        (b'{"a":1.0,"b":"\\u00e9"}', b'{"a":1.0,"b":"\\u00e9",'),
        (b'{ "a" : 1e2 }', b'{ "a" : 1e2,'),
        (b'  {"a":1}  ', b'{"a":1,'),
        (b"{}", b"{"),
        (b"{ }", b"{"),
    ],
)
def test_bytes_of_a_json_line_stay_as_they_are(raw, head):
    assert with_fields(_record(orjson.loads(raw), raw), NEW) == head + TAIL


def test_a_text_that_looks_like_an_old_field_changes_nothing():
    raw = b'{"a":"\\"ee_id\\"","b":{"ee_turn":3},"big":123456789012345678901}'
    assert with_fields(_record(orjson.loads(raw), raw), NEW) == raw[:-1] + b"," + TAIL


def test_old_fields_are_replaced():
    raw = b'{"a":1,"ee_turn":3,"ee_old":2}'
    assert with_fields(_record(orjson.loads(raw), raw), NEW) == b'{"a":1,' + TAIL


def test_no_new_fields():
    assert with_fields(_record({"a": 1}, b'{"a": 1}'), {}) == b'{"a": 1}'


def test_a_row_of_a_table_becomes_json():
    row = {
        "day": datetime.date(2024, 2, 29),
        "at": datetime.datetime(2024, 2, 29, 12, 0, 1),
        "price": decimal.Decimal("1.10"),
        "blob": b"\x00\xff",
        "nan": float("nan"),
        "took": datetime.timedelta(seconds=1),
    }
    assert orjson.loads(with_fields(_record(row), {"ee_turn": 1})) == {
        "day": "2024-02-29",
        "at": "2024-02-29T12:00:01",
        "price": "1.10",
        "blob": "AP8=",
        "nan": None,
        "took": "0:00:01",
        "ee_turn": 1,
    }


def test_every_turn_and_last_turn():
    record = _record({"id": "x"})
    assert [(e.id, e.turn) for e in record_examples(record, "every-turn")] == [("x_turn:1", 1), ("x_turn:3", 3)]
    assert [(e.id, e.turn) for e in record_examples(record, "last-turn")] == [("x_turn:3", 3)]


@pytest.mark.parametrize("mode", ["every-turn", "last-turn"])
def test_a_row_with_scores_is_one_example(mode):
    (first, _) = record_examples(_record({"id": "x"}), "every-turn")
    (again,) = record_examples(_record({"id": "x", "ee_id": "x_turn:1", "ee_turn": 1}), mode)
    assert again == first


def test_rows_without_ids_keep_the_ids_they_were_given():
    (example,) = record_examples(_record({"ee_id": "old.jsonl:7_turn:3", "ee_turn": 3}), "every-turn")
    assert (example.id, example.dialogue_id, example.turn) == ("old.jsonl:7_turn:3", "old.jsonl:7", 3)


def test_a_pair_with_scores():
    row = {"id": "p", "conv_id": "c", "prompt": "a", "response": "b", "ee_id": "p", "ee_turn": 1}
    (example,) = record_examples(_record(row), "every-turn")
    assert (example.id, example.dialogue_id, example.turn, example.response) == ("p", "c", 1, "b")


@pytest.mark.parametrize("value", [0, 4, -1, 1.5, "1.5", True, "x", float("inf")])
def test_a_scored_turn_out_of_place(value):
    with pytest.raises(RowError, match="bad-ee-turn"):
        record_examples(_record({"id": "x", "ee_turn": value}), "every-turn")


@pytest.mark.parametrize("value", [3, 3.0, "3", "3.0"])
def test_a_scored_turn_that_has_been_through_a_data_frame(value):
    (example,) = record_examples(_record({"id": "x", "ee_turn": value}), "every-turn")
    assert example.turn == 3


@pytest.mark.parametrize("value", [None, ""])
def test_no_scored_turn(value):
    assert len(record_examples(_record({"id": "x", "ee_turn": value}), "every-turn")) == 2
