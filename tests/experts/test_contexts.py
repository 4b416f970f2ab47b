"""Which contexts are answered: by mode, with and without references, drawn and in the order of the input."""

import fsspec
import orjson
import pytest

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.contexts import ContextOptions, read_contexts


def _turns(*texts, first="speaker"):
    roles = ("speaker", "listener") if first == "speaker" else ("listener", "speaker")
    return [{"role": roles[place % 2], "text": text} for place, text in enumerate(texts)]


def _file(tmp_path, *rows):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return [str(path)]


def _read(tmp_path, *rows, rejects=None, **options):
    return read_contexts(_file(tmp_path, *rows), ContextOptions(**options), None if rejects is None else rejects.append)


def _short(contexts):
    return [(c.id, c.dialogue_id, [turn.text for turn in c.context], c.reference) for c in contexts]


def test_auto_takes_the_last_word_of_the_listener_as_reference_or_answers_the_speaker(tmp_path):
    found = _read(tmp_path, {"id": "x", "turns": _turns(*"abcd")}, {"id": "y", "turns": _turns(*"abc")})
    assert _short(found) == [("x_turn:3", "x", ["a", "b", "c"], "d"), ("y_turn:3", "y", ["a", "b", "c"], None)]


def test_a_blank_last_turn_of_the_listener_is_one_to_be_said(tmp_path):
    (found,) = _read(
        tmp_path, {"id": "x", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}
    )
    assert _short([found]) == [("x_turn:1", "x", ["a"], None)]


@pytest.mark.parametrize(
    ("row", "texts", "reference"),
    [
        ({"context": ["a", "b", "c"], "response": "d"}, ["a", "b", "c"], "d"),
        ({"context": ["a", "b", "c"]}, ["a", "b", "c"], None),
        ({"context": "a</s>b</s>c", "response": None}, ["a", "b", "c"], None),
        ({"context": _turns("a", "b")}, ["a", "b"], None),
        ({"prompt": "a", "completion": ""}, ["a"], None),
        ({"prompt": "a"}, ["a"], None),
        ({"instruction": "i", "input": "a", "output": ""}, ["i\n\na"], None),
        ({"instruction": "i", "input": "a", "output": "o"}, ["i\n\na"], "o"),
        ({"system": "s", "prompt": "a"}, ["s", "a"], None),
    ],
)
def test_pairs_with_and_without_a_response(tmp_path, row, texts, reference):
    found = _read(tmp_path, {"id": "p", "conv_id": "c", **row})
    assert _short(found) == [("p", "c", texts, reference)]


def test_every_turn_and_last_turn_are_those_of_examples(tmp_path):
    row = {"id": "x", "turns": _turns(*"abcde")}
    assert [c.id for c in _read(tmp_path, row, examples="every-turn")] == ["x_turn:1", "x_turn:3"]
    assert [(c.id, c.reference) for c in _read(tmp_path, row, examples="last-turn")] == [("x_turn:3", "d")]


@pytest.mark.parametrize("examples", ["auto", "last-turn", "every-turn"])
def test_a_scored_row_is_the_one_example_that_it_names(tmp_path, examples):
    row = {"id": "x", "turns": _turns(*"abcd"), "ee_id": "x_turn:1", "ee_turn": 1}
    assert _short(_read(tmp_path, row, examples=examples)) == [("x_turn:1", "x", ["a"], "b")]


def test_rows_without_a_context_are_told_with_their_reason(tmp_path):
    rows = [
        {"id": "x", "turns": _turns("a", first="listener")},
        {"id": "y", "turns": _turns(" ")},
        {"text": "z"},
        {"id": "v", "turns": _turns("a", "b"), "ee_turn": 0},
        {"id": "w", "turns": _turns("a")},
    ]
    rejects = []
    assert [context.id for context in _read(tmp_path, *rows, rejects=rejects)] == ["w_turn:1"]
    reasons = ["no-context", "no-context", "unknown-format", "bad-ee-turn"]
    assert [(reject.line, reject.reason) for reject in rejects] == list(enumerate(reasons, 1))
    assert "has the keys text" in rejects[2].detail
    with pytest.raises(EmpathyError, match="line 1: no-context"):
        _read(tmp_path, *rows)


def test_last_turn_needs_a_listener(tmp_path):
    rejects = []
    with pytest.raises(EmpathyError, match=r"nothing to answer in .*1 rows could not be read"):
        _read(tmp_path, {"id": "w", "turns": _turns("a")}, rejects=rejects, examples="last-turn")
    assert [reject.reason for reject in rejects] == ["no-listener-turn"]


def test_a_draw_takes_other_conversations_first_and_keeps_the_order_of_the_input(tmp_path):
    rows = [{"id": f"d{n}", "turns": _turns(*(f"{n} {turn}" for turn in range(6)))} for n in range(10)]
    every = [c.id for c in _read(tmp_path, *rows, examples="every-turn")]
    drawn = [_read(tmp_path, *rows, examples="every-turn", limit=10, seed=seed) for seed in (0, 0, 1)]
    assert all(len({c.dialogue_id for c in found}) == 10 for found in drawn)
    assert all([every.index(c.id) for c in found] == sorted(every.index(c.id) for c in found) for found in drawn)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(_read(tmp_path, *rows, examples="every-turn", limit=99)) == 30


def test_an_id_that_stands_twice(tmp_path):
    with pytest.raises(EmpathyError, match="'x_turn:1' stands twice"):
        _read(tmp_path, {"id": "x", "turns": _turns("a")}, {"id": "x", "turns": _turns("b")})


@pytest.mark.parametrize("options", [{"examples": "all"}, {"limit": 0}])
def test_options_out_of_range(options):
    with pytest.raises(EmpathyError, match=f"{next(iter(options))} must be"):
        ContextOptions(**options)


@pytest.mark.parametrize("text", [b'{"text": "x"}', b"\n"])
@pytest.mark.parametrize("limit", [None, 1])
def test_what_is_secret_in_a_url_is_not_said(text, limit):
    system = fsspec.filesystem("memory")
    system.pipe("/user:SECRET@x/in.jsonl", text)
    try:
        for on_reject in (None, lambda reject: None):
            with pytest.raises(EmpathyError, match=r"memory://x/in\.jsonl") as caught:
                read_contexts(["memory://user:SECRET@x/in.jsonl"], ContextOptions(limit=limit), on_reject)
            assert "SECRET" not in str(caught.value)
    finally:
        system.rm("/user:SECRET@x", recursive=True)


def test_two_files_of_one_name_are_no_clash_of_ids(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_bytes(b'{"prompt": "hi"}')
    assert [context.id for context in read_contexts([str(tmp_path)], ContextOptions())] == [
        "a/x.jsonl:1",
        "b/x.jsonl:1",
    ]
