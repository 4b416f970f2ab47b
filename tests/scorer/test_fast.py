"""n-grams of the fast tier: counts and places worked by hand, the same whatever the company."""

import numpy as np
import pytest

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.fast import FastEncoder, FastSpec, Ragged, last_tokens, ngrams
from efficient_empathy.scorer.tokenising import load_tokenizer

SPEC = FastSpec(bits=10, tokens=4)


def bucket(number: int, salt: int) -> int:
    """The documented hash, in Python's own integers."""
    return (number + (salt << 52)) * 0x9E3779B97F4A7C15 % 2**64 >> 54  # 64 less 10 bits


def test_singles_come_first_then_pairs():
    found = ngrams(np.array([5, 7, 5, 9]), np.array([3, 0, 1]), SPEC, salt=1)
    # Row 0 holds 5 7 5: three singles and the pairs 5 7 and 7 5; row 1 nothing; row 2 one single. Numbers are id + 1.
    assert found.starts.tolist() == [0, 5, 5, 6]
    pairs = [6 * 1_000_003 + 8, 8 * 1_000_003 + 6]
    assert found.flat.tolist() == [bucket(number, 1) for number in [6, 8, 6, *pairs, 10]]


def test_only_the_first_tokens_are_read():
    ids = np.arange(9)
    long, short = ngrams(ids, np.array([6, 3]), SPEC, 0), ngrams(np.r_[ids[:4], ids[6:]], np.array([4, 3]), SPEC, 0)
    np.testing.assert_array_equal(long.flat, short.flat)
    assert long.starts.tolist() == [0, 7, 12]  # 4 singles and 3 pairs, 3 singles and 2 pairs


def test_rows_are_padded_to_the_longest_of_those_asked_for():
    ragged = Ragged(np.array([1, 2, 3, 4, 5, 6]), np.array([0, 3, 3, 4, 6]))
    assert ragged.padded(np.array([3, 1, 0]), 99).tolist() == [[5, 6, 99], [99, 99, 99], [1, 2, 3]]
    assert ragged.padded(np.array([1]), 99).tolist() == [[99]]


def test_nothing_is_no_row():
    assert ngrams(np.zeros(0, np.int64), np.zeros(0, np.int64), SPEC, 0).starts.tolist() == [0]


@pytest.mark.parametrize("options", [{"bits": 7}, {"bits": 23}, {"tokens": 0}, {"tokens": 513}])
def test_options_are_checked(options):
    with pytest.raises(EmpathyError, match=f"{next(iter(options))} of the fast tier must be from"):
        FastSpec(**options)


def test_of_earlier_turns_the_last_tokens_are_read():
    ids, lengths = last_tokens(np.arange(9), np.array([5, 0, 1, 3]), 2)
    assert ids.tolist() == [3, 4, 5, 7, 8]
    assert lengths.tolist() == [2, 0, 1, 2]


def test_a_long_past_is_not_tokenised_whole(scorer_folder):
    encoder = FastEncoder(load_tokenizer(scorer_folder / "tokenizer.json"), SPEC)
    turns = (Turn("speaker", "old " * 1000), Turn("listener", "b c"), Turn("speaker", "d"))
    assert len(encoder._earlier(Example("x", "x", 3, turns, "e"))) == 8 * SPEC.tokens
    rows = encoder.encode([Example("x", "x", 3, turns, "e")])
    assert np.diff(rows.fields["earlier"].starts).tolist() == [4 + 3]


def test_an_example_is_its_response_the_turn_before_and_what_was_before_that(scorer_folder):
    encoder = FastEncoder(load_tokenizer(scorer_folder / "tokenizer.json"), SPEC)
    turns = (Turn("speaker", "one two three four five six"), Turn("listener", "b"), Turn("speaker", "c d"))
    alone = encoder.encode([Example("x", "x", 3, turns, "e f g")])
    # The tiny tokenizer knows no word: each is one unknown token.
    assert np.diff(alone.fields["response"].starts).tolist() == [5]
    assert np.diff(alone.fields["context"].starts).tolist() == [3]
    assert np.diff(alone.fields["earlier"].starts).tolist() == [7]  # the last four of seven tokens, and three pairs
    np.testing.assert_allclose(alone.numbers, np.log1p([[3, 2, 4, 3]]), rtol=1e-6)
    no_context = Example("y", "y", 0, (), "e f g")
    together = encoder.encode([no_context, Example("x", "x", 3, turns, "e f g")])
    rows = together.batch(np.array([1, 0]), SPEC)
    expected = alone.batch(np.array([0]), SPEC)
    assert rows["context"].tolist() == [expected["context"][0].tolist(), [SPEC.buckets] * 3]
    assert rows["response"].tolist() == [expected["response"][0].tolist()] * 2
    assert together.order.tolist() == [1, 0]
