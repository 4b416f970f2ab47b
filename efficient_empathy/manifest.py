"""Hashes, atomic writes and the provenance record of every output folder."""

import contextlib
import glob
import hashlib
import importlib.metadata
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from efficient_empathy.errors import EmpathyError

MANIFEST = "manifest.json"
ORIGIN = "origin.json"
"""Where a folder was pulled from; no part of its manifest, since the folder is the same wherever it lies."""
_FORMAT = 2
_SEAL = "manifest_sha256"
_CHUNK_BYTES = 1 << 20
_UNFINISHED = ".unfinished"


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


def json_text(value: Any) -> str:
    """``pretty_json`` for a terminal, which ends the line itself."""
    return pretty_json(value).decode().rstrip()


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name; it takes its own name, flushed to disk, only if the block succeeds.

    Raises:
        EmpathyError: the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        opened = open(temporary, "xb")  # noqa: SIM115 - closed below; unlike tempfile's it has the rights that the umask gives
    except OSError as error:
        raise EmpathyError(
            f"cannot write to '{path.parent}': {error.strerror}. Choose another output folder with -o."
        ) from error
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file so that a reader, or a run that was killed, sees the old content or the new, never a part.

    Raises:
        EmpathyError: the folder cannot be written to, or the disk is full.
    """
    try:
        with atomic_open(path) as file:
            file.write(data)
    except OSError as error:
        raise EmpathyError(
            f"cannot write '{path}': {error.strerror or error}. Mend that and run the same command again."
        ) from error


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Make a folder beside its place; it moves there, whole, only if the block succeeds. What a killed run left is removed.

    Raises:
        EmpathyError: the folder around it cannot be written to.
    """
    folder = folder_beside(out)
    with _in_use(folder):
        try:
            yield folder
            try:
                os.replace(folder, out)
            except OSError as error:
                raise EmpathyError(
                    f"cannot write '{out}': {error.strerror}. Did another run make it meanwhile? Choose another folder with -o."
                ) from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Lock a folder; the system lets go of it when the process ends, however it ends.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # not on this system
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def folder_beside(out: Path) -> Path:
    """An empty folder next to ``out``, without those of its kind that a killed run has left; those of a run at work stay.

    Raises:
        EmpathyError: the folder around it cannot be written to.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Eight characters, as below: 'scorer' leaves those of 'scorer.v2' alone.
        for left in out.parent.glob(f".{glob.escape(out.name)}.????????{_UNFINISHED}"):
            with contextlib.suppress(OSError), _in_use(left):  # in use, gone already, or not ours
                shutil.rmtree(left, ignore_errors=True)
        folder = out.parent / f".{out.name}.{secrets.token_hex(4)}{_UNFINISHED}"
        folder.mkdir()  # tempfile's would be closed to all others, whatever the umask
        return folder
    except OSError as error:
        raise EmpathyError(
            f"cannot write to '{out.parent}': {error.strerror}. Choose another output folder with -o."
        ) from error


def check_local(out: Path) -> None:
    """Raise EmpathyError for an output that is a URL, which would else become a folder called ``s3:``."""
    if re.fullmatch(r"[A-Za-z][\w+.-]+:", next(iter(Path(out).parts), "")):  # a drive has one letter
        raise EmpathyError(f"-o must be a local path, not the URL '{out}': write here, and copy it afterwards.")


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
    write_manifest_file(Path(folder) / MANIFEST, kind, body, hashes)


def write_manifest_file(path: Path, kind: str, body: dict[str, Any], hashes: Mapping[str, str]) -> None:
    """Write a manifest of any name; its last field is the SHA-256 of the rest, so that a changed byte in it shows, too."""
    write_atomic(path, _sealed({"kind": kind, "format": _FORMAT, **body, "files": dict(hashes)}))


def _sealed(record: Mapping[str, Any]) -> bytes:
    return pretty_json({**record, _SEAL: sha256_bytes(pretty_json(record))})


def read_manifest(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a folder's manifest.

    Raises:
        EmpathyError: there is no manifest, it was changed, it is not ours, or it is of another kind than asked for.
    """
    record = read_manifest_file(Path(folder) / MANIFEST)
    if kind is not None and record["kind"] != kind:
        raise EmpathyError(f"'{folder}' is a folder of kind '{record['kind']}', but one of kind '{kind}' was expected.")
    return record


def read_manifest_file(path: Path) -> dict[str, Any]:
    """Read a manifest of any name.

    Raises:
        EmpathyError: it is not there, it was changed since it was written, or it is not ours.
    """
    try:
        raw = path.read_bytes()
        record = orjson.loads(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise EmpathyError(
            f"'{path.parent}' has no {path.name}: it is not a folder written by ee-cli, or the run that wrote it did not finish."
        ) from None
    except orjson.JSONDecodeError as error:
        raise EmpathyError(f"'{path}' is not valid JSON ({error}); write the folder again.") from error
    fields = record if isinstance(record, dict) else {}
    if not isinstance(fields.get("kind"), str) or not isinstance(fields.get("files"), dict):
        raise EmpathyError(f"'{path}' is not a manifest of ee-cli: it names no kind of folder, or no files.")
    # Manifests of format 1 had no hash of their own: nothing in them can be checked.
    if fields.get("format", 1) != 1 or _SEAL in fields:
        seal = record.pop(_SEAL, None)
        if _sealed(record) != raw:
            known = "" if fields.get("format") == _FORMAT else ", or a newer version of efficient-empathy wrote it"
            raise EmpathyError(
                f"'{path}' has changed: its own SHA-256 is not the one that it names ({str(seal)[:12]}…){known}. "
                "Copy or write the folder again."
            )
    return record


def manifest_digest(folder: Path) -> str:
    """SHA-256 of a folder's manifest, which holds the hash of every file: equal digests are equal folders."""
    return sha256_file(Path(folder) / MANIFEST)


def changed_files(folder: Path, under: str = "") -> list[str]:
    """What differs from the manifest: one sentence a file that is missing or whose hash is another; empty when all is well.

    Args:
        folder: with a manifest.
        under: only files whose path begins so.
    """
    files = read_manifest(folder)["files"]
    return differing_files(folder, {name: digest for name, digest in files.items() if name.startswith(under)})


def differing_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """One sentence for each of some files, SHA-256 by name relative to a folder, that is missing or has another hash."""
    problems = []
    for name, expected in files.items():
        path = Path(folder) / name
        if not path.is_file():
            problems.append(f"'{name}' is missing")
        elif (found := sha256_file(path)) != expected:
            problems.append(f"'{name}' has changed: SHA-256 is {found[:12]}…, the manifest says {expected[:12]}…")
    return problems


def check_unchanged(folder: Path, mend: str, under: str = "") -> None:
    """See that a folder's files are as its manifest has them.

    Args:
        folder: with a manifest.
        mend: a sentence on what to do where they are not.
        under: only files whose path begins so.

    Raises:
        EmpathyError: a file is missing or has changed, or there is no manifest.
    """
    if problems := changed_files(folder, under):
        raise EmpathyError(f"'{folder}' is not as it was written: {'; '.join(problems)}. {mend}")


def read_origin(folder: Path) -> str | None:
    """Where a folder was pulled from, as ``owner/name@commit``; None if it was made here, or is no longer what was pulled."""
    try:
        record = orjson.loads((Path(folder) / ORIGIN).read_bytes())
        found = f"{record['repo']}@{record['commit']}" if record["digest"] == manifest_digest(folder) else None
    except (OSError, orjson.JSONDecodeError, TypeError, KeyError):
        return None
    return found
