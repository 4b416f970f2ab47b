"""Data frames of pandas and polars, scored in one call."""

import pytest

from efficient_empathy import EmpathyError, Scorer
from efficient_empathy.scorer.adapters import RowOptions, score_frame
from efficient_empathy.selection import PaperPolicy

ROWS = [
    {"id": "p", "context": ["a"], "response": "b c d e f", "n": 1, "ee_subset": "old"},
    {"id": "x", "context": ["a"], "response": None, "n": 2, "ee_subset": "old"},
    {"id": "q", "context": ["a", "b", "c"], "response": "d", "n": 3, "ee_subset": "old"},
]


@pytest.fixture
def scorer(scorer_folder):
    return Scorer.load(scorer_folder)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_gets_the_new_columns(scorer, library):
    frames = pytest.importorskip(library, reason=f"{library} is part of the loaders extra")
    frame = frames.DataFrame(ROWS)
    found = score_frame(frame, scorer, RowOptions(PaperPolicy()))
    assert type(found) is type(frame)
    assert list(found.columns) == [
        *("id", "context", "response", "n"),
        *("ee_id", "ee_turn", "ee_sensibility", "ee_rationality", "ee_subset", "ee_reject"),
    ]
    rows = (
        found.to_dicts() if library == "polars" else found.astype(object).where(found.notna(), None).to_dict("records")
    )
    # (7, 4) is warm; the third has one word, and roles and words of three turns: (3, 10).
    assert [row["ee_sensibility"] for row in rows] == [7.0, None, 3.0]
    assert [row["ee_rationality"] for row in rows] == [4.0, None, 10.0]
    assert [row["ee_subset"] for row in rows] == ["sensibility", None, "discarded"]
    assert [row["ee_turn"] for row in rows] == [1, None, 3]
    assert [row["ee_reject"] for row in rows] == [None, "empty-response", None]
    assert [row["n"] for row in rows] == [1, 2, 3]
    assert list(frame.columns)[-1] == "ee_subset"  # the frame that came in is as it was
    kept = score_frame(frame, scorer, RowOptions(PaperPolicy(), ("sensibility",), bad_rows="drop"))
    assert kept["n"].to_list() == [1]
    assert len(score_frame(frame[:0], scorer)) == 0


def test_lists_of_a_parquet_file_and_conversations(scorer, tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is part of the loaders extra")
    talk = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d e")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk], "n": 1}]
    pandas.DataFrame(rows, index=["k"]).to_parquet(tmp_path / "rows.parquet")
    found = score_frame(pandas.read_parquet(tmp_path / "rows.parquet"), scorer)  # lists come as NumPy arrays
    assert found["ee_sensibility"].to_list() == [3.0, 4.0]
    assert found.index.to_list() == ["k", "k"]


def test_other_tables_are_refused(scorer):
    polars = pytest.importorskip("polars", reason="polars is part of the loaders extra")
    with pytest.raises(EmpathyError, match=r"not polars\.LazyFrame; call collect"):
        score_frame(polars.DataFrame(ROWS).lazy(), scorer)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_without_a_known_column_gives_its_rows_back_as_bad(scorer, library):
    frames = pytest.importorskip(library, reason=f"{library} is part of the loaders extra")
    found = score_frame(frames.DataFrame({"text": ["a", "b"]}), scorer)
    assert list(found["text"]) == ["a", "b"]
    assert list(found["ee_reject"]) == ["unknown-format"] * 2
    with pytest.raises(EmpathyError, match="row 0 of this batch"):
        score_frame(frames.DataFrame({"text": ["a", "b"]}), scorer, RowOptions(bad_rows="raise"))
