"""Files wherever they are: names, globs, folders and URLs to a sorted list of paths, and how to open one."""

import contextlib
import glob
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, cast

import orjson

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import sha256_bytes

_LINES, _COMPRESSED = (".jsonl", ".ndjson"), {"": "", ".gz": "gz", ".zst": "zst"}
_CONTAINERS = {
    **{suffix + end: ("lines", packed) for suffix in _LINES for end, packed in _COMPRESSED.items()},
    **{suffix + end: ("csv", packed) for suffix in (".csv", ".tsv") for end, packed in _COMPRESSED.items()},
    **{".json" + end: ("json", packed) for end, packed in _COMPRESSED.items()},
    ".parquet": ("parquet", ""),
    ".arrow": ("arrow", ""),
}
KNOWN = ".jsonl, .ndjson, .json, .csv, .tsv (each also with .gz or .zst), .parquet, .arrow"
_RECORD = ".manifest.json"
"""How the name of the manifest beside a label file ends."""
_NOT_DATA = {"manifest.json", "run.json", "state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
_PACKAGES = {
    "hf": "huggingface_hub",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "abfs": "adlfs",
}


def is_url(path: str) -> bool:
    """Whether a path goes through fsspec."""
    return "://" in path


def base_name(path: str) -> str:
    """A file's name without its folder; of a URL without its query."""
    return posixpath.basename(path.split("?")[0]) if is_url(path) else os.path.basename(path)


def shown_path(path: str) -> str:
    """A path as it may be passed on: a URL without user, password and query, where keys are sometimes put."""
    return re.sub(r"://[^/@]*@", "://", path.split("?")[0]) if is_url(path) else path


def kept_name(path: str) -> str:
    """A path as it may be kept in a file: as shown, where URLs that only differ in what is left out stay apart by a hash."""
    shown = shown_path(path)
    return shown if shown == path else f"{shown}#{sha256_bytes(path.encode())[:12]}"


def container_of(path: str) -> tuple[str, str] | None:
    """What a name says: ``lines``, ``json``, ``csv``, ``parquet`` or ``arrow``; and ``gz``, ``zst`` or ``""``."""
    name = base_name(path).lower()
    return next((kind for suffix, kind in _CONTAINERS.items() if name.endswith(suffix)), None)


def find_files(inputs: Sequence[str]) -> list[str]:
    """Every file that the inputs name, sorted, each once.

    Args:
        inputs: files, folders, globs, or any of these as a URL that fsspec understands.

    Raises:
        EmpathyError: an input is missing, matches nothing, or is no container that can be read.
    """
    if isinstance(inputs, str | os.PathLike):
        inputs = [os.fspath(inputs)]
    found: dict[str, str] = {}
    for path in sorted(path for text in inputs for path in _expand(os.fspath(text))):
        found.setdefault(path if is_url(path) else os.path.realpath(path), path)
    if not found:
        raise EmpathyError("no input was given; name a file, a folder, a glob or a URL.")
    for path in found.values():
        try:
            path.encode()
        except UnicodeEncodeError:
            raise EmpathyError(f"the file name {os.fsencode(path)!r} is not UTF-8; rename the file.") from None
    return list(found.values())


def file_size(path: str) -> int | None:
    """Bytes of a local file or a URL; None where they cannot be told.

    Raises:
        EmpathyError: a URL cannot be reached, or its file system's package is not installed.
    """
    if not is_url(path):
        return os.path.getsize(path) if os.path.isfile(path) else None
    with _named(path):
        import fsspec

        system, inner = fsspec.core.url_to_fs(path)
        return system.info(inner).get("size")


@contextlib.contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """Open a local file or a URL for reading bytes.

    Raises:
        EmpathyError: it is not there, may not be read, or its file system's package is not installed.
    """
    with contextlib.ExitStack() as stack:
        with _named(path):
            if is_url(path):
                import fsspec

                file = stack.enter_context(fsspec.open(path, "rb"))
            else:
                file = stack.enter_context(open(path, "rb"))
        yield cast(BinaryIO, file)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Turn what a file system raises into one sentence about this path."""
    shown = shown_path(path)
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        hint = (
            f" For a data set of the Hub write hf://datasets/{path}."
            if path.count("/") == 1 and not is_url(path)
            else ""
        )
        raise EmpathyError(f"there is no file or folder '{shown}'; check the name.{hint}") from None
    except ImportError as error:
        package = _PACKAGES.get(path.split("://")[0])
        advice = f" Install it with: pip install {package}" if package else ""
        raise EmpathyError(f"'{shown}' needs a package that is not installed: {error}.{advice}") from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EmpathyError(
            f"cannot read '{shown}': {reason}. Check the name, the access rights and the connection."
        ) from error


def _expand(text: str) -> list[str]:
    if is_url(text):
        return _expand_url(text)
    if os.path.isdir(text):
        return _of_folder(text, _local_names(text))
    if os.path.exists(text):
        return [_known(text)]
    if not glob.has_magic(text):
        with _named(text):
            raise FileNotFoundError
    matches = [path for path in glob.glob(text, recursive=True) if os.path.isfile(path)]
    return _of_glob(text, matches)


def _expand_url(url: str) -> list[str]:
    if "::" in url or url.startswith(("http://", "https://")):
        return [_known(url)]  # chained and web addresses name one file
    with _named(url):
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        if glob.has_magic(path):
            return _of_glob(url, [system.unstrip_protocol(name) for name in system.glob(path)])
        if not system.exists(path):
            raise FileNotFoundError
        if not system.isdir(path):
            return [_known(url)]
        root = path.rstrip("/") + "/"
        names = [name.removeprefix(root) for name in system.find(path)]
    return _of_folder(url.rstrip("/"), names)


def _known(path: str) -> str:
    if container_of(path) is None:
        raise EmpathyError(f"'{shown_path(path)}' is of no known container; a file's name must end in one of: {KNOWN}.")
    return path


def _of_glob(pattern: str, matches: Iterable[str]) -> list[str]:
    matches = list(matches)
    if not matches:
        raise EmpathyError(f"'{pattern}' matches no file; check the pattern.")
    beside = (posixpath.splitext(path)[0] + _RECORD for path in matches if not is_url(path))
    labels = _label_files({*matches, *filter(os.path.isfile, beside)}, _read_json)
    known = [path for path in matches if container_of(path) and base_name(path) not in _NOT_DATA and path not in labels]
    if not known:
        raise EmpathyError(
            f"'{pattern}' matches {len(matches)} files, none of a known container; names must end in one of: {KNOWN}."
        )
    return known


def _of_folder(folder: str, names: Iterable[str]) -> list[str]:
    """The data files among a folder's files; names are relative to the folder, with ``/`` between parts."""
    seen = []
    for name in names:
        *folders, last = name.split("/")
        if not any(part.startswith(".") or part == "rejected" for part in folders) and not last.startswith("."):
            seen.append(name)
    listed = _saved_datasets(seen, lambda name: _read_json(f"{folder}/{name}"))
    labels = _label_files(seen, lambda name: _read_json(f"{folder}/{name}"))
    keep = []
    for name in seen:
        parent, last = posixpath.split(name)
        if name in labels:
            continue
        if last not in _NOT_DATA and container_of(name) and (parent not in listed or last in listed[parent]):
            keep.append(f"{folder.rstrip('/')}/{name}")
    if not keep:
        raise EmpathyError(
            f"the folder '{folder}' holds no file of a known container; names must end in one of: {KNOWN}."
        )
    return keep


def _saved_datasets(names: Iterable[str], read: Callable[[str], Any]) -> dict[str, set[str]]:
    """For each folder that ``datasets`` saved, the files that are its data: it may leave cached files beside them."""
    listed = {}
    for name in names:
        parent, last = posixpath.split(name)
        if (
            last == "state.json"
            and isinstance(state := read(name), dict)
            and isinstance(state.get("_data_files"), list)
        ):
            listed[parent] = {str(item.get("filename")) for item in state["_data_files"] if isinstance(item, dict)}
    return listed


def _label_files(names: Iterable[str], read: Callable[[str], Any]) -> set[str]:
    """Label files that ``label`` wrote among the dialogues, and their manifests: neither are dialogues."""
    found = set()
    for name in names:
        if name.endswith(_RECORD) and isinstance(record := read(name), dict) and record.get("kind") == "labels":
            labelled = record["files"] if isinstance(record.get("files"), dict) else {}
            found |= {name, *(posixpath.join(posixpath.dirname(name), file) for file in labelled)}
    return found


def _read_json(path: str) -> Any:
    with open_file(path) as file:
        try:
            return orjson.loads(file.read())
        except orjson.JSONDecodeError:
            return None


def _local_names(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder, onerror=_refuse, followlinks=False):
        relative = os.path.relpath(parent, folder).replace(os.sep, "/")
        yield from (name if relative == "." else f"{relative}/{name}" for name in names)


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed must not be passed over: its rows would be missing without a word."""
    with _named(str(error.filename)):
        raise error
