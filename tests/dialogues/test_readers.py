"""Every container gives the same dialogues; bad rows are found, named and stop nothing."""

import gzip

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from efficient_empathy.dialogues import (
    Record,
    Reject,
    plan_units,
    read_dialogues,
    read_records,
    read_unit,
    record_examples,
    with_fields,
)
from efficient_empathy.dialogues.blocks import MAX_LINE_BYTES
from efficient_empathy.errors import EmpathyError

ROWS = [
    {
        "id": f"r{index}",
        "conv_id": f"c{index // 2}",
        "n": index,
        "prompt": f"Sad, {index}\nvery",
        "response": f"Só \u2028{index}",
    }
    for index in range(7)
]
JSONL = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)


def _zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


def _csv(delimiter):
    cells = [list(ROWS[0])] + [[str(value) for value in row.values()] for row in ROWS]
    return "\r\n".join(delimiter.join(f'"{cell}"' for cell in line) for line in cells).encode() + b"\r\n"


def _arrow(path, new):
    table = pa.Table.from_pylist(ROWS)
    with new(str(path), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=3):
            writer.write_batch(batch)


def _read(*paths, unit_bytes=1):
    return [found for unit in plan_units([str(path) for path in paths], unit_bytes) for found in read_unit(unit)]


def _write(folder, name):
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)
    elif name.endswith(".arrow"):
        _arrow(path, pa.ipc.new_file if name.startswith("file") else pa.ipc.new_stream)
    else:
        plain = JSONL
        if ".csv" in name or ".tsv" in name:
            plain = _csv("," if ".csv" in name else "\t")
        elif name.startswith("list"):
            plain = orjson.dumps(ROWS)
        pack = {"gz": gzip.compress, "zst": _zstd}.get(name.rsplit(".")[-1], bytes)
        path.write_bytes(pack(plain))
    return path


NAMES = [
    "x.jsonl", "x.ndjson", "x.jsonl.gz", "x.jsonl.zst", "list.json", "list.json.gz", "lines.json", "lines.json.gz",
    "x.csv", "x.csv.gz", "x.tsv", "x.parquet", "file.arrow", "stream.arrow",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_container_gives_the_same_dialogues(tmp_path, name):
    records = _read(_write(tmp_path, name))
    assert all(isinstance(record, Record) for record in records)
    assert [record.dialogue.id for record in records] == [f"r{index}" for index in range(7)]
    assert [record.dialogue.turns[0].text for record in records] == [row["prompt"] for row in ROWS]
    assert [record.dialogue.turns[1].text for record in records] == [row["response"] for row in ROWS]
    assert [record.dialogue.group for record in records] == [row["conv_id"] for row in ROWS]
    # A prompt holds a line end, so each CSV row takes two lines, after the header.
    is_sheet = "sv" in name
    assert [record.line for record in records] == [2 * index + 2 if is_sheet else index + 1 for index in range(7)]
    out = [orjson.loads(with_fields(record, {"ee_turn": 1})) for record in records]
    assert [str(row.pop("n")) for row in out] == [str(index) for index in range(7)]
    assert out == [{**{key: row[key] for key in row if key != "n"}, "ee_turn": 1} for row in ROWS]
    assert _read(tmp_path / name, unit_bytes=8 << 20) == records


@pytest.mark.parametrize("name", ["x.parquet", "stream.arrow", "file.arrow"])
def test_tables_are_cut_between_their_groups(tmp_path, name):
    path = _write(tmp_path, name)
    cuts = [(unit.start, unit.stop, unit.line) for unit in plan_units([str(path)], unit_bytes=1)]
    assert cuts == [(0, 1, 1), (1, 2, 4), (2, 3, 7)]  # 3 + 3 + 1 rows
    assert len(plan_units([str(path)])) == 1


def test_a_saved_data_set(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "ds" / split
        folder.mkdir(parents=True)
        _arrow(folder / "data-00000-of-00001.arrow", pa.ipc.new_stream)
        _arrow(folder / "cache-1234.arrow", pa.ipc.new_stream)
        (folder / "state.json").write_bytes(orjson.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        (folder / "dataset_info.json").write_bytes(b"{}")
    (tmp_path / "ds" / "dataset_dict.json").write_bytes(b'{"splits": ["train", "test"]}')
    assert len(_read(tmp_path / "ds" / "train")) == 7
    assert [record.path.split("/")[-2] for record in _read(tmp_path / "ds")] == ["test"] * 7 + ["train"] * 7


def test_rows_without_an_id_are_called_after_file_and_line(tmp_path):
    (tmp_path / "raw.jsonl").write_bytes(b'{"prompt":"a","response":"b"}\n\n{"prompt":"a","response":"b"}')
    assert [record.dialogue.id for record in _read(tmp_path)] == ["raw.jsonl:1", "raw.jsonl:3"]


def test_raw_is_the_line_as_it_stands(tmp_path):
    line = b' { "prompt" : "\\u00e9", "response":"b","x":1.50 }'
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    assert [record.raw for record in _read(tmp_path)] == [line, line]


BAD = [
    (b"{broken", "invalid-json"),
    (b'{"prompt": NaN}', "invalid-json"),
    (b"[1, 2]", "not-an-object"),
    (b'"text"', "not-an-object"),
    (b'{"prompt":"\xff","response":"b"}', "invalid-utf8"),
    (b'{"text":"x"}', "unknown-format"),
    (b'{"turns":[{"role":"speaker","text":"x"}]}', "no-listener-turn"),
    (b'{"turns":[{"role":"listener","text":"x"},{"role":"speaker","text":"y"}]}', "no-listener-turn"),
    (b'{"turns":[{"role":"speaker","text":"x"},{"role":"listener","text":" "}]}', "empty-response"),
    (b'{"prompt":"a","response":"b","ee_turn":0}', "bad-ee-turn"),
]


def test_bad_rows_are_named_and_stop_nothing(tmp_path):
    good = b'{"prompt":"a","response":"b"}'
    (tmp_path / "x.jsonl").write_bytes(b"\n".join([good, *(line for line, _ in BAD), b"", good]))
    found = _read(tmp_path)
    rejects = [item for item in found if isinstance(item, Reject)]
    assert [reject.reason for reject in rejects] == [reason for _, reason in BAD]
    assert [reject.line for reject in rejects] == list(range(2, 2 + len(BAD)))
    assert [item.line for item in found if isinstance(item, Record)] == [1, 3 + len(BAD)]
    assert rejects[0].raw == "{broken"
    assert rejects[4].raw == '{"prompt":"\\xff","response":"b"}'


def test_rows_without_a_response_are_read_where_none_is_needed(tmp_path):
    lines = [
        b'{"turns":[{"role":"speaker","text":"x"}]}',
        b'{"prompt":"a"}',
        b'{"prompt":"b","output":null}',
        b'{"text":"x"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    rejects = []
    records = list(read_records([str(tmp_path)], on_reject=rejects.append, answered=False))
    turns = [[(turn.role, turn.text) for turn in record.dialogue.turns] for record in records]
    assert turns == [[("speaker", "x")], [("speaker", "a"), ("listener", "")], [("speaker", "b"), ("listener", "")]]
    assert [(reject.line, reject.reason) for reject in rejects] == [(4, "unknown-format")]
    assert list(read_records([str(tmp_path)], on_reject=rejects.append)) == []


def test_a_line_that_is_too_long(tmp_path):
    with open(tmp_path / "x.jsonl", "wb") as file:
        file.write(b'{"prompt":"' + b"a" * MAX_LINE_BYTES + b'","response":"b"}\n{"prompt":"a","response":"b"}')
    reject, record = _read(tmp_path)
    assert (reject.reason, reject.line, record.line) == ("line-too-long", 1, 2)
    assert reject.raw.startswith('{"prompt":"aaa')
    assert len(reject.raw) == 4096


MANY = b"".join(
    orjson.dumps({"id": n, "prompt": f"{n * 7919 % 100003} {n}", "response": "b"}) + b"\n" for n in range(20000)
)


@pytest.mark.parametrize(("name", "pack"), [("x.jsonl.gz", gzip.compress), ("x.jsonl.zst", _zstd)])
def test_a_truncated_file_gives_what_it_holds(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(MANY)[:-2000])
    *records, reject = _read(tmp_path)
    assert len(records) > 10000
    assert [record.dialogue.id for record in records] == [str(n) for n in range(len(records))]
    assert (reject.reason, reject.line) == ("truncated-file", len(records) + 1)


@pytest.mark.parametrize(("name", "pack"), [("x.jsonl.gz", gzip.compress), ("x.jsonl.zst", _zstd)])
def test_a_damaged_file_gives_what_came_before(tmp_path, name, pack):
    data = bytearray(pack(MANY))
    data[-40000:-39000] = bytes(1000)
    (tmp_path / name).write_bytes(data)
    found = _read(tmp_path)
    whole = next(place for place, row in enumerate(found) if isinstance(row, Reject))
    assert whole > 1000
    assert [record.dialogue.id for record in found[:whole]] == [str(n) for n in range(whole)]
    assert isinstance(found[-1], Reject)
    assert found[-1].reason in {"damaged-file", "truncated-file"}


@pytest.mark.parametrize(("name", "pack"), [("x.jsonl.gz", gzip.compress), ("x.jsonl.zst", _zstd)])
def test_files_that_were_joined_after_packing(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(JSONL) + pack(JSONL))
    assert [record.line for record in _read(tmp_path)] == list(range(1, 15))


def test_text_in_a_table_that_is_not_utf8(tmp_path):
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"], pa.binary()).buffers())
    pq.write_table(pa.table({"prompt": texts, "response": ["x", "y", "z"]}), tmp_path / "x.parquet")
    found = _read(tmp_path)
    assert [(type(item), item.line) for item in found] == [(Record, 1), (Reject, 2), (Record, 3)]
    assert found[1].reason == "invalid-utf8"


def test_nanoseconds_in_a_table_are_kept(tmp_path):
    times = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    took = pa.array([1_000_000_001], pa.duration("ns"))
    pq.write_table(pa.table({"prompt": ["a"], "response": ["b"], "at": times, "took": took}), tmp_path / "x.parquet")
    (record,) = _read(tmp_path)
    assert record.row["at"] == "2023-11-14 22:13:20.123456789"
    assert record.row["took"] == 1_000_000_001


def test_read_dialogues_raises_unless_told_what_to_do(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"prompt":"a","response":"b"}\nbroken\n{"prompt":"c","response":"d"}\n')
    with pytest.raises(EmpathyError, match=r"x\.jsonl', line 2: invalid-json"):
        list(read_dialogues([str(path)]))
    rejects = []
    assert [dialogue.turns[0].text for dialogue in read_dialogues([str(path)], on_reject=rejects.append)] == ["a", "c"]
    assert [reject.line for reject in rejects] == [2]
    assert len(list(read_records([str(path)], limit=1))) == 1


@pytest.mark.slow
def test_real_dialogues(shared_data):
    path = shared_data / "empathetic_dialogues.train.jsonl.gz"
    found = _read(path)
    records = [item for item in found if isinstance(item, Record)]
    # Two conversations of this data set end before the listener says anything.
    assert [item.reason for item in found if isinstance(item, Reject)] == ["no-listener-turn"] * 2
    assert len(records) == 19518
    listener_turns = gzip.decompress(path.read_bytes()).count(b'"role": "listener"')
    assert sum(len(record_examples(record, "every-turn")) for record in records) == listener_turns
    assert all(with_fields(record, {"ee_turn": 1}).startswith(record.raw[:-1]) for record in records)


@pytest.mark.parametrize("container", ["parquet", "arrow"])
def test_a_date_out_of_range_is_one_bad_row(tmp_path, container):
    when = pa.array([0, 1_700_000_000_000, 1], pa.timestamp("s"))  # the second holds milliseconds
    table = pa.table({"prompt": ["a", "b", "c"], "response": ["x", "y", "z"], "when": when})
    if container == "parquet":
        pq.write_table(table, tmp_path / "x.parquet")
    else:
        with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
            writer.write_table(table)
    first, second, third = _read(tmp_path)
    assert (first.dialogue.turns[1].text, third.dialogue.turns[1].text) == ("x", "z")
    assert (second.reason, second.line) == ("bad-value", 2)


def test_a_table_cut_short_is_one_sentence(tmp_path):
    table = pa.table({"prompt": ["a" * 10_000], "response": ["x"]})
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "x.arrow").write_bytes((tmp_path / "x.arrow").read_bytes()[:-5000])
    with pytest.raises(EmpathyError, match="is not an Arrow file, or is damaged"):
        _read(tmp_path)
    (tmp_path / "x.arrow").unlink()
    pq.write_table(table, tmp_path / "x.parquet")
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    data[-60:-8] = bytes(52)
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(EmpathyError, match="is not a Parquet file, or is damaged"):
        _read(tmp_path)


def test_an_item_of_three_hundred_levels_is_a_bad_row(tmp_path):
    deep = "[" * 300 + "]" * 300
    items = f'[{{"prompt": "a", "response": "b", "x": {deep}}}, {{"prompt": "c", "response": "d"}}]'
    (tmp_path / "x.json").write_text(items)
    bad, good = _read(tmp_path)
    assert (bad.reason, bad.line, good.dialogue.turns[1].text) == ("too-deep", 1, "d")


def test_a_damaged_row_group_takes_no_other_with_it_and_each_of_its_rows_counts(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"prompt": f"why {i}", "response": f"because {i}"} for i in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20, use_dictionary=False)
    page = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    damaged = bytearray(path.read_bytes())
    damaged[page : page + 40] = b"\xff" * 40
    path.write_bytes(damaged)
    (unit,) = plan_units([str(path)])
    found = list(read_unit(unit))
    bad = [item for item in found if isinstance(item, Reject)]
    assert [item.line for item in bad] == list(range(21, 41))
    assert {item.reason for item in bad} == {"damaged-file"}
    assert "the rest of row group 1 does not unpack" in bad[0].detail
    assert [item.line for item in found if not isinstance(item, Reject)] == [*range(1, 21), *range(41, 61)]
