"""The second judge of answers, from labels by people: it had no part in choosing any data."""

import re
from collections.abc import Callable
from pathlib import Path

from common import ROOT, Cost, run_command, write_jsonl

EPITOME = "epitome.jsonl.gz"
MECHANISMS = ("emotional_reactions", "interpretations", "explorations")


def epitome_arguments(keep: Path, rows: list[dict]) -> list[str]:
    """Write labels and the rubric that docs/evaluate.md gives; what ``ee-cli distill`` is told, without the output folder."""
    page = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    rubric = re.search(r"```yaml\n(name: epitome.*?)```", page, re.DOTALL)
    assert rubric is not None, "docs/evaluate.md has lost its rubric"
    (keep / "epitome.yaml").write_text(rubric[1], encoding="utf-8")
    records = []
    for row in rows:
        labels = {name: row[name] for name in MECHANISMS}
        record = {"id": row["id"], "conversation_id": row["sp_id"], "context": [row["seeker"]]}
        records.append({**record, "response": row["response"], **labels})
    labels = write_jsonl(keep / "epitome.jsonl", records)
    return ["distill", "--labels", str(labels), "--rubric", str(keep / "epitome.yaml")]


def epitome_scorer(keep: Path, rows: list[dict], run: Callable[[list[str]], Cost] = run_command) -> Path:
    """A scorer of three empathy mechanisms, distilled unless it is there."""
    out = keep / "scorer-epitome"
    if not out.is_dir():
        run([*epitome_arguments(keep, rows), "-o", str(out)])
    return out
