"""The Python blocks of documentation pages run, one after the other, in an empty folder."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
ROWS = (
    '{"id": "1", "context": ["My dog died."], "response": "I am so sorry, that must hurt."}\n'
    '{"id": "2", "context": ["I failed."], "response": "Make a plan first."}\n'
)


def blocks(page):
    """The code of a page's Python blocks."""
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_code_of_the_loaders_page(scorer_folder, tmp_path, monkeypatch):
    for module in ("datasets", "torch", "lightning", "peft", "datatrove", "pandas", "polars"):
        pytest.importorskip(module, reason=f"{module} is part of the extras that the page names")
    (tmp_path / "scorer").symlink_to(scorer_folder)
    (tmp_path / "raw.jsonl").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    code = blocks("loaders.md")
    assert len(code) == 10
    for number, block in enumerate(code, 1):
        exec(compile(block, f"loaders.md, block {number}", "exec"), names)
    # Nine and five tokens with full stops and the comma, and 2.
    assert [row["ee_sensibility"] for row in names["complete"]] == [11.0, 7.0]
    assert names["make_data"](None).folder == Path("subsets/sensibility")
    # The second column counts at least five: none is sensible.
    assert list(Path("rest").glob("*.jsonl.gz"))
