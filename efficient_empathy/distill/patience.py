"""When asking a judge ends before all is asked: it gives no answers, or none that can be read."""

from efficient_empathy.distill.judges import Answer
from efficient_empathy.errors import EmpathyError

_QUESTIONS = 20
"""So many without an answer, or with none that can be read: the rest would only wait, or be paid for nothing."""
_MENDED_WHEN = {"http-403": "the key may be used for this model"}
"""What must be mended, by the reason for which no answer came."""
_LONGER = "raise --max-tokens, which thoughts count to"
_READABLE_WITH = {"cut-off": _LONGER, "empty-answer": _LONGER}
"""What may help, by the reason for which no answer could be read."""


class Patience:
    """Counts what came of questions, and says when to stop."""

    def __init__(self, readable: bool):
        """Begin to count.

        Args:
            readable: whether an answer of an earlier run could be read.
        """
        self._readable = readable
        self._unread = self._unanswered = 0
        self._why_unanswered = self._why_unread = ""

    def answered(self, answer: Answer) -> None:
        """Count an answer."""
        self._unanswered = 0
        self._readable = self._readable or answer.scores is not None
        self._unread += 1
        self._why_unread = str(answer.reason)

    def unanswered(self, reason: str, is_judge_s_fault: bool) -> None:
        """Count a question without an answer."""
        self._unanswered = self._unanswered + 1 if is_judge_s_fault else 0
        self._why_unanswered = reason

    def check(self, is_more: bool) -> None:
        """See whether to go on.

        Args:
            is_more: whether anything is left to ask.

        Raises:
            EmpathyError: the judge gave no answer many times in a row, or nothing that can be read.
        """
        if self._unanswered >= _QUESTIONS:
            why = self._why_unanswered
            raise EmpathyError(
                f"the last {self._unanswered} questions got no answer ({why}), so the rest were not asked. What was "
                f"answered is kept: run the same command again when {_MENDED_WHEN.get(why, 'the judge is well')}."
            )
        if self._unread >= _QUESTIONS and not self._readable and is_more:
            why = self._why_unread
            raise EmpathyError(
                f"none of the first {self._unread} answers could be read ({why}), so the rest were not asked. They are "
                f"kept: {_READABLE_WITH.get(why, 'look at them in the store, or choose another judge')}, and run again "
                "with --retry-unscored."
            )
