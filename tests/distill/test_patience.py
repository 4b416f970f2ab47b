"""When asking a judge ends early: whose reason is told."""

import pytest

from efficient_empathy.distill.judges import Answer
from efficient_empathy.distill.patience import Patience
from efficient_empathy.errors import EmpathyError


def test_a_question_without_an_answer_does_not_change_why_the_answers_could_not_be_read():
    patience = Patience(readable=False)
    for _ in range(20):
        patience.answered(Answer("It is", None, "cut-off"))
    patience.unanswered("http-500", is_judge_s_fault=True)
    with pytest.raises(EmpathyError, match=r"first 20 answers could be read \(cut-off\).*raise --max-tokens"):
        patience.check(is_more=True)


def test_an_answer_in_between_begins_the_count_of_those_without_one_anew():
    patience = Patience(readable=True)
    for _ in range(19):
        patience.unanswered("http-500", is_judge_s_fault=True)
    patience.answered(Answer("warm", None, "no-json"))
    patience.unanswered("http-503", is_judge_s_fault=True)
    patience.check(is_more=True)
    for _ in range(19):
        patience.unanswered("http-503", is_judge_s_fault=True)
    with pytest.raises(EmpathyError, match=r"last 20 questions got no answer \(http-503\)"):
        patience.check(is_more=True)


def test_unreadable_answers_do_not_stop_a_run_that_has_asked_all():
    patience = Patience(readable=False)
    for _ in range(20):
        patience.answered(Answer("?", None, "no-json"))
    patience.check(is_more=False)
