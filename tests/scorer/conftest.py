"""Small runs of the engine; ``length_scorer`` becomes importable here and in processes that tests start."""

import sys
from pathlib import Path

import pytest

from efficient_empathy.scorer.job import Job

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def job(tmp_path):
    """300 conversations in some twelve units."""
    from length_scorer import write_rows

    return Job((str(write_rows(tmp_path / "in.jsonl")),), tmp_path / "out", unit_bytes=5000, chunk=70)
