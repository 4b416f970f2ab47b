"""Hashes and atomic writes: what is on the disk is the old content or the new, never a part."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import (
    atomic_folder,
    atomic_open,
    canonical_json,
    changed_files,
    file_hashes,
    pretty_json,
    read_manifest,
    sha256_bytes,
    sha256_file,
    versions,
    write_atomic,
    write_manifest,
)

ROOT = Path(__file__).parents[1]
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180-2, appendix B.1


def test_hashes_are_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    large = bytes(range(256)) * 8192 + b"!"  # 2 MiB and a byte: read in three pieces
    (tmp_path / "large").write_bytes(large)
    assert sha256_bytes(b"abc") == sha256_file(tmp_path / "abc") == ABC
    assert sha256_file(tmp_path / "large") == hashlib.sha256(large).hexdigest()
    assert list(file_hashes(tmp_path, ["large", "abc"])) == ["abc", "large"]


def test_equal_values_have_equal_canonical_bytes():
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == canonical_json({"a": [1.5, "é"], "b": 1})
    assert canonical_json({"a": np.float32(0.5)}) == b'{"a":0.5}'
    assert pretty_json({"b": 1, "a": 2}) == b'{\n  "b": 1,\n  "a": 2\n}\n'


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomic(path, b"old")
    with pytest.raises(RuntimeError, match="stopped"), atomic_open(path) as file:
        file.write(b"half of the n")
        raise RuntimeError("stopped")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("umask", "of_file", "of_folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775)]
)
def test_what_is_written_has_the_rights_that_the_umask_leaves(tmp_path, umask, of_file, of_folder):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"x")
        with atomic_folder(tmp_path / "folder") as folder:
            write_atomic(folder / "file", b"x")
    finally:
        os.umask(before)
    written = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert written == {"file": of_file, "folder": of_folder, "folder/file": of_file}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EmpathyError, match=r"cannot write to .*file.*Choose another output folder"):
        write_atomic(tmp_path / "file" / "x", b"")


def test_the_manifest_is_the_same_for_the_same_work_and_finds_changes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_atomic(tmp_path / name / "abc", b"abc")
        write_manifest(tmp_path / name, "scorer", {"seed": 0}, ["abc"])
    first = tmp_path / "one"
    assert (first / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()
    expected = {"kind": "scorer", "format": 2, "seed": 0, "files": {"abc": ABC}}
    assert read_manifest(first) == read_manifest(first, "scorer") == expected
    assert changed_files(first) == []
    (first / "abc").write_bytes(b"abd")
    (problem,) = changed_files(first)
    assert problem.startswith("'abc' has changed")
    assert ABC[:12] in problem
    (first / "abc").unlink()
    assert changed_files(first) == ["'abc' is missing"]


def test_a_manifest_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(EmpathyError, match="not a folder written by ee-cli, or the run that wrote it did not finish"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(EmpathyError, match="has no manifest"):
        read_manifest(tmp_path / "file")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(EmpathyError, match="not valid JSON"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_bytes(orjson.dumps({"kind": "subsets", "files": {}}))
    with pytest.raises(EmpathyError, match="kind 'subsets', but one of kind 'scorer'"):
        read_manifest(tmp_path, "scorer")


@pytest.mark.parametrize(
    "content", ["[]", '{"kind": "scorer"}', '{"files": {}}', '{"kind": "scorer", "files": []}', "\ud800"]
)
def test_json_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(EmpathyError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_versions_leave_out_what_is_absent():
    found = versions("click", "surely-not-installed")
    assert found["click"].startswith("8.")
    assert "surely-not-installed" not in found
    assert set(found) >= {"python", "click"}


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    left, neighbour = tmp_path / ".scorer.abcdefgh.unfinished", tmp_path / ".scorer.v2.abcdefgh.unfinished"
    left.mkdir()
    neighbour.mkdir()
    with pytest.raises(ValueError, match="half way"), atomic_folder(tmp_path / "scorer") as folder:
        (folder / "a").write_text("a")
        raise ValueError("half way")
    # What a killed run of the same name left is gone, as is the half; 'scorer.v2' may still be written by somebody.
    assert list(tmp_path.iterdir()) == [neighbour]
    with atomic_folder(tmp_path / "scorer") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "scorer").exists()
    assert (tmp_path / "scorer" / "a").read_text() == "a"
    assert sorted(tmp_path.iterdir()) == [neighbour, tmp_path / "scorer"]


HOLDING = """
import sys, time
from pathlib import Path
from efficient_empathy.manifest import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "work").write_text("half done")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_the_unfinished_folder_of_a_run_at_work_stays_and_that_of_a_killed_one_goes(tmp_path):
    out = tmp_path / "scorer"
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(out)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout.readline() == b"ready\n"
        (theirs,) = tmp_path.iterdir()
        with atomic_folder(out) as ours:
            (ours / "done").write_text("x")
            assert (theirs / "work").read_text() == "half done"
    finally:
        process.kill()
        process.communicate()
    assert theirs.is_dir()
    with pytest.raises(EmpathyError, match="Did another run make it meanwhile"), atomic_folder(out):
        assert not theirs.exists()
    assert (out / "done").read_text() == "x"


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EmpathyError, match=r"cannot write '.*plan.json': No space left on device"):
        write_atomic(tmp_path / "plan.json", b"{}")
    assert list(tmp_path.iterdir()) == []
