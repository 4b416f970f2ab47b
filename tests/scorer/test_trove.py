"""The block for datatrove pipelines."""

import pytest

pytest.importorskip("datatrove", reason="datatrove is part of the loaders extra")

import orjson
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from efficient_empathy import EmpathyError, Scorer
from efficient_empathy.scorer.adapters import RowOptions
from efficient_empathy.scorer.adapters.trove import EmpathyFilter
from efficient_empathy.selection import PaperPolicy

OPTIONS = RowOptions(PaperPolicy(), ("sensibility",), "last-turn")


def lines(folder):
    found = [orjson.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    return {row["id"]: row for row in found}


@pytest.mark.parametrize("tasks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_pipeline_keeps_a_subset_and_the_rest_with_reasons(scorer_folder, tmp_path, tasks):
    (tmp_path / "in").mkdir()
    for part in range(2):
        rows = [
            {"id": f"warm{part}", "context": ["a"], "response": "b c d e f"},
            {"id": f"cool{part}", "context": ["a"], "response": "b"},
            {"id": f"odd{part}", "response": "b", "ee_subset": "old"},
        ]
        (tmp_path / "in" / f"{part}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    scorer = Scorer.load(scorer_folder)
    rest = JsonlWriter(str(tmp_path / "rest"), compression=None)
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(tmp_path / "in"), text_key="response"),
            EmpathyFilter(scorer, OPTIONS, exclusion_writer=rest),
            JsonlWriter(str(tmp_path / "out"), compression=None),
        ],
        tasks=tasks,
        logging_dir=str(tmp_path / "logs"),
    ).run()
    kept, dropped = lines(tmp_path / "out"), lines(tmp_path / "rest")
    assert set(kept) == {"warm0", "warm1"}
    assert kept["warm0"]["text"] == "b c d e f"
    assert kept["warm0"]["metadata"]["ee_sensibility"] == 7.0
    reasons = {name: row["metadata"]["filter_reason"] for name, row in dropped.items()}
    assert reasons == {
        **dict.fromkeys(["cool0", "cool1"], "ee_rationality"),
        **dict.fromkeys(["odd0", "odd1"], "ee_reject_unknown-format"),
    }
    assert dropped["cool0"]["metadata"]["ee_sensibility"] == 3.0
    assert "ee_subset" not in dropped["odd0"]["metadata"]


def test_options_that_would_lose_documents_are_refused(scorer_folder):
    scorer = Scorer.load(scorer_folder)
    with pytest.raises(EmpathyError, match="examples='last-turn'"):
        EmpathyFilter(scorer, RowOptions(PaperPolicy(), ("sensibility",)))
    with pytest.raises(EmpathyError, match="exclusion_writer"):
        EmpathyFilter(scorer, RowOptions(PaperPolicy(), ("sensibility",), "last-turn", "drop"))
