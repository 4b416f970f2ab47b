"""Hashes, atomic writes and the provenance record of every output folder."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from efficient_empathy.errors import EmpathyError

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a local file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON form of a value, keys sorted: equal values give equal bytes, so it can be hashed."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def pretty_json(value: Any) -> bytes:
    """JSON for people to read: indented, in the given order, with a final line end."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name; it takes its own name, flushed to disk, only if the block succeeds.

    Raises:
        EmpathyError: the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise EmpathyError(
            f"cannot write to '{path.parent}': {error.strerror}. Choose another output folder with -o."
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file so that a reader, or a run that was killed, sees the old content or the new, never a part."""
    with atomic_open(path) as file:
        file.write(data)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of this package, Python and the named distributions; those that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in ("efficient-empathy", *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files in a folder, by their path relative to it, in sorted order."""
    return {name: sha256_file(Path(folder) / name) for name in sorted(names)}


def write_manifest(folder: Path, kind: str, body: dict[str, Any], files: Iterable[str] | Mapping[str, str]) -> None:
    """Write ``manifest.json``: the kind of folder, what the caller knows of its making, and the hash of each file.

    The manifest holds no times, so that the same work gives the same bytes.

    Args:
        folder: where it goes.
        kind: of folder.
        body: what else the manifest says.
        files: paths relative to the folder, to be hashed; or with the SHA-256 that each had when it was written.
    """
    hashes = dict(sorted(files.items())) if isinstance(files, Mapping) else file_hashes(folder, files)
    record = {"kind": kind, "format": 1, **body, "files": hashes}
    write_atomic(Path(folder) / MANIFEST, pretty_json(record))


def read_manifest(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a folder's manifest.

    Raises:
        EmpathyError: there is no manifest, it is not JSON or not ours, or it is of another kind than asked for.
    """
    path = Path(folder) / MANIFEST
    try:
        record = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise EmpathyError(
            f"'{folder}' has no {MANIFEST}: it is not a folder written by ee-cli, or the run that wrote it did not finish."
        ) from None
    except orjson.JSONDecodeError as error:
        raise EmpathyError(f"'{path}' is not valid JSON ({error}); write the folder again.") from error
    fields = record if isinstance(record, dict) else {}
    if not isinstance(fields.get("kind"), str) or not isinstance(fields.get("files"), dict):
        raise EmpathyError(f"'{path}' is not a manifest of ee-cli: it names no kind of folder, or no files.")
    if kind is not None and record.get("kind") != kind:
        raise EmpathyError(
            f"'{folder}' is a folder of kind '{record.get('kind')}', but one of kind '{kind}' was expected."
        )
    return record


def changed_files(folder: Path) -> list[str]:
    """What differs from the manifest: one sentence a file that is missing or whose hash is another; empty when all is well."""
    problems = []
    for name, expected in read_manifest(folder)["files"].items():
        path = Path(folder) / name
        if not path.is_file():
            problems.append(f"'{name}' is missing")
        elif (found := sha256_file(path)) != expected:
            problems.append(f"'{name}' has changed: SHA-256 is {found[:12]}…, the manifest says {expected[:12]}…")
    return problems
