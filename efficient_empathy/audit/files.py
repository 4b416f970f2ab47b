"""The files of a folder against its manifest: changed, missing, and those that it does not know."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.distill.labels import LABELS, label_manifest
from efficient_empathy.distill.labels import beside as beside_labels
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import (
    MANIFEST,
    ORIGIN,
    changed_files,
    differing_files,
    manifest_digest,
    read_manifest,
    read_manifest_file,
    sha256_file,
)

_BESIDE = {
    "run.json": "times and machine of the run",
    ORIGIN: "where the folder was pulled from",
    "answers.sqlite": "every answer of the judge",
    "answers.sqlite-wal": "every answer of the judge",
    "answers.sqlite-shm": "every answer of the judge",
}
"""Files that runs leave beside what their manifest vouches for, and what they are."""
_FOLDERS_BESIDE = {("evaluation", "pairwise"): "the verdicts of pairs, which are verified by themselves"}
"""Folders with manifests of their own, by the kind of folder that they stand in."""


@dataclass(frozen=True)
class Folder:
    """A folder that ee-cli wrote, or a label file with its manifest beside it."""

    path: Path
    """The folder; of labels, the label file."""
    root: Path
    """What the names in the manifest are relative to."""
    manifest: dict[str, Any]
    digest: str
    """SHA-256 of the manifest."""

    @property
    def kind(self) -> str:
        """What was written: ``scorer``, ``subsets``, ``labels`` and so on."""
        return str(self.manifest["kind"])


@dataclass(frozen=True)
class FileCheck:
    """What the files of a folder came to."""

    changed: list[str]
    """One sentence a file that is changed or missing."""
    unknown: list[str]
    """Files that the manifest does not know and that no run leaves there."""
    beside: dict[str, str]
    """Files outside the manifest that belong there, and what they are."""

    @property
    def problems(self) -> list[str]:
        """One sentence a file that is changed, missing or not in the manifest."""
        return [*self.changed, *(f"'{name}' is not in the manifest: the run did not write it" for name in self.unknown)]


def open_folder(path: Path) -> Folder:
    """Read the manifest of a folder, or of a label file.

    Raises:
        EmpathyError: there is none, or it was changed.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        return Folder(path, path, read_manifest(path), manifest_digest(path))
    record = path if path.name.endswith(".manifest.json") else label_manifest(path)
    if not record.is_file():
        raise EmpathyError(
            f"'{path}' has no '{record.name}' beside it, so nothing is known of it. Name a folder of ee-cli."
        )
    manifest = read_manifest_file(record)
    names = list(manifest["files"])
    if manifest["kind"] != LABELS or len(names) != 1:
        raise EmpathyError(f"'{record}' is no manifest of a label file. Name a folder of ee-cli, or a label file.")
    return Folder(path.parent / names[0], path.parent, manifest, sha256_file(record))


def check_files(folder: Folder) -> FileCheck:
    """Compare every file with its hash, and look for files that the manifest does not know."""
    vouched = folder.manifest["files"]
    if folder.kind == LABELS:
        problems = differing_files(folder.root, vouched)
        store = beside_labels(folder.path, ".sqlite")
        return FileCheck(problems, [], {store.name: "every answer of the judge"} if store.is_file() else {})
    unknown, beside = [], {}
    for name in _names(folder.root):
        if name in vouched or name == MANIFEST:
            continue
        if any(part.startswith(".") for part in name.split("/")):
            top = name.split("/")[0]
            label = f"{top}/" if "/" in name else top
            beside[label] = "the run's own records" if top == ".units" else "hidden"
        elif name in _BESIDE:
            beside[name] = _BESIDE[name]
        elif said := _FOLDERS_BESIDE.get((folder.kind, name.split("/")[0])):
            beside[f"{name.split('/')[0]}/"] = said
        else:
            unknown.append(name)
    return FileCheck(changed_files(folder.root), unknown, beside)


def _names(root: Path) -> Iterator[str]:
    for where, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            yield (Path(where) / name).relative_to(root).as_posix()
