"""Rows through a ``DataLoader``: each exactly once and with the scores of the scorer, whatever workers and ranks there are."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the distill extra")

from torch.utils.data import DataLoader, Dataset, IterableDataset  # noqa: E402

from efficient_empathy import EmpathyError, Example, Scorer, Turn  # noqa: E402
from efficient_empathy.scorer.adapters import RowOptions  # noqa: E402
from efficient_empathy.scorer.adapters.torch_data import ScoredBatches, ScoredRows, Sharding  # noqa: E402
from efficient_empathy.selection import PaperPolicy  # noqa: E402

ROOT = Path(__file__).parents[2]
PAIRS = [{"id": f"p{i}", "context": ["a"], "response": " ".join("b" * (1 + i % 7)), "n": i} for i in range(61)]


def read_pairs(path):
    """A reader that gives all rows to everyone."""
    with open(path) as file:
        for line in file:
            yield json.loads(line)


class ById(Dataset):
    """A map-style data set."""

    def __len__(self):
        return len(PAIRS)

    def __getitem__(self, index):
        return PAIRS[index]


class Stream(IterableDataset):
    """Gives all rows to every worker."""

    def __iter__(self):
        return iter(PAIRS)


@pytest.fixture
def scorer(scorer_folder):
    return Scorer.load(scorer_folder)


@pytest.fixture
def make_source(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return {"list": PAIRS, "map-style": ById(), "callable": functools.partial(read_pairs, path)}.get


def offline(scorer):
    examples = [Example(r["id"], r["id"], 1, (Turn("speaker", "a"),), r["response"]) for r in PAIRS]
    return dict(zip([r["n"] for r in PAIRS], scorer.score(examples)[:, 0].tolist(), strict=True))


def taken(source, scorer, workers, start, ranks, **options):
    """What all ranks get, in no order."""
    rows = []
    for rank in range(ranks):
        data = ScoredRows(source, scorer, sharding=Sharding(rank, ranks, chunk=5, **options))
        context = start if workers else None
        loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=list, multiprocessing_context=context)
        rows += [row for batch in loader for row in batch]
    return rows


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("workers", "start"),
    [
        *[(0, "fork"), (1, "fork"), (4, "fork")],
        pytest.param(1, "spawn", marks=pytest.mark.slow),
        pytest.param(4, "spawn", marks=pytest.mark.slow),
    ],
)
def test_each_row_exactly_once_with_the_scores_of_the_scorer(scorer, make_source, workers, start, ranks):
    expected = offline(scorer)  # so that there is a session in the parent that forks
    for kind in ("list", "map-style", "callable") if start == "fork" else ("callable",):
        rows = taken(make_source(kind), scorer, workers, start, ranks)
        assert sorted(row["n"] for row in rows) == list(range(61)), kind
        assert {row["n"]: row["ee_sensibility"] for row in rows} == expected
        assert all(row["ee_reject"] is None for row in rows)


def test_a_second_pass_gives_the_same_rows(scorer):
    loader = DataLoader(ScoredRows(PAIRS, scorer), batch_size=None, num_workers=1, persistent_workers=True)
    first, second = ([row["n"] for row in loader] for _ in range(2))
    assert first == second == list(range(61))


def test_a_policy_filters_on_the_way(scorer):
    data = ScoredRows([*PAIRS[:8], {"text": "?"}], scorer, RowOptions(PaperPolicy(), ("sensibility",), bad_rows="drop"))
    # From 4 words on; column 1 is 4.
    assert [row["n"] for row in data] == [3, 4, 5, 6]
    assert data.dropped == {"unknown-format": 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_says_so_out_of_a_worker(scorer, workers):
    data = ScoredRows([*PAIRS, {"id": "x", "text": "?"}], scorer, RowOptions(bad_rows="raise"))
    with pytest.raises(EmpathyError, match="unknown-format: no known format has the keys id, text"):
        list(DataLoader(data, batch_size=None, num_workers=workers))


def test_sources_that_may_share_out_themselves_must_say_so(scorer):
    with pytest.raises(EmpathyError, match="does Stream give each worker and rank its own rows"):
        ScoredRows(Stream(), scorer)
    with pytest.raises(EmpathyError, match="does Stream give each worker and rank its own rows"):
        list(ScoredRows(Stream, scorer))
    assert len(taken(Stream(), scorer, 2, "fork", 2, by_source=False)) == 61
    assert len(taken(Stream(), scorer, 2, "fork", 1, by_source=True)) == 2 * 61
    with pytest.raises(EmpathyError, match="passed over once only"):
        ScoredRows(iter(PAIRS), scorer)
    for wrong in ({"rank": 0}, {"rank": 2, "world_size": 2}, {"chunk": 0}):
        with pytest.raises(EmpathyError, match=next(iter(wrong))):
            Sharding(**wrong)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_hugging_face_data_share_their_rows_out_themselves(scorer, workers, ranks):
    datasets = pytest.importorskip("datasets", reason="datasets is part of the loaders extra")
    data = datasets.Dataset.from_list(PAIRS)
    stream = functools.partial(data.to_iterable_dataset, num_shards=3)
    for source in (data, stream(), stream):
        rows = taken(source, scorer, workers, "fork", ranks)
        assert sorted(row["n"] for row in rows) == list(range(61))


def test_a_stream_that_is_split_already_is_not_split_again(scorer):
    datasets = pytest.importorskip("datasets", reason="datasets is part of the loaders extra")
    from datasets.distributed import split_dataset_by_node

    stream = datasets.Dataset.from_list(PAIRS).to_iterable_dataset(num_shards=2)
    halves = [
        ScoredRows(split_dataset_by_node(stream, rank, 2), scorer, sharding=Sharding(rank, 2)) for rank in range(2)
    ]
    assert sorted(row["n"] for half in halves for row in half) == list(range(61))


def test_workers_have_one_thread_unless_told(scorer, scorer_folder):
    assert workers_threads(scorer) == [1, 1]
    assert workers_threads(Scorer.load(scorer_folder, threads=2)) == [2, 2]


class Threads(IterableDataset):
    """Gives the number of threads that a worker's scorer has."""

    def __init__(self, scorer):
        self.rows = ScoredRows(PAIRS, scorer)

    def __iter__(self):
        list(self.rows)
        yield self.rows._rows._scorer().threads


def workers_threads(scorer):
    return list(DataLoader(Threads(scorer), batch_size=None, num_workers=2))


RANK = """
import sys
import torch.distributed as dist
from torch.utils.data import DataLoader
sys.path.insert(0, sys.argv[1])
from test_torch_data import PAIRS, Scorer, ScoredRows

if __name__ == "__main__":
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=int(sys.argv[4]), world_size=2)
    data = ScoredRows(PAIRS, Scorer.load(sys.argv[2]))
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=sys.argv[5])
    print(sorted(row["n"] for row in loader))
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_ranks_of_a_process_group_are_found_by_spawned_workers_too(scorer_folder, tmp_path, start):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [str(Path(__file__).parent), str(scorer_folder), str(tmp_path / "meeting")]
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments, str(rank), start],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    found = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(found[0] + found[1]) == list(range(61))
    # Rank 0 has the workers 0 and 1 of four.
    assert found[0] == sorted([*range(0, 61, 4), *range(1, 61, 4)])


def test_batches_of_a_loader_are_scored_where_they_arrive(scorer):
    options = RowOptions(PaperPolicy(), ("sensibility",))
    loader = DataLoader(PAIRS[:14], batch_size=7, collate_fn=list)
    assert [[row["n"] for row in batch] for batch in ScoredBatches(loader, scorer, options)] == [
        [3, 4, 5, 6],
        [10, 11, 12, 13],
    ]
    columns = [{"prompt": ["a", "a"], "response": ["b", "b c d e"], "n": [0, 1]}]
    (found,) = ScoredBatches(columns, scorer, options)
    assert found["n"] == [1]
    assert found["ee_sensibility"] == [6.0]
