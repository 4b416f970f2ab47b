"""Fixtures that several packages' tests share."""

from pathlib import Path

import pytest

from efficient_empathy.dialogues.types import Example, Turn

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real dialogues and labels, which is not part of the project: skipped, aloud, where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}: this check did not run")
    return SHARED_DATA


@pytest.fixture
def example() -> Example:
    """One small example: a speaker's turn and a listener's response."""
    return Example("d1_turn:1", "d1", 1, (Turn("speaker", "My dog died last night."),), "I am so sorry, that must hurt.")
