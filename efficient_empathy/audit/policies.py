"""A policy again, from what a manifest says of it."""

from collections.abc import Mapping
from typing import Any

from efficient_empathy.errors import EmpathyError
from efficient_empathy.selection.policies import ExpressionPolicy, PaperPolicy, Policy, ReleasedScriptPolicy

_BY_THRESHOLD = {"paper": PaperPolicy, "released-script": ReleasedScriptPolicy}


def policy_from(record: Mapping[str, Any]) -> Policy:
    """The policy that ``describe`` has described.

    Raises:
        EmpathyError: it is of no kind that this version knows.
    """
    name = record.get("name")
    if name in _BY_THRESHOLD:
        return _BY_THRESHOLD[name](float(record["threshold"]))
    if name == "expressions":
        return ExpressionPolicy({rule["subset"]: rule["expression"] for rule in record["rules"]})
    raise EmpathyError(f"the policy '{name}' is not known here: update efficient-empathy.")
