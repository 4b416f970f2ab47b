"""What verify finds: files, counts, and the chain back to scorer, labels, rubric and data."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from efficient_empathy.audit import places
from efficient_empathy.audit.commands import verify_command
from efficient_empathy.audit.files import check_files, open_folder
from efficient_empathy.audit.verifying import describe, verify
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import (
    manifest_digest,
    pretty_json,
    read_manifest,
    sha256_file,
    write_manifest,
    write_manifest_file,
)


def call(*words):
    return CliRunner().invoke(verify_command, [str(word) for word in words])


def links(result):
    """Every link of the chain as ``what: state``, by depth."""

    def below(found, depth):
        for link in found:
            yield f"{'  ' * depth}{link.what}: {link.state}"
            yield from below(link.made_from, depth + 1)

    return list(below(result.chain, 0))


def rewrite(folder, change):
    """The manifest with a change, and with the right hash of its own: as a writer with a mistake would leave it."""
    record = read_manifest(folder)
    change(record)
    kind, files = record.pop("kind"), record.pop("files")
    record.pop("format")
    write_manifest(folder, kind, record, files)


def test_files_that_are_changed_missing_and_unknown(make_run, scorer_folder):
    folder = make_run()
    whole = call(folder, scorer_folder)
    assert whole.exit_code == 0, whole.stdout
    assert f"{folder}: all 4 files are as they were written (subsets)\n" in whole.stdout
    assert "beside the manifest: run.json (times and machine of the run)\n" in whole.stdout
    assert "(scorer)" in whole.stdout
    (folder / "sensibility" / "part-00000.jsonl").write_text("{}\n")
    (folder / "discarded" / "part-00000.jsonl").unlink()
    (folder / "discarded" / "part-00009.jsonl").write_text("{}\n")
    (folder / "sensibility" / ".hidden").write_text("")
    changed = call(folder)
    assert changed.exit_code == 1
    assert f"{folder}: 'discarded/part-00000.jsonl' is missing\n" in changed.stdout
    assert f"{folder}: 'sensibility/part-00000.jsonl' has changed" in changed.stdout
    assert f"{folder}: 'discarded/part-00009.jsonl' is not in the manifest" in changed.stdout
    (found,) = orjson.loads(call(folder, "--json").stdout)
    assert (found["kind"], found["files"], len(found["problems"]), found["chain"]) == ("subsets", 4, 3, [])


def test_what_cannot_be_read_is_exit_code_2(tmp_path):
    for path, match in [(tmp_path, r"has no manifest\.json"), (tmp_path / "none", r"has no manifest\.json")]:
        with pytest.raises(EmpathyError, match=match):
            verify(path)
    (tmp_path / "file.jsonl").write_text("{}\n")
    with pytest.raises(EmpathyError, match=r"has no 'file\.manifest\.json' beside it"):
        verify(tmp_path / "file.jsonl")


def test_the_chain_of_a_filter_run_back_to_its_data(make_run, make_labels, scorer_folder, tmp_path):
    labels, rubric = make_labels(), Rubric.load()
    scorer = shutil.copytree(scorer_folder, tmp_path / "scorer")
    spec = orjson.loads((scorer / "scorer.json").read_bytes())
    (scorer / "scorer.json").write_bytes(pretty_json({**spec, "rubric": {"name": "e", "sha256": rubric.digest}}))
    inputs = [{"path": "dialogues.jsonl", "bytes": 1, "sha256": sha256_file(tmp_path / "dialogues.jsonl")}]
    file = {"name": "labels.jsonl", "sha256": sha256_file(labels)}
    made_of = {"examples": 5, "trained_on": 3, "held_out": 2, "file": file, "inputs": inputs}
    write_manifest(scorer, "scorer", {"rubric": rubric.as_dict(), "labels": made_of}, [*read_manifest(scorer)["files"]])
    folder = make_run(scorer=scorer)
    whole = [
        "scorer: same",
        "  rubric: same",
        "  labels: same",
        "    rubric: recorded",
        "    judge: recorded",
        "    input: same",
        "  input: same",
        "input: same",
    ]
    result = verify(folder)
    assert (result.problems, links(result)) == ([], whole)
    text = describe(result)
    assert f"├─ scorer scorer {manifest_digest(scorer)[:12]}…: same ({scorer})" in text
    assert "│  ├─ labels labels.jsonl" in text

    away = tmp_path / "away" / "far"  # moved and renamed, it is found by its hash
    away.parent.mkdir()
    scorer.rename(away)
    assert links(verify(folder))[0] == "scorer: same"
    (tmp_path / "rows.jsonl").rename(tmp_path / "away" / "rows.gz")
    (tmp_path / "dialogues.jsonl").unlink()
    gone = verify(folder)
    assert gone.problems == []  # what is gone is said, and is nobody's fault
    assert [line for line in links(gone) if "gone" in line] == [
        "    input: moved or gone",
        "  input: moved or gone",
        "input: moved or gone",
    ]
    assert "What was moved is found by its hash with --search FOLDER." in describe(gone)

    (tmp_path / "rows.jsonl").write_text("other\n")
    (away / "tokenizer.json").write_text("{}")
    changed = verify(folder)
    assert any("input" in problem and "rows.jsonl' has changed" in problem for problem in changed.problems)
    assert any(f"scorer '{away}' has changed: 'tokenizer.json'" in problem for problem in changed.problems)
    assert call(folder).exit_code == 1


def test_a_scorer_far_away_is_found_where_the_run_noted_it_or_with_search(make_run, scorer_folder, tmp_path):
    folder = make_run("deep/in/some/place/run")
    assert links(verify(folder))[0] == "scorer: same"  # run.json says where it was
    (folder / "run.json").unlink()
    assert links(verify(folder))[0] == "scorer: moved or gone"
    assert links(verify(folder, search=[scorer_folder.parent]))[0] == "scorer: same"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["counts"].update(examples=6), "examples of all subsets: 5, but the manifest counts 6"),
        (lambda r: r["counts"].update(rejected=2), "rejected rows by reason: 1, but the manifest counts 2"),
        (lambda r: r["subsets"]["rationality"].update(examples=4), "rows in rationality/: 3, but the manifest says 4"),
        (lambda r: r.pop("counts"), "its counts cannot be checked"),
    ],
)
@pytest.mark.parametrize("container", ["jsonl", "parquet"])
def test_counts_that_do_not_add_up(make_run, change, said, container):
    folder = make_run(container=container)
    assert verify(folder, deep=True).problems == []
    rewrite(folder, change)
    assert said in " ".join(verify(folder).problems)


def test_deep_reads_every_row(make_run):
    folder = make_run()
    path = folder / "sensibility" / "part-00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"ee_rationality":4.0', b'"ee_rationality":9.0'))
    files = read_manifest(folder)["files"]
    rewrite(folder, lambda record: record["files"].update({name: sha256_file(folder / name) for name in files}))
    assert verify(folder).problems == []
    assert verify(folder, deep=True).problems == [
        "'sensibility/part-00000.jsonl': 1 rows that the policy does not put there",
        "mean rationality in sensibility/ is 9.0000, but the manifest says 4.0",
    ]


def test_labels_and_their_counts(make_labels):
    path = make_labels()
    result = verify(path)
    assert (result.kind, result.problems, list(result.beside)) == ("labels", [], ["labels.sqlite"])
    assert links(result) == ["rubric: recorded", "judge: recorded", "input: same"]
    beside = path.with_name("labels.manifest.json")
    assert verify(beside).folder == str(beside)
    record = orjson.loads(beside.read_bytes())
    files = record.pop("files")
    body = {key: value for key, value in record.items() if key not in ("kind", "format", "manifest_sha256")}
    write_manifest_file(beside, "labels", {**body, "not_asked": 3}, files)
    assert verify(path).problems == ["scored, unscored and not asked: 8, but the manifest counts 5"]


def test_labels_and_the_store_of_the_answers(make_labels):
    path = make_labels()
    store = path.with_name("labels.sqlite")
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("""UPDATE answers SET scores = '{"sensibility":1,"rationality":3}' WHERE rowid = 2""")
    assert verify(path).problems == ["1 labels are not what the store 'labels.sqlite' holds of them"]
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(store.read_bytes())
    data[4096:4200] = bytes(104)  # the head of the page that holds the table
    store.write_bytes(data)
    (problem,) = verify(path).problems
    assert problem.startswith("the store 'labels.sqlite' ")
    store.unlink()
    assert verify(path).problems == []


def test_experts_know_the_subsets_that_they_learnt_from(make_run, tmp_path):
    pytest.importorskip("torch", reason="torch is part of the experts extra")
    from efficient_empathy.experts.subsets import choose

    folder = make_run()
    chosen = choose([str(folder / "rationality")], "none", 0.2, 0)
    assert chosen.selection["runs"] == [{"folder": "run", "digest": manifest_digest(folder)}]
    expert = tmp_path / "expert"
    expert.mkdir()
    base = {"name": "tiny", "digest": "0" * 64}
    record = {"base": base, "renderer": {}, "options": {}, "data": {"selection": chosen.selection}, "result": {}}
    (expert / "expert.json").write_bytes(pretty_json(record))
    write_manifest(expert, "expert", {}, ["expert.json"])
    assert links(verify(expert)) == [
        "base: recorded",
        "subsets: same",
        "  scorer: same",
        "    rubric: not recorded",
        "    labels: not recorded",
        "  input: same",
    ]
    (folder / "rationality" / "part-00000.jsonl").write_text("{}\n")
    assert "'rationality/part-00000.jsonl' has changed" in verify(expert).problems[0]
    with pytest.raises(EmpathyError, match=r"'rationality/part-00000\.jsonl' has changed"):
        choose([str(folder / "rationality")], "none", 0.2, 0)


def test_a_file_that_was_put_into_a_subset_is_not_trained_on(make_run):
    pytest.importorskip("torch", reason="torch is part of the experts extra")
    from efficient_empathy.experts.subsets import choose

    folder = make_run()
    (folder / "rationality" / "more.jsonl").write_text('{"id": "x", "context": ["a"], "response": "b"}\n')
    with pytest.raises(EmpathyError, match=r"'rationality/more\.jsonl' is not in its manifest"):
        choose([str(folder / "rationality")], "none", 0.2, 0)


def test_a_mixture_s_experts_are_those_of_its_router(make_mixture, make_evaluation, make_pairwise):
    assert links(verify(make_mixture())) == [
        "base: recorded",
        "expert: same",
        "  base: recorded",
        "expert: same",
        "  base: recorded",
    ]
    evaluation = links(verify(make_evaluation()))
    assert evaluation == ["answers: same", "  base: recorded"] * 2 + ["scorer: moved or gone"]
    assert links(verify(make_pairwise())) == ["answers: same", "  base: recorded"] * 2


def test_a_mixture_is_not_taken_for_an_expert_inside_it(make_mixture):
    mixture = make_mixture()
    files = read_manifest(mixture)["files"]
    name, sha256 = next((n, digest) for n, digest in files.items() if n.endswith("adapter_model.safetensors"))
    found = places.Places(mixture / "router.safetensors")
    assert found.holding("expert", sha256) == mixture / Path(name).parent
    assert found.holding("mixture", sha256) is None
    assert found.holding("mixture", files["router.safetensors"]) == mixture


def test_a_neighbour_that_may_not_be_read_is_passed_over(make_run, tmp_path, monkeypatch):
    run = make_run()
    private = tmp_path.parent / "neighbour"
    private.mkdir()
    (private / "manifest.json").write_text("{}")
    (private / "rows.jsonl").write_text("{}")
    opened = places.sha256_file

    def guarded(path):
        # The user who runs the tests may be one to whom no file is closed.
        if Path(path).parent == private:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(places, "sha256_file", guarded)
    assert verify(run).problems == []


def test_verdicts_inside_an_evaluation_belong_there(make_evaluation, make_pairwise):
    evaluation = make_evaluation()
    shutil.copytree(make_pairwise(), evaluation / "pairwise")
    found = check_files(open_folder(evaluation))
    assert (found.problems, list(found.beside)) == ([], ["pairwise/"])
    assert verify(evaluation / "pairwise").problems == []
    (evaluation / "other").mkdir()
    (evaluation / "other" / "x").write_text("")
    assert check_files(open_folder(evaluation)).problems == [
        "'other/x' is not in the manifest: the run did not write it"
    ]
