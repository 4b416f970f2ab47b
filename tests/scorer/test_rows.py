"""``RowScorer``: the new fields of rows of any format, bad rows, and what a fork or a pickle takes along."""

import os
import pickle
import signal
import time

import numpy as np
import pytest

from efficient_empathy import EmpathyError, Scorer
from efficient_empathy.scorer.adapters import RowOptions, RowScorer
from efficient_empathy.scorer.adapters.rows import row_examples
from efficient_empathy.selection import PaperPolicy

PAIR = {"id": "p", "context": ["a"], "response": "b c d e f"}
TALK = {
    "id": "t",
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d e"},
    ],
}
BAD = {"id": "x", "text": "no dialogue"}


@pytest.fixture
def scorer(scorer_folder):
    return Scorer.load(scorer_folder)


def test_each_example_with_its_fields(scorer):
    rated = RowScorer(scorer).rate([PAIR, TALK, BAD])
    assert rated.rows == [0, 1, 1, 2]
    # Response tokens and 2; CLS, SEP, and role and word of each turn before with a SEP between two.
    assert rated.columns == {
        "ee_id": ["p", "t_turn:1", "t_turn:3", None],
        "ee_turn": [1, 1, 3, None],
        "ee_sensibility": [7.0, 3.0, 4.0, None],
        "ee_rationality": [4.0, 4.0, 10.0, None],
        "ee_reject": [None, None, None, "unknown-format"],
    }
    assert rated.merged([PAIR, TALK, BAD])[1] == {
        **TALK,
        "ee_id": "t_turn:1",
        "ee_turn": 1,
        "ee_sensibility": 3.0,
        "ee_rationality": 4.0,
        "ee_reject": None,
    }


def test_a_policy_names_the_subset_and_lets_some_through(scorer):
    both = RowScorer(scorer, RowOptions(PaperPolicy())).rate([PAIR, TALK])
    # (7, 4): warm; (3, 4): low on both, and so rationality; (4, 10): cold.
    assert both.columns["ee_subset"] == ["sensibility", "rationality", "discarded"]
    some = RowScorer(scorer, RowOptions(PaperPolicy(), ("sensibility", "discarded"))).rate([PAIR, BAD, TALK])
    assert list(zip(some.rows, some.columns["ee_id"], strict=True)) == [(0, "p"), (1, None), (2, "t_turn:3")]


def test_bad_rows_are_kept_dropped_or_raised(scorer):
    dropping = RowScorer(scorer, RowOptions(bad_rows="drop"))
    assert dropping.rate([BAD, PAIR, BAD]).rows == [1]
    assert dropping.dropped == {"unknown-format": 2}
    with pytest.raises(EmpathyError, match=r"row 1 of this batch: unknown-format: .*the keys id, text"):
        RowScorer(scorer, RowOptions(bad_rows="raise")).rate([PAIR, BAD])
    assert RowScorer(scorer).rate([]).rows == []
    assert RowScorer(scorer).rate(["text"]).columns["ee_reject"] == ["not-an-object"]


@pytest.mark.parametrize("options", [{"bad_rows": "lose"}, {"examples": "first-turn"}, {"keep": "sensibility"}])
def test_options_are_checked(options):
    with pytest.raises(EmpathyError, match=next(iter(options))):
        RowOptions(**options)


def test_what_data_frames_hold_is_read(scorer):
    row = {"id": float("nan"), "context": np.array(["a"], object), "response": np.str_("b c d e f"), "n": np.int64(3)}
    (example,) = row_examples(row)
    assert example.response == "b c d e f"
    assert example.id.startswith("text:")
    assert example.id == row_examples({"prompt": "a", "response": "b c d e f"})[0].id


def test_earlier_fields_are_replaced_and_name_the_turn(scorer):
    row = {**TALK, "ee_turn": 3, "ee_id": "t_turn:3", "ee_sensibility": 9.0, "ee_subset": "old"}
    rows = RowScorer(scorer)
    (found,) = rows.rate([row]).merged([row])
    assert found == {
        **TALK,
        "ee_id": "t_turn:3",
        "ee_turn": 3,
        "ee_sensibility": 4.0,
        "ee_rationality": 10.0,
        "ee_reject": None,
    }


def test_a_used_scorer_pickles_like_a_fresh_one_and_without_its_session(scorer, scorer_folder):
    rows = RowScorer(scorer)
    before = pickle.dumps(rows)
    expected = rows.rate([PAIR, TALK])
    assert pickle.dumps(rows) == before == pickle.dumps(RowScorer(Scorer.load(scorer_folder)))
    assert pickle.loads(before).rate([PAIR, TALK]) == expected


def test_a_fork_opens_a_session_of_its_own(scorer):
    rows = RowScorer(scorer)
    expected = rows.rate([PAIR, TALK])
    session = scorer._tiers[scorer.tier].open()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            same = rows.rate([PAIR, TALK]) == expected
            own = rows._scorer()._tiers[scorer.tier]._session
            code = 0 if same and own is not None and own is not session else 1
        finally:
            os._exit(code)  # the child must not go on with the tests
    end = time.monotonic() + 60
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.05)
    if found[0] == 0:
        os.kill(child, signal.SIGKILL)
    assert found == (child, 0)


@pytest.mark.parametrize(
    "row", [{"prompt": "hi", "response": "bad \ud83d"}, {"id": "\ud83d", "prompt": "a", "response": "b"}]
)
def test_half_of_a_surrogate_pair_is_one_bad_row(scorer, row):
    found = RowScorer(scorer).rate([{"prompt": "hi", "response": "good"}, row])
    assert found.columns["ee_reject"] == [None, "invalid-utf8"]
