"""The site of the documentation: Sphinx over the pages of this folder, which a code host shows as they are.

What only the site needs is added here: the order of the pages, and the texts that lie outside of this folder.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from efficient_empathy import __version__  # noqa: E402

project = "efficient-empathy"
author = "the authors of efficient-empathy"
version = release = __version__
html_title = f"{project} {__version__}"
html_theme = "furo"
html_show_copyright = False
exclude_patterns = ["_build"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
highlight_language = "text"
maximum_signature_line_length = 100
myst_heading_anchors = 3

autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

_ORDER = {
    "Start": ["start", "sample"],
    "Tasks": [
        *("dialogues", "label", "rubric", "distill", "filter", "tiers", "throughput", "devices", "loaders", "ray"),
        *("train", "mixture", "generate", "evaluate", "pairwise", "verify", "hub", "doctor", "troubleshooting"),
    ],
    "Concepts": ["concepts/selection", "concepts/scorer-folder"],
    "Results": ["results"],
    "Reference": ["reference/cli", "reference/scoring", "reference/training", "reference/folders"],
    "Changes": ["changelog"],
}
"""The pages as they stand at the side; one that is missing here breaks the build."""

_OUTSIDE = {"start": "README.md", "sample": "examples/sample/README.md", "changelog": "CHANGELOG.md"}
"""Pages that hold a file from outside of this folder; on a code host each is a link to it."""

_LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)#\s]+)")


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    """Put in the text of what lies outside, turn links to it into links to its page, and give the index its contents."""
    path = DOCS / f"{page}.md"
    if page in _OUTSIDE:
        path = ROOT / _OUTSIDE[page]
        source[0] = path.read_text(encoding="utf-8")
        app.env.note_dependency(str(path))
    here, pages = (DOCS / page).parent, {ROOT / file: DOCS / f"{name}.md" for name, file in _OUTSIDE.items()}

    def link(found: re.Match[str]) -> str:
        target = (path.parent / found[1]).resolve()
        return os.path.relpath(pages.get(target, target), here)

    source[0] = _LINK.sub(link, source[0])
    if page == "index":
        for caption, names in _ORDER.items():
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names) + "\n```\n"


def _plain_help(app: Sphinx, context: Any, lines: list[str]) -> None:
    """Escape what reStructuredText would take for markup: the help of a command is plain text."""
    for number, line in enumerate(lines):
        if line.startswith(".. option::"):
            # sphinx-click strips one bracket of a metavar such as [NAME=]FOLDER.
            lines[number] = re.sub(r"<([^<>\[]*\])", r"<[\1", line)
        elif not line.lstrip().startswith(("..", ":default:", "**Required**")):
            lines[number] = re.sub(r"[*|`]", r"\\\g<0>", line)


def _whole_sentence(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Keep a field's text together: Napoleon would take what stands before its first colon for a type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def _short_signature(
    app: Sphinx, what: str, name: str, member: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Leave out what is no Python or says nothing: defaults made by a factory, the arguments of a protocol."""
    if getattr(member, "_is_protocol", False):
        return "", None
    return (signature and re.sub(r"<.*?>+", "...", signature)), returns


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _whole_sentence, priority=400)  # before Napoleon
    app.connect("autodoc-process-signature", _short_signature)
    app.connect("source-read", _read)
    for part in ("description", "options"):
        app.connect(f"sphinx-click-process-{part}", _plain_help)
