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
    for module, names in re.findall(r"^ *from (efficient_empathy[\w.]*) import ([\w, ]+)$", page.read_text(), re.M):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}.{name}"
