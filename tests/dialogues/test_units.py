"""Inputs become the same units each time, and any cut gives the same rows."""

import os
import pickle
import re

import fsspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_empathy.dialogues import EXAMPLE_MODES, Record, plan_units, read_examples, read_records, read_unit
from efficient_empathy.dialogues.files import file_size, find_files
from efficient_empathy.dialogues.paths import kept_name, row_names, shown_path
from efficient_empathy.errors import EmpathyError

ROW = b'{"prompt":"a","response":"b"}'


def _found(units):
    return [(type(found).__name__, found.line, found.raw) for unit in units for found in read_unit(unit)]


LINES = st.sampled_from(
    [ROW, b"", b"   ", b"not json", b"[1]", b"\xff\xfe", '{"prompt":"\u2028x","response":"y"}'.encode()]
)


@settings(deadline=None, max_examples=60)
@given(lines=st.lists(LINES, min_size=1, max_size=12), ends=st.sampled_from([b"\n", b"\r\n"]), last=st.booleans())
def test_any_cut_gives_the_same_rows(tmp_path_factory, lines, ends, last):
    path = tmp_path_factory.mktemp("cut") / "x.jsonl"
    data = ends.join(lines) + (ends if last else b"")
    path.write_bytes(data)
    if not data:
        return
    whole = plan_units([str(path)])
    assert [(unit.start, unit.stop) for unit in whole] == [(0, len(data))]
    expected = _found(whole)
    assert [line for _, line, _ in expected] == [number for number, line in enumerate(lines, 1) if line.strip()]
    for size in range(1, len(data) + 2):
        units = plan_units([str(path)], unit_bytes=size)
        assert _found(units) == expected
        assert [unit.index for unit in units] == list(range(len(units)))
        assert [unit.start for unit in units[1:]] == [unit.stop for unit in units[:-1]]


def test_a_unit_larger_than_a_scan_and_a_line_larger_than_a_unit(tmp_path):
    path = tmp_path / "big.jsonl"
    long = orjson.dumps({"prompt": "p" * (9 << 20), "response": "b"})
    path.write_bytes(b"\n".join([ROW, long, ROW, long, ROW]))
    # A unit of 4 MiB ends with the line that reaches it: rows 1-2, rows 3-4, row 5.
    units = plan_units([str(path)], unit_bytes=4 << 20)
    assert [unit.line for unit in units] == [1, 3, 5]
    assert [line for _, line, _ in _found(units)] == [1, 2, 3, 4, 5]


def test_units_are_small_and_travel(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(ROW)
    units = plan_units([str(tmp_path / "x.jsonl")])
    assert pickle.loads(pickle.dumps(units)) == units
    assert set(EXAMPLE_MODES) == {"every-turn", "last-turn"}


def _tree(root):
    for name in (
        "a.jsonl", "sub/b.jsonl", ".hidden.jsonl", ".git/c.jsonl", "rejected/d.jsonl", "sub/rejected/e.jsonl",
        "notes.txt", "sub/.units/plan.json",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(ROW + b"\n")
    (root / "manifest.json").write_bytes(b'{"kind": "scored"}')
    (root / "sub" / "run.json").write_bytes(b"{}")


def test_a_folder_means_its_data_files(tmp_path):
    _tree(tmp_path)
    units = plan_units([str(tmp_path)])
    assert [unit.path for unit in units] == [str(tmp_path / "a.jsonl"), str(tmp_path / "sub" / "b.jsonl")]


@pytest.mark.parametrize(
    ("manifest", "read"), [('{"kind": "subsets"}', False), ('{"kind": "expert"}', True), ("[", True)]
)
def test_a_folder_of_rejected_rows_is_passed_over_only_where_it_is_ours(tmp_path, caplog, manifest, read):
    for name in ("a.jsonl", "rejected/b.jsonl", "rejected/more/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(ROW)
    (tmp_path / "manifest.json").write_text(manifest)
    found = [os.path.relpath(path, tmp_path) for path in find_files([str(tmp_path)])]
    find_files([str(tmp_path)])  # a command looks more than once, and says it once
    if read:
        assert (found, caplog.messages) == (["a.jsonl", "rejected/b.jsonl", "rejected/more/c.jsonl"], [])
    else:
        assert found == ["a.jsonl"]
        assert caplog.messages == [f"'{tmp_path}': passed over rejected/, rows that ee-cli could not read."]


def test_links_to_folders_are_named(tmp_path, caplog):
    (tmp_path / "raw" / "sub").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_bytes(ROW)
    (tmp_path / "far" / "b.jsonl").write_bytes(ROW)
    for name in ("sub/one", "two", "three", "four", ".hidden"):
        (tmp_path / "raw" / name).symlink_to(tmp_path / "far")
    (tmp_path / "raw" / "file.jsonl").symlink_to(tmp_path / "far" / "b.jsonl")
    found = find_files([str(tmp_path / "raw")])
    assert [os.path.basename(path) for path in found] == ["a.jsonl", "file.jsonl"]
    assert caplog.messages == [
        f"'{tmp_path}/raw': links to folders are not followed: four/, sub/one/, three/ and 1 more. Name such a folder itself to "
        "read it."
    ]


def test_links_to_files_that_are_not_there_are_said(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(ROW)
    (tmp_path / "README").symlink_to(tmp_path / "pruned" / "README")
    assert len(find_files([str(tmp_path / "[aR]*")])) == 1  # no file of data: it would not be read in any case
    for name in ("b", "c"):
        (tmp_path / f"{name}.jsonl").symlink_to(tmp_path / "pruned" / name)
    with pytest.raises(EmpathyError, match=r"[bc]\.jsonl' is a link to a file that is not there, and 1 more of"):
        find_files([str(tmp_path / "*.jsonl")])
    with pytest.raises(EmpathyError, match=r"there is no file or folder '.*b\.jsonl'"):
        plan_units([str(tmp_path)])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/d/x.jsonl", "/d/y.jsonl"], ["x.jsonl", "y.jsonl"]),
        (["/d/s/train/a.arrow", "/d/s/test/a.arrow"], ["train/a.arrow", "test/a.arrow"]),
        (["/d/accepted/x.jsonl", "/d/rejected/x.jsonl", "/d/z.csv"], ["accepted/x.jsonl", "rejected/x.jsonl", "z.csv"]),
        (["/b/x.jsonl", "/c/b/x.jsonl", "/a/x.jsonl"], ["/b/x.jsonl", "c/b/x.jsonl", "a/x.jsonl"]),
        (["/x.jsonl", "/d/x.jsonl"], ["/x.jsonl", "d/x.jsonl"]),
        (["/1/s/test/a.arrow", "/2/s/test/a.arrow"], ["1/s/test/a.arrow", "2/s/test/a.arrow"]),
        (["s3://b/1/x.jsonl", "s3://b/2/x.jsonl?k=v"], ["1/x.jsonl", "2/x.jsonl"]),
        (["https://u:SECRET@h/x.jsonl", "/d/h/x.jsonl"], ["/h/x.jsonl", "d/h/x.jsonl"]),
    ],
)  # fmt: skip
def test_files_of_one_name_are_told_apart_by_their_folders(paths, names):
    assert row_names(paths) == names


def test_urls_of_one_name_are_told_apart_without_their_keys():
    names = row_names([f"https://h/x.jsonl?part={part}&sig=SECRET" for part in (1, 2)])
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"https://h/x\.jsonl#[0-9a-f]{12}", name) for name in names)


def test_rows_of_two_files_of_one_name_have_ids_of_their_own(tmp_path, monkeypatch):
    for folder in ("accepted", "rejected"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_bytes(ROW + b"\n" + ROW)
    (tmp_path / "y.jsonl").write_bytes(ROW)
    expected = ["accepted/x.jsonl:1", "accepted/x.jsonl:2", "rejected/x.jsonl:1", "rejected/x.jsonl:2", "y.jsonl:1"]
    units = plan_units([str(tmp_path)], unit_bytes=1)
    assert len(units) == 5
    found = [found for unit in pickle.loads(pickle.dumps(units)) for found in read_unit(unit)]
    assert [record.dialogue.id for record in found] == expected
    fast = [example.id for unit in units for _, examples in read_examples(unit) for example in examples]
    assert fast == expected
    # From the folder itself they are called the same; and a file alone is called as ever.
    monkeypatch.chdir(tmp_path / "accepted")
    assert [record.dialogue.id for record in read_records(["../y.jsonl", "x.jsonl", "../rejected"])] == [
        *expected[2:4], expected[4], *expected[:2],
    ]  # fmt: skip
    assert [record.dialogue.id for record in read_records(["x.jsonl"])] == ["x.jsonl:1", "x.jsonl:2"]


def test_inputs_are_sorted_and_each_is_read_once(tmp_path, monkeypatch):
    _tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    several = plan_units(["sub", "*.jsonl", "a.jsonl", "./a.jsonl"])
    assert [unit.path for unit in several] == ["./a.jsonl", "sub/b.jsonl"]
    assert plan_units(["sub/*.jsonl", "a.jsonl"]) == plan_units(["a.jsonl", "sub"])
    assert [unit.path for unit in plan_units(["**/b.jsonl"])] == ["sub/b.jsonl"]


def test_a_name_with_glob_characters_is_a_name(tmp_path):
    path = tmp_path / "odd[1].jsonl"
    path.write_bytes(ROW)
    assert [unit.path for unit in plan_units([str(path)])] == [str(path)]


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    with system.open("/data/a.jsonl", "wb") as file:
        file.write(ROW + b"\n" + ROW)
    with system.open("/data/rejected/b.jsonl", "wb") as file:
        file.write(ROW)
    system.pipe("/data/manifest.json", b'{"kind": "answers"}')
    yield system
    system.rm("/data", recursive=True)


@pytest.mark.parametrize("name", ["memory://data", "memory://data/*.jsonl", "memory://data/a.jsonl"])
def test_urls(memory, name):
    units = plan_units([name], unit_bytes=10)
    rows = [found for unit in units for found in read_unit(unit)]
    assert [(row.line, row.dialogue.id) for row in rows if isinstance(row, Record)] == [
        (1, "a.jsonl:1"),
        (2, "a.jsonl:2"),
    ]


def test_an_empty_file_among_others_is_no_fault(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(ROW)
    assert [unit.path for unit in plan_units([str(tmp_path)])] == [str(tmp_path / "b.jsonl")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "there is no file or folder 'missing.jsonl'"),
        ("owner/name", "hf://datasets/owner/name"),
        ("*.nothing", "matches no file"),
        ("*.txt", "none of a known container"),
        ("notes.txt", "no known container"),
        ("void", "holds no file of a known container"),
        ("empty.jsonl", "the input is empty"),
        ("empty.jsonl.gz", "the input is empty"),
        ("broken.parquet", "is not a Parquet file, or is damaged"),
        ("broken.arrow", "is not an Arrow file, or is damaged"),
        ("object.json", "holds one JSON object"),
        ("nowhere://x/y.jsonl", "cannot read 'nowhere://x/y.jsonl'"),
        ("memory://nothing/here.jsonl", "there is no file or folder"),
    ],
)
def test_what_the_user_can_mend(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "void").mkdir()
    for path, data in {
        "notes.txt": b"x", "empty.jsonl": b"", "empty.jsonl.gz": b"", "object.json": b'{\n"a": 1\n}',
        "broken.parquet": b"PAR1 and no more", "broken.arrow": b"what is this, then?",
    }.items():  # fmt: skip
        (tmp_path / path).write_bytes(data)
    with pytest.raises(EmpathyError) as caught:
        plan_units([name])
    assert message in str(caught.value)


def test_no_input_and_no_size(tmp_path):
    with pytest.raises(EmpathyError, match="no input"):
        plan_units([])
    with pytest.raises(EmpathyError, match="unit_bytes must be at least 1"):
        plan_units([str(tmp_path)], unit_bytes=0)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)  # as if it were not installed
    with pytest.raises(EmpathyError, match="pip install huggingface_hub"):
        plan_units(["hf://datasets/owner/name"])


def test_small_inputs_are_cut_finer_so_that_workers_can_share_them(tmp_path):
    # 3 MiB of lines of 1 KiB: 256 KiB a unit at the least, though a 64th would be less.
    (tmp_path / "a.jsonl").write_bytes(b"{}".ljust(1023) + b"\n")
    (tmp_path / "b.jsonl").write_bytes((b"{}".ljust(1023) + b"\n") * 3 * 1024)
    assert [unit.stop - unit.start for unit in plan_units([str(tmp_path)], None)] == [1024, *[256 << 10] * 12]
    assert len(plan_units([str(tmp_path)])) == 2
    # 96 MiB: a 64th is 1.5 MiB.
    with open(tmp_path / "b.jsonl", "ab") as file:
        file.write((b"{}".ljust(1023) + b"\n") * 93 * 1024)
    sizes = [unit.stop - unit.start for unit in plan_units([str(tmp_path / "b.jsonl")], None)]
    assert sizes == [3 << 19] * 64


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(ROW)
    (tmp_path / "part2").mkdir()
    scandir = os.scandir

    def guarded(path):
        # The user who runs the tests may be one to whom no folder is closed.
        if str(path).endswith("part2"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(EmpathyError, match=r"cannot read '.*part2': Permission denied"):
        plan_units([str(tmp_path)])


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("data/a?b@c.jsonl", "data/a?b@c.jsonl"),
        ("https://acct.example/c/d.jsonl?sv=1&sig=SECRET", "https://acct.example/c/d.jsonl"),
        ("https://user:pw@host/d.jsonl", "https://host/d.jsonl"),
        ("s3://bucket/a@b.jsonl", "s3://bucket/a@b.jsonl"),
        ("https://user:p@w@host/d.jsonl", "https://host/d.jsonl"),
        ("memory:///user:SECRET@x/d.jsonl", "memory://x/d.jsonl"),
        ("simplecache::ftp://user:pw@host/d.jsonl", "simplecache::ftp://host/d.jsonl"),
    ],
)
def test_what_is_passed_on_of_a_path_holds_no_keys(path, shown):
    assert shown_path(path) == shown


def test_what_is_kept_of_a_path_tells_those_apart_that_differ_in_what_is_left_out():
    assert kept_name("a/b?.jsonl") == "a/b?.jsonl"
    assert kept_name("https://host/d.jsonl") == "https://host/d.jsonl"
    kept = [kept_name(f"https://user:{key}@host/d.jsonl?sig={key}") for key in ("SECRET", "OTHER")]
    assert all(re.fullmatch(r"https://host/d\.jsonl#[0-9a-f]{12}", name) for name in kept)
    assert kept[0] != kept[1]


def test_the_size_of_a_url_that_is_gone_is_one_sentence():
    with pytest.raises(EmpathyError, match=r"there is no file or folder 'memory://gone/d\.jsonl'; check the name"):
        file_size("memory://gone/d.jsonl?sig=SECRET")


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jsonl", "wb"):
        pass
    with pytest.raises(EmpathyError, match=r"caf\\xe9\.jsonl' is not UTF-8; rename the file"):
        find_files([str(tmp_path)])
