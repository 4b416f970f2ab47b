"""A scorer folder is read as it was written, or not at all."""

import shutil

import orjson
import pytest

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import pretty_json, sha256_file, write_manifest
from efficient_empathy.scorer.artifact import SPEC_FILE, TOKENIZER_FILE, Scale, read_artifact, write_spec

FILES = ["transformer.fp32.onnx", TOKENIZER_FILE, SPEC_FILE]


@pytest.fixture
def folder(scorer_folder, tmp_path):
    return shutil.copytree(scorer_folder, tmp_path / "scorer")


def rewrite(path, change):
    record = orjson.loads(path.read_bytes())
    change(record)
    path.write_bytes(pretty_json(record))


def test_what_was_written_is_read(folder, tmp_path):
    spec, digest = read_artifact(folder)
    assert spec.dimensions == (Scale("sensibility", 0.0, 10.0), Scale("rationality", 0.0, 10.0))
    assert spec.tiers == {"transformer": {"fp32": "transformer.fp32.onnx"}}
    assert spec.encoding.max_tokens == 64
    assert digest == sha256_file(folder / "manifest.json")
    write_spec(tmp_path, spec)
    assert (tmp_path / SPEC_FILE).read_bytes() == (folder / SPEC_FILE).read_bytes()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 100, -1])
def test_one_changed_byte_is_refused_and_the_file_named(folder, name, place):
    data = bytearray((folder / name).read_bytes())
    data[place] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(EmpathyError, match=f"'{name}' has changed"):
        read_artifact(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(EmpathyError, match=f"'{name}' is missing"):
        read_artifact(folder)


def test_every_problem_is_named_at_once(folder):
    (folder / TOKENIZER_FILE).unlink()
    (folder / SPEC_FILE).write_text("{}")
    with pytest.raises(EmpathyError, match=r"'scorer\.json' has changed: .*'tokenizer\.json' is missing"):
        read_artifact(folder)


def test_other_files_beside_them_do_not_matter(folder):
    (folder / "notes.txt").write_text("mine")
    assert read_artifact(folder)[0].dimensions[0].name == "sensibility"


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_manifest_leaves_out_is_not_trusted(folder, name):
    write_manifest(folder, "scorer", {}, [other for other in FILES if other != name])
    with pytest.raises(EmpathyError, match=f"does not vouch for {name}"):
        read_artifact(folder)


def test_a_folder_of_another_kind(folder):
    write_manifest(folder, "subsets", {}, FILES)
    with pytest.raises(EmpathyError, match="of kind 'subsets', but one of kind 'scorer' was expected"):
        read_artifact(folder)


def test_a_newer_format(folder):
    rewrite(folder / SPEC_FILE, lambda record: record.update(format=2, something_new=1))
    write_manifest(folder, "scorer", {}, FILES)
    with pytest.raises(EmpathyError, match="scorer format 2, this version reads format 1: update efficient-empathy"):
        read_artifact(folder)


def test_no_folder_and_no_manifest(folder, tmp_path):
    with pytest.raises(EmpathyError, match=r"there is no scorer folder '.*nowhere'"):
        read_artifact(tmp_path / "nowhere")
    (folder / "manifest.json").unlink()
    with pytest.raises(EmpathyError, match=r"has no manifest\.json"):
        read_artifact(folder)
