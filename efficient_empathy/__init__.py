"""Turn a few LLM judgements into a scorer cheap enough to rate every dialogue, and keep the dialogues worth training on."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efficient_empathy.dialogues import Dialogue, Example, Turn, read_dialogues
    from efficient_empathy.errors import EmpathyError
    from efficient_empathy.scorer import Scorer

__version__ = "0.1.0"

_HOMES = {
    "Dialogue": "efficient_empathy.dialogues",
    "EmpathyError": "efficient_empathy.errors",
    "Example": "efficient_empathy.dialogues",
    "Scorer": "efficient_empathy.scorer",
    "Turn": "efficient_empathy.dialogues",
    "read_dialogues": "efficient_empathy.dialogues",
}
__all__ = ["Dialogue", "EmpathyError", "Example", "Scorer", "Turn", "read_dialogues"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import efficient_empathy`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'efficient_empathy' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
