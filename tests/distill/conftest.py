"""Examples and pools of dialogues for judges to rate."""

import json
from pathlib import Path

import pytest

from efficient_empathy.dialogues.types import Example, Turn


def make_examples(count: int, per_dialogue: int = 1) -> list[Example]:
    return [
        Example(f"d{d}_turn:{t}", f"d{d}", t, (Turn("speaker", f"Story {d}."),), f"Answer {d}.{t}.")
        for d in range(count)
        for t in range(1, per_dialogue + 1)
    ]


@pytest.fixture
def examples() -> list[Example]:
    """Twelve examples of twelve conversations."""
    return make_examples(12)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A file of 30 conversations with one listener turn each."""
    path = tmp_path / "pool.jsonl"
    with open(path, "w") as file:
        for d in range(30):
            turns = [{"role": "speaker", "text": f"Story {d}."}, {"role": "listener", "text": f"Answer {d}."}]
            file.write(json.dumps({"id": f"d{d}", "turns": turns}) + "\n")
    return path
