"""Which examples a training and its controls take."""

import json
import shutil

import pytest

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.subsets import choose, data_name, held_out_conversation


def ids(examples):
    return {example.id for example in examples}


def test_the_subset_without_the_held_out_conversations(subsets):
    found = choose([str(subsets / "sensibility")], "none", 0.2, 0)
    assert found.read == {"sensibility": 60}
    assert len(found.train) + len(found.held_out) == 60
    assert found.own_train == len(found.train)
    conversations = {example.dialogue_id for example in found.train}
    assert not conversations & {example.dialogue_id for example in found.held_out}
    assert all(held_out_conversation(example.dialogue_id, 0.2) for example in found.held_out)


def test_turns_of_one_conversation_that_no_row_names_are_on_one_side(tmp_path):
    rows = []
    for index in range(100):
        start = [f"my dog lost {index}", "so sorry that your dog was lost"]
        rows.append({"id": f"a{index}", "context": start[:1], "response": start[1]})
        rows.append({"id": f"b{index}", "context": [*start, "why"], "response": "who knows"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = choose([str(path)], "none", 0.3, 0)
    assert 40 < len(found.held_out) < 80
    held = {example.id for example in found.held_out}
    assert all((f"a{index}" in held) == (f"b{index}" in held) for index in range(100))


def test_random_draws_as_many_from_all_subsets_by_seed(subsets):
    own = choose([str(subsets / "sensibility")], "none", 0.2, 0)
    found = choose([str(subsets / "sensibility")], "random", 0.2, 0)
    assert len(found.train) == len(own.train) == found.own_train
    assert {example.id.split("-")[0] for example in found.train} == {"sensibility", "rationality", "discarded"}
    assert ids(found.train) == ids(choose([str(subsets / "sensibility")], "random", 0.2, 0).train)
    assert ids(found.train) != ids(choose([str(subsets / "sensibility")], "random", 0.2, 1).train)


def test_folders_of_one_name_are_counted_apart(subsets, tmp_path):
    other = tmp_path / "other" / "sensibility"
    other.mkdir(parents=True)
    (other / "rows.jsonl").write_text('{"id": "a", "context": ["i lost"], "response": "so sorry"}\n')
    data = [str(subsets / "sensibility"), str(other), str(subsets / "rationality")]
    counts = {"subsets/sensibility": 60, "other/sensibility": 1, "rationality": 40}
    assert choose(data, "none", 0.2, 0).read == counts
    deeper = tmp_path / "deeper" / "other" / "sensibility"
    shutil.copytree(other, deeper)
    assert choose([*data, str(deeper)], "none", 0.2, 0).read == {**counts, "other/sensibility": 2}


@pytest.mark.parametrize(
    ("given", "name"),
    [("https://me:pass@host/d/x.jsonl?sig=SECRET", "x.jsonl"), ("runs/sensibility/", "sensibility"), (".", ".")],
)
def test_what_is_kept_of_the_name_of_data(given, name):
    assert data_name(given) == name


def test_full_and_union(subsets):
    data = [str(subsets / "sensibility")]
    own, union, full = (choose(data, control, 0.2, 0) for control in ("none", "union", "full"))
    assert own.own_train == union.own_train == full.own_train
    assert ids(own.train) < ids(union.train) < ids(full.train)
    assert len(full.train) + len(full.held_out) == 120
    assert len(union.train) + len(union.held_out) == 100
    # No control trains on what another holds out.
    assert not ids(full.train) & ids(own.held_out)


def test_a_control_passes_over_a_subset_that_came_out_empty(subsets, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(subsets, run)
    (run / "discarded" / "part-00000.jsonl").unlink()
    found = choose([str(run / "sensibility")], "full", 0.2, 0)
    assert found.read == {"sensibility": 60, "rationality": 40}


def test_a_control_needs_the_folders_beside_it(subsets, tmp_path):
    lonely = tmp_path / "rows.jsonl"
    lonely.write_text('{"id": "a", "context": ["i lost"], "response": "so sorry"}\n')
    with pytest.raises(EmpathyError, match="folders of one such run"):
        choose([str(lonely)], "random", 0.2, 0)
    both = [str(subsets / "sensibility"), str(subsets / "rationality")]
    assert choose(both, "full", 0.2, 0).own_train == len(choose(both, "none", 0.2, 0).train)
    other = tmp_path / "subsets" / "kept"
    shutil.copytree(subsets / "sensibility", other)
    shutil.copy(subsets / "manifest.json", other.parent)
    with pytest.raises(EmpathyError, match="none of the subsets of 'subsets'"):
        choose([str(other)], "full", 0.2, 0)
    with pytest.raises(EmpathyError, match="none is left to train on"):
        choose([str(lonely)], "none", 1.0, 0)
