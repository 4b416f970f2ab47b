"""Folders to a Hub and back: what goes, what comes, what is refused, and what is remembered of it."""

import json
import shutil
from pathlib import Path

import pytest

from efficient_empathy.audit.verifying import verify
from efficient_empathy.errors import EmpathyError
from efficient_empathy.hub.client import check_names, saying, vouched_files
from efficient_empathy.hub.pulling import pull
from efficient_empathy.manifest import read_manifest, read_origin, sha256_file, write_manifest
from efficient_empathy.scorer.scorer import Scorer

REPO = "me/counts"


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture
def scorer(scorer_folder, tmp_path) -> Path:
    return shutil.copytree(scorer_folder, tmp_path / "mine")


def test_pushed_and_pulled_it_is_the_same_folder_and_later_runs_say_where_it_came_from(
    scorer, hub_server, ee, tmp_path
):
    (scorer / "it's mine.txt").write_text("mine")
    (scorer / "run.json").write_text("{}")
    pushed = ee("push", scorer, REPO, "--private", "--json")
    assert pushed.returncode == 0, pushed.stderr
    done = json.loads(pushed.stdout)
    repo = hub_server.repos[REPO]
    assert repo.private
    assert done["commit"] == repo.branches["main"]
    assert sorted(done["left_here"]) == ["it's mine.txt", "run.json"]
    assert repo.commits[done["commit"]] == {
        name: data for name, data in everything(scorer).items() if name not in ("it's mine.txt", "run.json")
    }
    assert hub_server.large  # the graph went the way of large files

    out = tmp_path / "pulled"
    pulled = ee("pull", REPO, "-o", out)
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == f"{out}: 3 files of a scorer, as they were written; {REPO}@{done['commit']}\n"
    files = everything(out)
    origin = json.loads(files.pop("origin.json"))
    digest = sha256_file(scorer / "manifest.json")
    assert origin == {"repo": REPO, "revision": "main", "commit": done["commit"], "digest": digest}
    assert files == repo.commits[done["commit"]]
    assert Scorer.load(out).digest == digest
    checked = verify(out)
    assert (checked.problems, checked.origin) == ([], f"{REPO}@{done['commit']}")
    assert checked.beside == {"origin.json": "where the folder was pulled from"}

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "p1", "context": ["a"], "response": "b c d e f"}\n')
    filtered = ee("filter", "--scorer", out, rows, "-o", tmp_path / "subsets")
    assert filtered.returncode == 0, filtered.stderr
    found = read_manifest(tmp_path / "subsets")["scorer"]
    assert (found["origin"], found["digest"]) == (f"{REPO}@{done['commit']}", digest)
    again = ee("filter", "--scorer", scorer, rows, "-o", tmp_path / "subsets")  # the same scorer, wherever it came from
    assert "Already done" in again.stderr


def test_nothing_private_goes_to_a_repository_that_is_public(scorer, hub_server, ee):
    assert ee("push", scorer, REPO, "--revision", "first").returncode == 0
    repo = hub_server.repos[REPO]
    assert not repo.private
    before, sent = dict(repo.commits), len(hub_server.large)
    write_manifest(scorer, "scorer", {"second": True}, read_manifest(scorer)["files"])
    refused = ee("push", scorer, REPO, "--private", "--revision", "second")
    assert refused.returncode == 2
    assert (
        "'me/counts' is there already and is public, but --private was asked for: nothing was pushed" in refused.stderr
    )
    assert (repo.commits, len(hub_server.large), "second" in repo.branches) == (before, sent, False)
    repo.private = True
    assert ee("push", scorer, REPO, "--private").returncode == 0  # again, now that it is private
    assert repo.commits != before


def test_a_commit_is_pinned_and_the_cache_serves_it_without_a_network(scorer, hub_server, ee, tmp_path):
    first = json.loads(ee("push", scorer, REPO, "--json").stdout)["commit"]
    write_manifest(scorer, "scorer", {"second": True}, read_manifest(scorer)["files"])
    second = json.loads(ee("push", scorer, REPO, "--json").stdout)["commit"]
    assert first != second
    assert ee("pull", REPO, "-o", tmp_path / "old", "--revision", first).returncode == 0
    assert "second" not in read_manifest(tmp_path / "old")
    assert ee("pull", REPO, "-o", tmp_path / "new").returncode == 0
    assert read_manifest(tmp_path / "new")["second"]

    calls = len(hub_server.calls)
    offline = ee("pull", REPO, "-o", tmp_path / "offline", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert f"{REPO}@{second}" in offline.stdout
    unknown = ee("pull", "me/other", "-o", tmp_path / "none", HF_HUB_OFFLINE="1")
    assert unknown.returncode == 2
    assert "cannot pull 'me/other' at 'main': HF_HUB_OFFLINE is set, and it is not in the cache" in unknown.stderr
    refused = ee("push", scorer, REPO, HF_HUB_OFFLINE="1")
    assert refused.returncode == 2
    assert "cannot push to 'me/counts': HF_HUB_OFFLINE is set" in refused.stderr
    assert len(hub_server.calls) == calls  # nothing was asked of the Hub

    before = everything(tmp_path / "new")
    assert ee("pull", REPO, "-o", tmp_path / "new").returncode == 0  # again: nothing changes
    assert everything(tmp_path / "new") == before
    other = ee("pull", REPO, "-o", tmp_path / "new", "--revision", first)
    assert "is already there, and is something else" in other.stderr


def test_files_of_an_earlier_push_go_and_those_of_others_stay(scorer, hub_server, ee):
    (scorer / "more.onnx").write_bytes(b"graph")
    write_manifest(scorer, "scorer", {}, [*read_manifest(scorer)["files"], "more.onnx"])
    assert ee("push", scorer, REPO, "--revision", "try").returncode == 0
    repo = hub_server.repos[REPO]
    assert repo.commits[repo.branches["main"]] == {}
    repo.commit("try", {**repo.commits[repo.branches["try"]], "LICENSE": b"theirs"})
    (scorer / "more.onnx").unlink()
    write_manifest(scorer, "scorer", {}, [name for name in read_manifest(scorer)["files"] if name != "more.onnx"])
    result = ee("push", scorer, REPO, "--revision", "try")
    assert result.returncode == 0, result.stderr
    there = repo.commits[repo.branches["try"]]
    assert "more.onnx" not in there
    assert there["LICENSE"] == b"theirs"
    # A manifest of something else names what is not ours to remove.
    repo.commit("try", {"manifest.json": b'{"files": ["LICENSE"]}', "LICENSE": b"theirs"})
    assert ee("push", scorer, REPO, "--revision", "try").returncode == 0
    assert repo.commits[repo.branches["try"]]["LICENSE"] == b"theirs"


def test_a_transfer_that_breaks_off_is_one_sentence():
    with pytest.raises(EmpathyError, match=r"cannot pull 'me/x': the transfer broke off \(RuntimeError\)"):  # noqa: SIM117
        with saying("pull 'me/x'"):
            raise RuntimeError("Data processing error: CAS service error")


def test_what_was_changed_is_neither_pushed_nor_kept(scorer, hub_server, ee, tmp_path):
    whole = (scorer / "tokenizer.json").read_bytes()
    (scorer / "tokenizer.json").write_bytes(whole + b" ")
    refused = ee("push", scorer, REPO)
    assert refused.returncode == 2
    assert "'tokenizer.json' has changed" in refused.stderr
    assert hub_server.calls == []
    (scorer / "tokenizer.json").write_bytes(whole)
    assert ee("push", scorer, REPO).returncode == 0

    hub_server.tamper = lambda path, data: data[:-1] + b" " if path == "scorer.json" else data
    spoilt = ee("pull", REPO, "-o", tmp_path / "pulled")
    assert spoilt.returncode == 2
    assert "is not what its manifest names: 'scorer.json' has changed" in spoilt.stderr
    assert not [path for path in tmp_path.iterdir() if "pulled" in path.name]


def test_a_dry_run_asks_nothing_and_names_everything(scorer, hub_server, ee):
    result = ee("push", scorer, REPO, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert hub_server.calls == []
    assert "transformer.fp32.onnx" in result.stdout
    assert "would push this scorer to me/counts (main): 4 files" in result.stdout


def test_what_the_hub_refuses_is_one_sentence(scorer, ee, hub_server, tmp_path):
    for words, match in [
        (("push", scorer, REPO), "the Hub answered 401 Unauthorized. Log in with: hf auth login, or set HF_TOKEN"),
        (("pull", REPO, "-o", tmp_path / "out"), "there is no such repository, or this login may not use it"),
    ]:
        result = ee(*words, HF_TOKEN="hf_somebodyelse")
        assert result.returncode == 2
        assert match in result.stderr
        assert "Traceback" not in result.stderr
    assert ee("push", scorer, REPO).returncode == 0
    result = ee("pull", REPO, "-o", tmp_path / "out", "--revision", "nowhere")
    assert "there is no such revision" in result.stderr
    hub_server.close()
    gone = ee("pull", REPO, "-o", tmp_path / "out", "--revision", "nowhere")
    assert gone.returncode == 2
    assert "the Hub cannot be reached" in gone.stderr


@pytest.mark.parametrize("repo", ["counts", "me/", "me/a/b", "../x", "me/..", "a b/c"])
def test_names_of_repositories(repo):
    with pytest.raises(EmpathyError, match="names no repository of the Hub; write OWNER/NAME"):
        check_names(repo, None)


@pytest.mark.parametrize(
    "name", ["../../x.json", "/etc/x.json", "a/../../x.json", ".git/x.json", "c:x.json", "a\\x.json"]
)
def test_a_manifest_from_elsewhere_cannot_reach_out_of_its_folder(name):
    with pytest.raises(EmpathyError, match="which lies outside of its folder"):
        vouched_files("'me/x'", {"kind": "scorer", "files": {name: "0"}})


@pytest.mark.parametrize("name", ["adapter_model.bin", "model.pkl", "setup.py", "weights.pt"])
def test_what_could_run_code_is_not_fetched(name):
    with pytest.raises(EmpathyError, match="such a folder holds only"):
        vouched_files("'me/x'", {"kind": "expert", "files": {name: "0"}})


def test_data_does_not_go_there(tmp_path):
    with pytest.raises(EmpathyError, match="kind 'subsets'; only scorer, expert, mixture go to the Hub"):
        vouched_files("'x'", {"kind": "subsets", "files": {}})


def test_a_note_of_origin_speaks_of_its_own_folder_only(scorer):
    note = {"repo": REPO, "revision": "main", "commit": "c" * 40, "digest": sha256_file(scorer / "manifest.json")}
    (scorer / "origin.json").write_text(json.dumps(note))
    assert read_origin(scorer) == f"{REPO}@{'c' * 40}"
    write_manifest(scorer, "scorer", {"other": 1}, read_manifest(scorer)["files"])
    assert read_origin(scorer) is None
    (scorer / "origin.json").write_text("[")
    assert read_origin(scorer) is None


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_a_folder_without_a_name_cannot_be_made_anew(out):
    with pytest.raises(EmpathyError, match="has no name of its own"):
        pull(REPO, Path(out))
