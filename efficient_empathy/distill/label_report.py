"""What labelling would do, and what it did."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LabelPlan:
    """What a run would do, without doing it."""

    examples: int
    """Examples that were chosen."""
    stored: int
    """Of these, how many have an answer in the store."""
    calls: int
    """Questions that would be asked."""
    prompt_tokens: int
    """Of all questions together, estimated."""
    completion_tokens: int
    """Of all answers together, estimated."""
    usd: float | None
    """What these tokens cost; None when the model has no price."""
    rejected: dict[str, int]
    """Rows that could not be read, by reason."""


@dataclass(frozen=True)
class LabelReport:
    """What a run did; ``examples`` is the sum of ``scored``, ``unscored`` and ``not_asked``."""

    labels: Path
    examples: int
    scored: int
    unscored: dict[str, int]
    """Examples without scores, by reason."""
    not_asked: int
    """Examples left over when the spending limit was reached."""
    asked: int
    """Questions that this run asked; the other answers were in the store."""
    prompt_tokens: int
    """Of all answers that these labels rest on, as the servers counted them."""
    completion_tokens: int
    usd: float | None
    """What all of these answers cost, this run and earlier ones together; None when the price is not known."""
    rejected: dict[str, int]
    """Rows that could not be read, by reason."""
