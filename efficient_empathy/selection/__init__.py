"""Which dialogues to keep: policies over scores, and the report of what they kept."""

from efficient_empathy.selection.policies import (
    ExpressionPolicy,
    PaperPolicy,
    Policy,
    ReleasedScriptPolicy,
    make_policy,
)

__all__ = ["ExpressionPolicy", "PaperPolicy", "Policy", "ReleasedScriptPolicy", "make_policy"]
