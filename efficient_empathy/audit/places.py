"""Where the folders and files that a manifest names by their hashes may lie now."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import MANIFEST, read_manifest_file, sha256_file

_DEPTH = 2
_DEPTH_OF_NAMED = 5
_MOST_FOLDERS = 5000
"""A look round a home folder must end; what lies elsewhere is found with --search."""


class Places:
    """Looks round a folder, the working folder and those that the user names; hashes say what is found."""

    def __init__(self, near: Path, more: Sequence[Path] = ()):
        """Choose the places; nothing is read yet.

        Args:
            near: the folder that is verified.
            more: further folders to look through, deeper than the others.
        """
        self._near = Path(near).resolve()
        self._more = [Path(place) for place in more]
        self._hashed: dict[tuple[str, int, int], str] = {}

    def folder(self, digest: str) -> Path | None:
        """The folder whose manifest has this SHA-256."""
        return self._by_digest.get(digest)

    def holding(self, kind: str, sha256: str) -> Path | None:
        """A folder of some kind whose manifest vouches for a file with this SHA-256; not for one of a folder inside it."""
        return self._by_file.get((kind, sha256))

    def labels(self, sha256: str) -> Path | None:
        """The manifest of a label file with this SHA-256."""
        return self._labels.get(sha256)

    def file(self, name: str, sha256: str, is_path: bool = False) -> tuple[Path | None, bool]:
        """Where a file is that was read as ``name``, and whether it still has its SHA-256.

        Args:
            name: what it was called.
            sha256: what it had when it was read.
            is_path: the name is the very path that was given: what is there now is that file, whatever it holds. Else a file of
                that name with other bytes is just called the same.
        """
        for path in self._candidates(name):
            if os.path.isfile(path) and self._sha256(path) == sha256:
                return path, True
        return (Path(name) if is_path and os.path.isfile(name) else None), False

    def _candidates(self, name: str) -> Iterator[Path]:
        yield Path(name)
        for root in self._roots:
            yield root / name
            yield root / Path(name).name
        for folder in self._folders:
            yield folder / Path(name).name

    def _sha256(self, path: Path) -> str | None:
        try:
            status = path.stat()
            key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
            if key not in self._hashed:
                self._hashed[key] = sha256_file(path)
        except OSError:
            return None  # not ours to read: it is no place to find things in
        return self._hashed[key]

    @property
    def _roots(self) -> list[Path]:
        return list(dict.fromkeys([*self._more, self._near.parent, self._near.parent.parent, Path.cwd()]))

    @cached_property
    def _folders(self) -> list[Path]:
        found: dict[Path, None] = {}
        for root in self._roots:
            depth = _DEPTH_OF_NAMED if root in self._more else _DEPTH
            for folder in _walk(root, depth):
                if len(found) >= _MOST_FOLDERS:
                    return list(found)
                found[folder] = None
        return list(found)

    @cached_property
    def _manifests(self) -> list[Path]:
        return [path for folder in self._folders if os.path.isfile(path := folder / MANIFEST)]

    @cached_property
    def _by_digest(self) -> dict[str, Path]:
        digests = [(self._sha256(path), path.parent) for path in reversed(self._manifests)]
        return {digest: folder for digest, folder in digests if digest is not None}

    @cached_property
    def _by_file(self) -> dict[tuple[str, str], Path]:
        records = [(path, _record(path)) for path in reversed(self._manifests)]
        return {
            (record["kind"], sha256): path.parent
            for path, record in records
            for name, sha256 in record["files"].items()
            if "/" not in name
        }

    @cached_property
    def _labels(self) -> dict[str, Path]:
        found = [path for folder in self._folders for path in sorted(folder.glob("*.manifest.json"))]
        return {sha256: path for path in reversed(found) for sha256 in _record(path)["files"].values()}


def _record(path: Path) -> dict[str, Any]:
    try:
        return read_manifest_file(path)
    except (EmpathyError, OSError):
        return {"kind": "", "files": {}}  # not a folder of ours, or a broken one: it is no place to find things in


def _walk(root: Path, depth: int) -> Iterator[Path]:
    """A folder and those in it, breadth first."""
    level = [root]
    for _ in range(depth + 1):
        yield from level
        inner: list[Path] = []
        for folder in level:
            try:
                with os.scandir(folder) as entries:
                    inner += sorted(Path(e.path) for e in entries if not e.name.startswith(".") and _is_folder(e))
            except OSError:
                continue  # not there, or not ours to read
            if len(inner) > _MOST_FOLDERS:
                break
        level = inner


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
