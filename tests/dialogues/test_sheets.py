"""EmpatheticDialogues as it is published, one utterance a row, and other CSV files."""

import gzip

import pytest

from efficient_empathy.dialogues import Record, Reject, plan_units, read_unit
from efficient_empathy.errors import EmpathyError

HEADER = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags"


def _read(folder, text, name="train.csv"):
    path = folder / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return [found for unit in plan_units([str(path)]) for found in read_unit(unit)]


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
def test_utterances_become_conversations(tmp_path, name):
    text = f"""{HEADER}
hit:0_conv:1,1,sad,I lost my dog_comma_ Rex.,4,Rex died_comma_ sadly.,5|5|5_2|2|5,
hit:0_conv:1,2,sad,I lost my dog_comma_ Rex.,9,I am so sorry.,5|5|5_2|2|5,
hit:0_conv:1,3,sad,I lost my dog_comma_ Rex.,4,Thank you.,5|5|5_2|2|5,
hit:1_conv:2,1,joyful,I won.,9,I won!,5|5|5_2|2|5,
hit:1_conv:2,2,joyful,I won.,4,Great!,5|5|5_2|2|5,,candidate one|candidate two
"""
    first, second = _read(tmp_path, text, name)
    assert first.row == {
        "conv_id": "hit:0_conv:1",
        "emotion": "sad",
        "situation": "I lost my dog, Rex.",
        "turns": [
            {"role": "speaker", "text": "Rex died, sadly."},
            {"role": "listener", "text": "I am so sorry."},
            {"role": "speaker", "text": "Thank you."},
        ],
    }
    assert (first.dialogue.id, first.line, first.dialogue.is_pair) == ("hit:0_conv:1", 2, False)
    assert (second.dialogue.id, second.line) == ("hit:1_conv:2", 5)
    assert second.row["turns"] == [{"role": "speaker", "text": "I won!"}, {"role": "listener", "text": "Great!"}]


def test_quotes_are_text_in_the_published_files_and_marks_in_copies(tmp_path):
    text = f"""{HEADER}
c1,1,sad,p,0,"Go away" he said,s,
c1,2,sad,p,1,"It hurts, ""really"".",s,
c1,3,sad,p,0,"an open one,s,
c1,4,sad,p,1,ok,s,
"""
    (record,) = _read(tmp_path, text)
    assert [turn.text for turn in record.dialogue.turns] == [
        '"Go away" he said',
        'It hurts, "really".',
        '"an open one',
        "ok",
    ]


def test_a_conversation_with_a_bad_line_is_rejected_whole(tmp_path):
    text = HEADER.encode() + b"\nc1,1,sad,p,0,hi,s,\nc1,two,sad\nc2,1,sad,p,0,hi,s,\nc2,2,sad,p,1,oh \xff,s,\n"
    text += b"c3,1,sad,p,0,hi,s,\nc3,2,sad,p,1,oh,s,\n"
    first, second, third = _read(tmp_path, text)
    assert (first.reason, first.line, first.raw) == ("bad-csv-row", 2, "c1,1,sad,p,0,hi,s,\nc1,two,sad")
    assert (second.reason, second.line) == ("invalid-utf8", 4)
    assert (type(third), third.dialogue.id) == (Record, "c3")


def test_a_truncated_file_loses_the_conversation_it_was_cut_in(tmp_path):
    lines = [f"c{n // 2},{n % 2 + 1},sad,p{n * 7919 % 1000},{n % 2},u{n * 104729 % 99991},s," for n in range(20000)]
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress("\n".join([HEADER, *lines]).encode())[:-3000])
    *records, reject = [found for unit in plan_units([str(tmp_path)]) for found in read_unit(unit)]
    assert all(len(record.dialogue.turns) == 2 for record in records)
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.line) == ("truncated-file", 2 + 2 * len(records))


def test_rows_with_too_many_or_too_few_cells(tmp_path):
    text = '\ufeffprompt,response\r\na,b\r\n\r\nonly one\r\na,b,c\r\n"x\ny",z\r\nc,"never closed\r\n'
    found = _read(tmp_path, text, "x.csv")
    assert [(type(item).__name__, item.line) for item in found] == [
        ("Record", 2), ("Reject", 4), ("Reject", 5), ("Record", 6), ("Reject", 8),
    ]  # fmt: skip
    assert {item.reason for item in found if isinstance(item, Reject)} == {"bad-csv-row"}
    assert [item.raw for item in found if isinstance(item, Reject)] == ["only one", "a,b,c", 'c,"never closed']
    assert found[0].dialogue.id == "x.csv:2"


ROWS = [f"prompt {number},answer {number}" for number in range(2, 1002)]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({10: 'prompt 10,"oh no'}, "a quote that it opens is not closed up to line 1001"),
        ({10: '"oh no,answer 10'}, "a quote that it opens is not closed up to line 1001"),
        ({10: 'prompt 10,"oh no', 400: 'prompt 400,"she" said'}, "',' expected after '\"', in lines 10 to 400"),
        ({10: 'prompt 10,"oh no', 400: 'prompt 400,go"'}, "is closed in line 400, and all lines between are rows"),
        ({10: 'prompt 10,"oh" no'}, "',' expected after '\"'"),
        ({10: "prompt 10,oh\rno"}, "new-line character"),
    ],
)
def test_a_stray_quote_costs_its_own_row_alone(tmp_path, name, broken, said):
    lines = [broken.get(number, row) for number, row in enumerate(ROWS, 2)]
    found = _read(tmp_path, "\n".join(["prompt,response", *lines]), name)
    rejects = [item for item in found if isinstance(item, Reject)]
    first = rejects[0]
    assert (first.line, first.reason, first.raw) == (10, "bad-csv-row", broken[10])
    assert said in first.detail
    bad = {item.line for item in rejects}
    assert bad <= set(broken)
    records = [item for item in found if isinstance(item, Record)]
    assert [record.line for record in records] == [number for number in range(2, 1002) if number not in bad]
    assert all(
        record.dialogue.turns[0].text == f"prompt {record.line}" for record in records if record.line not in broken
    )


def test_cells_of_many_lines_stay_whole(tmp_path):
    poem = "\n".join(f'It rained, and ""I"" waited{", and waited" * (number % 2)}' for number in range(900))
    table = "\n".join(["1,2"] * 19)  # with 20 delimiters between its first and last line it would be taken for rows
    found = _read(tmp_path, f'prompt,response\n"{poem}",a\n"{table}",b\nc,"d\n"\n', "x.csv")
    assert [(item.line, len(item.row["prompt"].splitlines())) for item in found] == [(2, 900), (902, 19), (921, 1)]


def test_a_cell_of_too_many_lines_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("efficient_empathy.dialogues.csv_records._MOST_LINES", 50)
    lines = ['a,"open', *ROWS[:70], 'b,"closed', 'here"']
    first, *others = _read(tmp_path, "\n".join(["prompt,response", *lines]), "x.csv")
    assert (first.line, first.raw, first.detail) == (2, 'a,"open', "a quote that it opens is not closed up to line 51")
    assert [item.line for item in others] == list(range(3, 74))
    assert others[-1].row == {"prompt": "b", "response": "closed\nhere"}


def test_a_stray_quote_in_a_file_that_is_cut_short(tmp_path):
    lines = [f"p{number * 7919 % 100003},r{number * 104729 % 99991}" for number in range(20000)]
    lines[5] = 'p,"open'
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress("\n".join(["prompt,response", *lines]).encode())[:-3000])
    found = [item for unit in plan_units([str(tmp_path)]) for item in read_unit(unit)]
    rejects = [item for item in found if isinstance(item, Reject)]
    assert [(item.line, item.reason) for item in rejects] == [(7, "bad-csv-row"), (len(found) + 1, "truncated-file")]
    assert [item.line for item in found] == list(range(2, len(found) + 2))


def test_rejected_rows_keep_their_bytes(tmp_path):
    bad, long = _read(tmp_path, b'prompt,response\n"a\n\xff b" ,c\n"a\n\xff",c\n', "x.csv")[::2]
    assert (bad.reason, bad.raw) == ("bad-csv-row", '"a')
    assert (long.reason, long.raw) == ("invalid-utf8", '"a\n\\xff",c')


def test_a_cell_longer_than_the_csv_module_likes(tmp_path):
    (record,) = _read(tmp_path, "prompt,response\n" + "a" * 200_000 + ",b\n", "x.csv")
    assert len(record.dialogue.turns[0].text) == 200_000


def test_messages_in_a_cell(tmp_path):
    cell = '"[{""role"":""user"",""content"":""a""},{""role"":""assistant"",""content"":""b""}]"'
    (record,) = _read(tmp_path, f"n,messages\n1,{cell}\n", "x.csv")
    assert [turn.text for turn in record.dialogue.turns] == ["a", "b"]


def test_a_column_named_twice(tmp_path):
    with pytest.raises(EmpathyError, match="name each column differently"):
        _read(tmp_path, "prompt,prompt\na,b\n", "x.csv")


def test_utterances_between_tabs(tmp_path):
    lines = ["c1,1,sad,It rained.,4,Oh no., ,", "c1,2,sad,It rained.,9,I am sorry, really., ,"]
    lines[1] = lines[1].replace("sorry, really", "sorry_comma_ really")
    text = "\n".join(line.replace(",", "\t") for line in [HEADER, *lines]) + "\n"
    (found,) = _read(tmp_path, text, "train.tsv")
    assert [turn["text"] for turn in found.row["turns"]] == ["Oh no.", "I am sorry, really."]


def test_only_the_end_of_a_name_says_what_stands_between_cells(tmp_path):
    (found,) = _read(tmp_path, "prompt,response\nhi,hello\n", "x.tsv.csv")
    assert found.dialogue.turns[1].text == "hello"


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"prompt,response\rhi,hello\r", "new-line character"),
        ("prompt,response\nhi,hello\n".encode("utf-16"), "it is not UTF-8"),
        (b"prompt,response,\xe9motion\nhi,hello,joy\n", "it is not UTF-8"),
    ],
)
def test_a_first_line_that_cannot_be_read_is_one_sentence(tmp_path, data, fault):
    with pytest.raises(EmpathyError, match=f"first line that cannot be read: {fault}.*Save it as UTF-8"):
        _read(tmp_path, data)


def test_a_number_of_thousands_of_digits_is_a_bad_row(tmp_path):
    text = f"{HEADER}\nc1,{'1' * 5000},sad,It rained.,4,Oh no.,,\n"
    (found,) = _read(tmp_path, text)
    assert found.reason == "bad-csv-row"
    (found,) = _read(tmp_path, f"prompt,response,ee_turn\nhi,hello,{'1' * 5000}\n")
    assert found.reason == "bad-ee-turn"
