"""Parquet output: the rows of the JSONL output, types kept, columns of mixed types as JSON text."""

import dataclasses
import datetime

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from length_scorer import LengthScorer

from efficient_empathy.scorer import tables
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job
from efficient_empathy.scorer.tables import ParquetPart
from efficient_empathy.selection import PaperPolicy


def written(tmp_path, rows):
    part = ParquetPart(tmp_path / "temporary")
    for row in rows:
        part.append({"context": "hello there", "response": "hi", **row}, {"ee_turn": 1})
    assert part.finish(tmp_path / "kept" / "part-00000.parquet")["bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    return pq.read_table(tmp_path / "kept" / "part-00000.parquet")


def test_plain_and_nested_values_keep_their_types(tmp_path):
    when = datetime.datetime(2024, 5, 1, 12, 30)
    table = written(
        tmp_path, [{"n": 1, "tags": ["a"], "who": {"age": 3}, "when": when}, {"n": None, "tags": [], "who": None}]
    )
    assert table.column("n").to_pylist() == [1, None]
    assert table.column("tags").to_pylist() == [["a"], []]
    assert table.column("who").to_pylist() == [{"age": 3}, None]
    assert table.column("when").to_pylist() == [when, None]
    assert table.column("ee_turn").type == pa.int64()


def test_a_column_of_mixed_types_is_json_text_throughout(tmp_path):
    table = written(tmp_path, [{"x": 5, "e": {}}, {"x": "five", "e": None}, {"x": None}, {"x": [1]}])
    assert table.column("x").to_pylist() == ["5", '"five"', None, "[1]"]
    assert table.column("e").to_pylist() == ["{}", None, None, None]
    assert table.schema.field("x").metadata == {b"ee_encoding": b"json"}


def test_types_are_joined_over_row_groups(tmp_path):
    """10,000 rows wait at a time, and what comes later may widen or break a column's type."""
    early = [{"wide": 1, "text": "a", "broken": "a", "none": None, "s": {"a": 1}}] * 10_000
    late = [{"wide": 2.5, "text": "b", "broken": 7, "none": 3, "s": {"b": "x"}, "new": True}]
    table = written(tmp_path, early + late)
    first, last = table.slice(0, 1).to_pylist()[0], table.slice(10_000, 1).to_pylist()[0]
    assert (first["wide"], last["wide"]) == (1.0, 2.5)
    assert (first["text"], last["text"]) == ("a", "b")
    assert (first["broken"], last["broken"]) == ('"a"', "7")
    assert (first["none"], last["none"]) == (None, 3)
    assert (first["s"], last["s"]) == ({"a": 1, "b": None}, {"a": None, "b": "x"})
    assert (first["new"], last["new"]) == (None, True)
    assert table.num_rows == 10_001


def test_long_rows_are_held_by_their_bytes(job, monkeypatch):
    monkeypatch.setattr(tables, "_BYTES_A_GROUP", 2000)
    run(dataclasses.replace(job, format="parquet", unit_bytes=None), LengthScorer())
    (part,) = (job.out / "examples").iterdir()
    file = pq.ParquetFile(part)
    assert file.metadata.num_rows == 600
    # Each row has 150 to 310 bytes, and is there twice.
    assert 50 < file.num_row_groups < 120


def test_rows_of_a_table_are_held_by_all_that_they_carry(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_BYTES_A_GROUP", 10_000)
    rows = [
        {"prompt": "why", "response": "so", "image": {"bytes": b"x" * 1000}, "vector": [0.5] * 100, "tags": ["a"]}
        for _ in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    run(Job((str(tmp_path / "in.parquet"),), tmp_path / "out", format="parquet"), LengthScorer())
    file = pq.ParquetFile(tmp_path / "out" / "examples" / "part-00000.parquet")
    # 1,000 bytes, 100 numbers of 32 and a few letters: 4,206 a row, so the third is one too many.
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [3] * 20


def test_both_containers_hold_the_same(tmp_path):
    rows = [
        {"id": f"c{n}", "turns": [{"role": "speaker", "text": "x" * n}, {"role": "listener", "text": "y" * (3 * n)}]}
        for n in range(1, 40)
    ]
    (tmp_path / "in.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    manifests = [
        run(Job((str(tmp_path / "in.jsonl"),), tmp_path / name, format=name), LengthScorer(), PaperPolicy()).manifest
        for name in ("jsonl", "parquet")
    ]
    assert manifests[0]["subsets"] == manifests[1]["subsets"]
    for name in manifests[0]["subsets"]:
        lines = (tmp_path / "jsonl" / name / "part-00000.jsonl").read_bytes().splitlines()
        table = pq.read_table(tmp_path / "parquet" / name / "part-00000.parquet")
        assert [orjson.loads(line) for line in lines] == table.to_pylist()


def test_numbers_that_no_float_holds_make_the_column_text(tmp_path):
    # 2^53 + 1 in the first row group, a fraction in the second: as float64 the first would lose its last digit.
    rows = [{"n": 9007199254740993, "m": 1}] * 10_000 + [{"n": 0.5, "m": 0.5}]
    table = written(tmp_path, rows)
    assert table.column("n").to_pylist()[:2] == ["9007199254740993"] * 2
    assert table.column("n").to_pylist()[-1] == "0.5"
    assert table.column("m").to_pylist()[-2:] == [1.0, 0.5]
