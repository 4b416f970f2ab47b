"""Any byte of any artifact changed: verify says no and the loader refuses it, both naming the file."""

import re
import shutil
from pathlib import Path

import pytest

from efficient_empathy.audit.verifying import verify
from efficient_empathy.distill.labels import load_labelled
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import read_manifest
from efficient_empathy.scorer.scorer import Scorer
from efficient_empathy.selection.report import report


def load_subsets(folder):
    """What train-expert reads."""
    from efficient_empathy.experts.subsets import choose

    return choose([str(folder)], "none", 0.2, 0)


def load_labels(path):
    return load_labelled(path, None, Rubric.load())


def load_answers(folder):
    from efficient_empathy.experts.answer_folders import read_answers

    return read_answers(folder)


def load_expert(folder):
    from efficient_empathy.experts.artifact import read_expert

    return read_expert(folder)


def load_mixture(folder):
    from efficient_empathy.moe.artifact import read_mixture

    return read_mixture(folder)


def load_verdicts(folder):
    from efficient_empathy.experts.pairwise import recompute

    return recompute(folder / "pairs.jsonl")


def flips(path):
    """The file with one bit changed, at its beginning, in its middle and at its end; then as it was."""
    whole = path.read_bytes()
    for place in {0, len(whole) // 2, len(whole) - 1}:
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        yield place
    path.write_bytes(whole)


def check_every_file(folder, load, read_by_loader=None):
    """Flips bytes of each file that the manifest vouches for, and of the manifest."""
    assert verify(folder).problems == []
    names = [*read_manifest(folder)["files"], "manifest.json"]
    for name in names:
        for place in flips(folder / name):
            if name == "manifest.json":
                with pytest.raises(EmpathyError, match=r"manifest\.json' (has changed|is not)"):
                    verify(folder)
            else:
                problems = verify(folder).problems
                assert len(problems) == 1, (name, place)
                assert problems[0].startswith(f"'{name}' has changed"), (name, place)
            if load is not None and (read_by_loader is None or name in read_by_loader):
                with pytest.raises(EmpathyError, match=re.escape(name)):
                    load(folder)
    assert verify(folder).problems == []
    if load is not None:
        load(folder)


def test_a_scorer(scorer_folder, tmp_path):
    check_every_file(shutil.copytree(scorer_folder, tmp_path / "scorer"), Scorer.load)


def test_a_report_refuses_a_scorer_that_was_changed(scorer_folder, tmp_path):
    folder = shutil.copytree(scorer_folder, tmp_path / "scorer")
    for _ in flips(folder / "scorer.json"):
        with pytest.raises(EmpathyError, match=r"'scorer\.json' has changed"):
            report(folder)
    report(folder)


@pytest.mark.parametrize("container", ["jsonl", "parquet"])
def test_subsets(make_run, container):
    check_every_file(make_run(container=container), load_subsets)


def test_scored_rows(make_run):
    check_every_file(make_run(policy=None), load_subsets)


def test_labels(make_labels):
    path = make_labels()
    assert verify(path).problems == []
    for _ in flips(path):
        assert verify(path).problems[0].startswith("'labels.jsonl' has changed")
        with pytest.raises(EmpathyError, match=r"labels\.jsonl' has changed since"):
            load_labels(path)
    for _ in flips(path.with_name("labels.manifest.json")):
        for read in (verify, load_labels):
            with pytest.raises(EmpathyError, match=r"labels\.manifest\.json' (has changed|is not)"):
                read(path)
    path.with_name("labels.manifest.json").unlink()  # labels of one's own making have none
    with pytest.raises(EmpathyError, match="none of the 5 labels"):
        load_labels(path)


def test_answers(make_answers):
    check_every_file(make_answers(), load_answers)


def test_an_evaluation(make_evaluation):
    check_every_file(make_evaluation(), None)


def test_verdicts(make_pairwise):
    check_every_file(make_pairwise(), load_verdicts, ("pairs.jsonl", "manifest.json"))


def test_an_expert(experts, tmp_path):
    check_every_file(shutil.copytree(experts[0], tmp_path / "expert"), load_expert)


def test_a_mixture(make_mixture):
    check_every_file(make_mixture(), load_mixture)


def test_every_single_byte_of_a_manifest_matters(scorer_folder, tmp_path):
    """Also those that change no value: white space, the names of fields, the hash itself."""
    folder = shutil.copytree(scorer_folder, tmp_path / "scorer")
    path = Path(folder / "manifest.json")
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 4, 32):
            data = bytearray(whole)
            data[place] ^= bit
            path.write_bytes(data)
            with pytest.raises(EmpathyError, match=r"manifest\.json"):
                read_manifest(folder)
    path.write_bytes(whole[:-1])
    with pytest.raises(EmpathyError, match=r"manifest\.json' has changed"):
        read_manifest(folder)
