"""The pages of the documentation against the code: commands, options and imports that they show are there."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from efficient_empathy.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "examples/sample/README.md", *(ROOT / "docs").glob("*.md")]
PAGES += (ROOT / "docs/concepts").glob("*.md")
NAMED = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]


ROWS = (
    '{"id": "1", "context": ["My dog died."], "response": "I am so sorry, that must hurt."}\n'
    '{"id": "2", "context": ["I failed."], "response": "Make a plan first."}\n'
)
IMPORT = re.compile(r"^ *from (efficient_empathy[\w.]*) import ([\w, ]+)$", re.M)


def shown_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every command that is shown as code: its name and the options behind it."""
    joined = text.replace("\\\n", " ")
    code = re.findall(r"^ {4}.*$", joined, re.M) + re.findall(r"`([^`\n]+)`", joined)
    for line in code:
        for name, rest in re.findall(r"\bee-cli +([a-z][a-z-]*)([^|#]*)", line):
            yield name, re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", rest)


def test_shown_commands_are_found():
    text = "`ee-cli a --b`, which ee-cli writes\n\n    x=1 ee-cli c 'x' \\\n        -o y --d 3 | ee-cli e  # --f\n"
    assert sorted(shown_commands(text)) == [("a", ["--b"]), ("c", ["-o", "--d"]), ("e", [])]


@pytest.mark.parametrize("page", NAMED)
def test_commands_and_options_are_there(page):
    context = click.Context(app)
    for name, options in shown_commands(page.read_text()):
        command = app.get_command(context, name)
        assert command is not None, name
        known = {flag for parameter in command.params for flag in parameter.opts} | {"--help"}
        assert set(options) <= known, name


@pytest.mark.parametrize("page", NAMED)
def test_every_option_is_one_of_some_command(page):
    context = click.Context(app)
    commands = [app.get_command(context, name) for name in app.list_commands(context)]
    known = {flag for command in commands for parameter in command.params for flag in parameter.opts} | {"--help"}
    others = {"--small"}  # of a script in benchmarks/
    assert set(re.findall(r"`(--[a-z][a-z0-9-]*)", page.read_text())) <= known | others


@pytest.mark.slow
@pytest.mark.parametrize("page", NAMED)
def test_imports_are_there(page):
    for module, names in IMPORT.findall(page.read_text()):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}.{name}"


def test_the_pages_show_something_to_check():
    texts = [page.read_text() for page in PAGES]
    assert sum(len(list(shown_commands(text))) for text in texts) > 75
    assert sum(len(IMPORT.findall(text)) for text in texts) > 28


@pytest.mark.slow
def test_the_code_of_the_loaders_page_runs(scorer_folder, tmp_path, monkeypatch):
    for module in ("datasets", "torch", "lightning", "peft", "datatrove", "pandas", "polars"):
        pytest.importorskip(module, reason=f"{module} is part of the extras that the page names")
    page = (ROOT / "docs" / "loaders.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 10
    (tmp_path / "scorer").symlink_to(scorer_folder)
    (tmp_path / "raw.jsonl").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"loaders.md, block {number}", "exec"), names)
    # Nine and five tokens with full stops and the comma, and 2.
    assert [row["ee_sensibility"] for row in names["complete"]] == [11.0, 7.0]
    assert names["make_data"](None).folder == Path("subsets/sensibility")
    # The second column counts at least five: none is sensible.
    assert list(Path("rest").glob("*.jsonl.gz"))
