"""``as_map`` and ``as_filter`` inside ``datasets``: map-style and streaming, several processes, the cache."""

import subprocess
import sys
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets", reason="datasets is part of the loaders extra")

from efficient_empathy import EmpathyError, Example, Scorer, Turn  # noqa: E402
from efficient_empathy.selection import ExpressionPolicy, PaperPolicy  # noqa: E402

ROOT = Path(__file__).parents[2]
# Column 0 of row i: 1 + i % 7 words and 2. Column 1: CLS, SEP, role and word.
PAIRS = [{"id": f"p{i}", "context": ["a"], "response": " ".join("b" * (1 + i % 7)), "n": i} for i in range(50)]


@pytest.fixture
def scorer(scorer_folder):
    return Scorer.load(scorer_folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def offline(scorer):
    examples = [Example(r["id"], r["id"], 1, (Turn("speaker", "a"),), r["response"]) for r in PAIRS]
    return scorer.score(examples)[:, 0].tolist()


@pytest.mark.parametrize("processes", [None, 2])
def test_map_gives_the_scores_of_the_scorer(scorer, processes):
    data = datasets.Dataset.from_list(PAIRS)
    expected = offline(scorer)  # the parent has a session when the processes are forked
    found = data.map(scorer.as_map(PaperPolicy()), batched=True, batch_size=8, num_proc=processes)
    assert found["ee_sensibility"] == expected
    assert found["n"] == list(range(50))
    # Column 1 is 4 for all: sensible from 4 words on.
    assert found["ee_subset"] == ["sensibility" if i % 7 >= 3 else "rationality" for i in range(50)]
    kinds = {name: str(feature.dtype) for name, feature in found.features.items() if name.startswith("ee_")}
    assert kinds == {
        "ee_id": "string",
        "ee_turn": "int64",
        "ee_sensibility": "float64",
        "ee_rationality": "float64",
        "ee_subset": "string",
        "ee_reject": "string",
    }


def test_a_conversation_becomes_a_row_an_example(scorer):
    turns = [{"role": role, "content": text} for role, text in [("user", "a"), ("assistant", "b"), ("user", "c")]]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "d e"}], "n": 1}, {"messages": turns, "n": 2}]
    found = datasets.Dataset.from_list(rows).map(scorer.as_map(), batched=True)
    assert found["n"] == [1, 1, 2]
    assert found["ee_turn"] == [1, 3, 1]
    assert found["ee_sensibility"] == [3.0, 4.0, 3.0]
    assert found[1]["messages"] == rows[0]["messages"]
    again = found.map(scorer.as_map(), batched=True)  # a row that names its turn stays one
    assert again.to_list() == found.to_list()
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset().map(scorer.as_map(), batched=True)
    assert [row["ee_turn"] for row in stream] == [1, 3, 1]


def test_a_batch_of_bad_rows_alone_does_not_fix_the_types(scorer):
    rows = [{"id": "x", "context": None, "response": None}] * 4 + [
        {"id": "p", "context": "a", "response": "b c d e f"}
    ] * 4
    data = datasets.Dataset.from_list(
        rows, features=datasets.Features(dict.fromkeys(rows[0], datasets.Value("string")))
    )
    found = data.map(scorer.as_map(), batched=True, batch_size=4)
    assert found["ee_sensibility"] == [None] * 4 + [7.0] * 4
    assert found["ee_reject"] == ["unknown-format"] * 4 + [None] * 4


def test_stale_fields_become_null_and_other_columns_are_not_decoded(scorer):
    rows = [{**PAIRS[0], "ee_subset": "old", "ee_turn": 1}]
    found = datasets.Dataset.from_list(rows).map(scorer.as_map(), batched=True)
    assert found["ee_subset"] == [None]
    # A picture that cannot be decoded, first and last; the second row becomes two.
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    rows = [
        {"first": "missing.png", "messages": turns[:2], "n": 1},
        {"first": "missing.png", "messages": turns, "n": 2},
    ]
    broken = datasets.Dataset.from_list([{**row, "last": row["first"]} for row in rows])
    for name in ("first", "last"):
        broken = broken.cast_column(name, datasets.Image())
    found = broken.map(scorer.as_map(), batched=True)
    assert found["n"] == [1, 2, 2]
    for name in ("first", "last"):
        assert (
            found.cast_column(name, datasets.Image(decode=False))[name] == [{"bytes": None, "path": "missing.png"}] * 3
        )


@pytest.mark.parametrize("forms", ["messages", "context", "prompt"])
def test_a_map_that_is_not_batched_is_told_so_whatever_comes_first(scorer, forms):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {
        "messages": {"messages": turns},
        "context": {"context": ["a"], "response": "b"},
        "prompt": {"n": 1, "prompt": "a", "completion": "b"},
    }[forms]
    with pytest.raises(EmpathyError, match="add batched=True"):
        datasets.Dataset.from_list([row]).map(scorer.as_map())


def test_the_cache_knows_an_equal_function(scorer, scorer_folder, tmp_path):
    from datasets.fingerprint import Hasher

    before = Hasher.hash(scorer.as_map(PaperPolicy()))
    scorer.score([Example("1", "1", 0, (), "a")])
    assert Hasher.hash(scorer.as_map(PaperPolicy())) == before
    assert Hasher.hash(scorer.as_map(PaperPolicy(6.0))) != before
    assert Hasher.hash(scorer.as_map(PaperPolicy(), "last-turn")) != before
    code = (
        "import sys\nfrom datasets.fingerprint import Hasher\nfrom efficient_empathy import Scorer\n"
        "from efficient_empathy.selection import PaperPolicy\n"
        "print(Hasher.hash(Scorer.load(sys.argv[1]).as_map(PaperPolicy())))"
    )
    command = [sys.executable, "-c", code, str(scorer_folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == before
    datasets.Dataset.from_list(PAIRS).save_to_disk(tmp_path / "pairs")
    names = [
        datasets.load_from_disk(tmp_path / "pairs").map(Scorer.load(scorer_folder).as_map(), batched=True).cache_files
        for _ in range(2)
    ]
    assert names[0] == names[1]
    assert names[0]


@pytest.mark.parametrize("processes", [None, 2])
def test_filter_keeps_what_the_policy_lets_through(scorer, processes):
    policy = ExpressionPolicy({"warm": "sensibility > 7"})
    keep = scorer.as_filter(policy, "warm")
    # More than 7: six and seven words.
    expected = [i for i in range(50) if i % 7 >= 5]
    data = datasets.Dataset.from_list(PAIRS)
    assert data.filter(keep, batched=True, num_proc=processes)["n"] == expected
    assert [row["n"] for row in data.to_iterable_dataset().filter(keep, batched=True, batch_size=7)] == expected


def test_filter_does_not_lose_bad_rows_in_silence(scorer):
    data = datasets.Dataset.from_list([*PAIRS[:4], {**PAIRS[4], "response": " "}])
    with pytest.raises(EmpathyError, match="row 4 of this batch: empty-response"):
        data.filter(scorer.as_filter(PaperPolicy(), "sensibility"), batched=True)
    for choice, expected in (("keep", [3, 4]), ("drop", [3])):
        assert data.filter(scorer.as_filter(PaperPolicy(), "sensibility", choice), batched=True)["n"] == expected
    with pytest.raises(EmpathyError, match="'warm', but the policy's subsets are: sensibility, rationality, discarded"):
        scorer.as_filter(PaperPolicy(), "warm")
    with pytest.raises(EmpathyError, match="add batched=True"):
        data.map(scorer.as_map())
