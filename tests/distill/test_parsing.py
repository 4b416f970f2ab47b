"""Reading answers: the shapes that judges really give, and what must stay unscored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_empathy.distill.parsing import parse_answer, parse_choice
from efficient_empathy.distill.rubric import Rubric

RUBRIC = Rubric.load()
S8R5 = {"sensibility": 8, "rationality": 5}


@pytest.mark.parametrize(
    "text",
    [
        '{"sensibility": 8, "rationality": 5}',
        '{\n  "Rationality": 5,\n  "Sensibility": 8.0\n}',
        'Sure!\n```json\n{"sensibility": "8", "rationality": "5/10"}\n```\nHope that helps.',
        '{"scores": {"sensibility": 8, "rationality": 5}, "why": "{}"}',
        'First {"sensibility": 2, "rationality": 2}, but no: {"sensibility": 8, "rationality": 5}',
        '{"sensibility": 8, "rationality": 5, "if_longer": {"sensibility": 1, "rationality": 1}}',
        '{"sensibility": 8, "rationality": 5} {"sensibility": 11, "rationality": 5}',
        "Evaluation Form (scores ONLY):\n- Rationality: 5\n- Sensibility: 8",
        "Rationality: 5\nSensibility: 8\n",
        "  **Sensibility:** 8/10  \n **Rationality**: 5 ",
        "Sensibility (0-10): 8, Rationality (0-10): 5.",
        "Sensibility: 3\nRationality: 3\nOn reflection:\nSensibility = 8\nRationality = 5",
    ],
)
def test_reads_the_last_valid_verdict(text):
    assert parse_answer(text, RUBRIC) == (S8R5, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty-answer"),
        (" \n", "empty-answer"),
        ("I cannot rate this.", "no-verdict"),
        ('{"sensibility": 8, "rational', "missing-dimension"),
        ('{"sensibility": 8}', "missing-dimension"),
        ("Sensibility: 8", "missing-dimension"),
        ('{"sensibility": 8, "rationality": 11}', "out-of-range"),
        ('{"sensibility": -1, "rationality": 1}', "out-of-range"),
        ("Sensibility: 8\nRationality: 55", "out-of-range"),
        ('{"sensibility": 8, "rationality": 5.5}', "not-an-integer"),
        ('{"sensibility": 8, "rationality": null}', "not-an-integer"),
        ('{"sensibility": 8, "rationality": true}', "not-an-integer"),
        ('{"sensibility": 8, "rationality": "4/5"}', "not-an-integer"),
        ('{"sensibility": 8, "rationality": [5]}', "not-an-integer"),
        ("Sensibility: 8\nRationality: 5.5", "not-an-integer"),
        ("Sensibility: 8-9\nRationality: 5", "missing-dimension"),
        ("Insensibility: 8\nRationality: 5", "missing-dimension"),
    ],
)
def test_leaves_unscored_what_is_no_verdict(text, reason):
    assert parse_answer(text, RUBRIC) == (None, reason)


def test_a_number_at_the_end_of_a_cut_answer_may_lack_digits():
    text = '{"sensibility": 8, "rationality": 1'
    assert parse_answer(text, RUBRIC) == ({"sensibility": 8, "rationality": 1}, None)
    assert parse_answer(text, RUBRIC, cut_off=True) == (None, "no-verdict")
    assert parse_answer(text + "0}", RUBRIC, cut_off=True) == ({"sensibility": 8, "rationality": 10}, None)


DRAFT = 'maybe {"sensibility": 2, "rationality": 9}'


@pytest.mark.parametrize("before", ["", "Okay… ", "</think>\n", "Well.\n\n"])
def test_a_draft_in_a_cut_answer_is_no_verdict(before):
    assert parse_answer(f"{before}{DRAFT}. But wait, there is also", RUBRIC, cut_off=True) == (None, "no-verdict")
    text = f"{before}I would say\nSensibility: 8\nRationality: 5\nbut"
    assert parse_answer(text, RUBRIC, cut_off=True) == (None, "no-verdict")


def test_a_cut_answer_that_begins_with_its_verdict_has_one():
    for start in ("", "```json\n", "<think>hm</think>\n\n"):
        text = f'{start}{{"sensibility": 8, "rationality": 5}}\nSince they'
        assert parse_answer(text, RUBRIC, cut_off=True) == (S8R5, None)
    lines = "**Sensibility**: 8\n**Rationality**: 5\nSince"
    assert parse_answer(lines, RUBRIC, cut_off=True) == (S8R5, None)
    # What comes after it is a draft of another.
    assert parse_answer(f"{lines} {DRAFT}\nSensibility: 1", RUBRIC, cut_off=True) == (S8R5, None)
    assert parse_answer(f'{{"sensibility": 8, "rationality": 5}} {DRAFT} or', RUBRIC, cut_off=True) == (S8R5, None)
    assert parse_answer(f"{{let me see}} {DRAFT}, or", RUBRIC, cut_off=True) == (None, "no-verdict")
    assert parse_answer("Sensibility: 8\nthen", RUBRIC, cut_off=True) == (None, "missing-dimension")
    assert parse_choice("Verdict: A\nor\nVerdict: B\nas", "verdict", "ABC", cut_off=True).scores["A"] == 1


def test_thoughts_are_no_verdict():
    thoughts = f"<think>{DRAFT}"
    assert parse_answer(thoughts, RUBRIC) == (None, "empty-answer")
    assert parse_answer(f"{thoughts}</think>I cannot say.", RUBRIC) == (None, "no-verdict")
    assert parse_answer(f'{DRAFT}</think>{{"sensibility": 8, "rationality": 5}}', RUBRIC) == (S8R5, None)
    assert parse_choice("<think>Verdict: A</think>Verdict: B", "verdict", "ABC").scores["B"] == 1
    assert parse_choice("<think>Verdict: A", "verdict", "ABC") == (None, "empty-answer")
    assert parse_choice("Perhaps\nVerdict: A\nor", "verdict", "ABC", cut_off=True) == (None, "no-verdict")


def test_deep_nesting_and_long_answers_end():
    assert parse_answer('{"a":' * 50_000, RUBRIC)[0] is None
    assert parse_answer("x" * 1_000_000 + '{"sensibility": 8, "rationality": 5}', RUBRIC) == (S8R5, None)


@given(st.text(), st.integers(0, 10), st.integers(0, 10))
def test_finds_the_verdict_after_any_text(text, s, r):
    found, _ = parse_answer(f'{text}\n{{"sensibility": {s}, "rationality": {r}}}', RUBRIC)
    assert found == {"sensibility": s, "rationality": r}


PIECES = st.sampled_from(
    ["{", "}", ", ", '"sensibility": ', '"rationality": ', "Sensibility: ", "\nRationality: ", "-", "/10", "\n", "so "]
) | st.integers(-3, 14).map(str)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_any_text_gives_scores_on_the_scale_or_a_reason(text):
    scores, reason = parse_answer(text, RUBRIC)
    assert (scores is None) == (reason is not None)
    assert scores is None or all(0 <= value <= 10 for value in scores.values())


def test_a_score_off_the_scale_is_none():
    assert parse_answer("Sensibility: 11\nRationality: 3", RUBRIC) == (None, "out-of-range")
    assert parse_answer('{"sensibility": -1, "rationality": 3}', RUBRIC) == (None, "out-of-range")


@pytest.mark.parametrize(
    "text",
    [
        '{"verdict": "B"}',
        '```json\n{"Verdict": " b "}\n```',
        '{"verdict": "A"} at first sight, but {"verdict": "B"}',
        "Verdict: A\nOn second thoughts\n**Verdict**: [[B]].",
        '{"verdict": "B"} and not verdict: A or C',
        '{"verdict": "B", "if_reversed": {"verdict": "A"}}',
        '{"verdict": "B"} {"verdict": "both"}',
    ],
)
def test_reads_the_last_choice_that_is_on_offer(text):
    assert parse_choice(text, "verdict", "ABC") == ({"A": 0, "B": 1, "C": 0}, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty-answer"),
        ("Both are kind.", "no-verdict"),
        ("Verdict: A tie.", "no-verdict"),
        ("The verdict: A reply should be warm.", "no-verdict"),
        ('{"verdict": "D"}', "not-offered"),
        ('{"verdict": ""}', "not-offered"),
        ('{"verdict": "AB"}', "not-offered"),
        ('{"verdict": ["A"]}', "not-offered"),
        ('{"verdict": 1}', "not-offered"),
        ("Verdict: Neither", "not-offered"),
    ],
)
def test_what_is_no_choice_is_never_one_by_default(text, reason):
    assert parse_choice(text, "verdict", "ABC") == (None, reason)


def test_a_letter_at_a_cut_may_be_the_start_of_a_word():
    assert parse_choice("Verdict: A", "verdict", "ABC", cut_off=True) == (None, "no-verdict")
    assert parse_choice("Verdict: A\nsince", "verdict", "ABC", cut_off=True).scores["A"] == 1


def test_a_number_without_end_is_no_verdict():
    long = "8" * 5000
    assert parse_answer(f'{{"sensibility": {long}, "rationality": 3}}', RUBRIC).scores is None
    assert parse_answer(f"Sensibility: {long}\nRationality: 3", RUBRIC).scores is None
