"""``verify``: is a folder as it was written, do its counts add up, and where does it come from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.audit.chain import GONE, RECORDED, UNKNOWN, Chain, Link
from efficient_empathy.audit.counts import check_counts
from efficient_empathy.audit.files import check_files, open_folder
from efficient_empathy.audit.places import Places
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import read_origin

_SHORT = 12


@dataclass(frozen=True)
class Verification:
    """What checking a folder found."""

    folder: str
    kind: str
    files: int
    """Files that the manifest vouches for."""
    digest: str
    """SHA-256 of the manifest: names this very folder."""
    origin: str | None
    """Where it was pulled from, as ``owner/name@commit``."""
    problems: list[str]
    """One sentence for each thing that is not as it should be, in the folder and back along the chain; empty when all is well."""
    beside: dict[str, str]
    """Files outside the manifest that belong there, and what they are."""
    chain: tuple[Link, ...]
    """What it was made from."""

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {**self.__dict__, "chain": [link.as_dict() for link in self.chain]}


def verify(path: Path, deep: bool = False, search: Sequence[Path] = ()) -> Verification:
    """Check a folder that ee-cli wrote: its files, its counts, and the chain back to data, labels, rubric and scorer.

    Args:
        path: a folder with a manifest, or a label file with its manifest beside it.
        deep: also read every row of a filter or score run: is it in the subset that the policy gives it?
        search: further folders in which what it was made from may lie.

    Raises:
        EmpathyError: there is no manifest, or it was changed.
    """
    folder = open_folder(path)
    found = check_files(folder)
    problems = list(found.problems)
    chain: tuple[Link, ...] = ()
    if not problems:  # a folder that was changed says nothing that could be believed
        problems += check_counts(folder, deep)
        try:
            chain = Chain(Places(folder.path, search)).of(folder)
        except EmpathyError as error:
            problems.append(str(error))
        problems += [problem for link in chain for problem in link.problems()]
    files, origin = len(folder.manifest["files"]), read_origin(folder.root)
    return Verification(
        str(path), folder.kind, files, folder.digest, origin, list(dict.fromkeys(problems)), found.beside, chain
    )


def describe(result: Verification) -> str:
    """A verification for people: what is wrong, and the chain as a small tree."""
    name = result.folder
    lines = [f"{name}: {problem}" for problem in result.problems]
    if not lines:
        lines = [f"{name}: all {result.files} files are as they were written ({result.kind})"]
    lines += [f"  beside the manifest: {file} ({what})" for file, what in result.beside.items()]
    if result.chain:
        origin = f", pulled from {result.origin}" if result.origin else ""
        lines.append(f"  {result.kind} {result.digest[:_SHORT]}…{origin}")
        lines += [f"  {line}" for line in _tree(result.chain, set())]
        if any(_gone(link) for link in result.chain):
            lines.append("  What was moved is found by its hash with --search FOLDER.")
    return "\n".join(lines)


def _gone(link: Link) -> bool:
    return link.state == GONE or any(_gone(inner) for inner in link.made_from)


def _tree(links: Sequence[Link], shown: set[tuple[str, str | None]]) -> Iterator[str]:
    for index, link in enumerate(links):
        last = index == len(links) - 1
        again = bool(link.made_from) and (link.what, link.sha256) in shown
        shown.add((link.what, link.sha256))
        yield ("└─ " if last else "├─ ") + _line(link) + (", as above" if again else "")
        for line in () if again else _tree(link.made_from, shown):
            yield ("   " if last else "│  ") + line


def _line(link: Link) -> str:
    digest = f" {link.sha256[:_SHORT]}…" if link.sha256 else ""
    state = {RECORDED: "", UNKNOWN: f": {UNKNOWN}"}.get(link.state, f": {link.state}")
    place = f" ({link.place})" if link.place and link.place != link.name else ""
    note = f", {link.note}" if link.note else ""
    return f"{link.what} {link.name}{digest}{state}{place}{note}"
