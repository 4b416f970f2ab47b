"""Files wherever they are: names, globs, folders and URLs to a sorted list of paths, and how to open one."""

import contextlib
import glob
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, cast

import orjson

from efficient_empathy.dialogues.folders import RECORD, data_names, is_data, label_files, listed, warn_once
from efficient_empathy.dialogues.paths import KNOWN, container_of, is_url, scrubbed, shown_path
from efficient_empathy.errors import EmpathyError

_MISSING = (FileNotFoundError, NotADirectoryError)
_GONE = (404, 410)
"""HTTP's answers for what is not there."""
_PACKAGES = {
    "hf": "huggingface_hub",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "abfs": "adlfs",
}


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


def forget_sizes(urls: Iterable[str]) -> None:
    """Have the file systems of some URLs forget what they know of their files, so that ``file_size`` asks anew."""
    known: list[Any] = []
    for url in urls:
        with reading(url):
            import fsspec

            system, _ = fsspec.core.url_to_fs(url)
            if system not in known:
                known.append(system)
                system.invalidate_cache()


def file_size(path: str) -> int | None:
    """Bytes of a local file or a URL; None where they cannot be told.

    Raises:
        EmpathyError: a URL cannot be reached, or its file system's package is not installed.
    """
    if not is_url(path):
        return os.path.getsize(path) if os.path.isfile(path) else None
    with reading(path):
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
        with reading(path):
            if is_url(path):
                import fsspec

                file = stack.enter_context(fsspec.open(path, "rb"))
            else:
                file = stack.enter_context(open(path, "rb"))
        yield cast(BinaryIO, file)


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what a file system raises into one sentence about this path; without keys, where it is a URL.

    Raises:
        EmpathyError: the block failed.
    """
    shown = shown_path(path)
    try:
        yield
    except EmpathyError:
        raise
    except ImportError as error:
        package = _PACKAGES.get(path.split("://")[0])
        advice = f" Install it with: pip install {package}" if package else ""
        raise EmpathyError(f"'{shown}' needs a package that is not installed: {error}.{advice}") from error
    except Exception as error:
        if _is_missing(error):
            is_name = path.count("/") == 1 and not is_url(path)
            hint = f" For a data set of the Hub write hf://datasets/{path}." if is_name else ""
            raise EmpathyError(f"there is no file or folder '{shown}'; check the name.{hint}") from None
        # Each file system's package has errors of its own.
        if not isinstance(error, OSError | ValueError | RuntimeError) and not is_url(path):
            raise
        said = scrubbed(_reason(_met(error)), path)
        raise EmpathyError(
            f"cannot read '{shown}': {said}. Check the name, the access rights and the connection."
        ) from error


def _met(error: Exception) -> Exception:
    """What a file system met; some say that a file is not there, too, where access was refused or nobody could be reached."""
    while isinstance(error, _MISSING) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _is_missing(error: Exception) -> bool:
    met = _met(error)
    status = getattr(met, "status", None) or getattr(getattr(met, "response", None), "status_code", None)
    return status in _GONE or (isinstance(error, _MISSING) and isinstance(met, (*_MISSING, LookupError)))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".") or type(error).__name__


def _expand(text: str) -> list[str]:
    if is_url(text):
        return _expand_url(text)
    if os.path.isdir(text):
        return _of_folder(text, _local_names(text))
    if os.path.exists(text):
        return [_known(text)]
    if not glob.has_magic(text):
        with reading(text):
            raise FileNotFoundError
    found = glob.glob(text, recursive=True)
    if dangling := [path for path in found if is_data(path) and os.path.islink(path) and not os.path.exists(path)]:
        more = f", and {len(dangling) - 1} more of '{text}'" if len(dangling) > 1 else ""
        raise EmpathyError(
            f"'{dangling[0]}' is a link to a file that is not there{more}. Fetch what is missing, or remove the link."
        )
    return _of_glob(text, [path for path in found if os.path.isfile(path)])


def _expand_url(url: str) -> list[str]:
    if "::" in url or url.startswith(("http://", "https://")):
        return [_known(url)]  # chained and web addresses name one file
    with reading(url):
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        if glob.has_magic(path):
            return _of_glob(url, [system.unstrip_protocol(name) for name in system.glob(path)])
        if system.info(path).get("type") != "directory":  # `exists` takes a refusal for a file that is not there
            return [_known(url)]
        root = path.rstrip("/") + "/"
        names = [name.removeprefix(root) for name in system.find(path)]
    return _of_folder(url.rstrip("/"), names)


def _known(path: str) -> str:
    if container_of(path) is None:
        raise EmpathyError(f"'{shown_path(path)}' is of no known container; a file's name must end in one of: {KNOWN}.")
    return path


def _of_glob(pattern: str, matches: Iterable[str]) -> list[str]:
    matches, shown = list(matches), shown_path(pattern)
    if not matches:
        raise EmpathyError(f"'{shown}' matches no file; check the pattern.")
    beside = (posixpath.splitext(path)[0] + RECORD for path in matches if not is_url(path))
    labels = label_files({*matches, *filter(os.path.isfile, beside)}, _read_json)
    known = [path for path in matches if is_data(path) and path not in labels]
    if not known:
        raise EmpathyError(
            f"'{shown}' matches {len(matches)} files, none of a known container; names must end in one of: {KNOWN}."
        )
    return known


def _of_folder(folder: str, names: Iterable[str]) -> list[str]:
    """The data files among a folder's files; names are relative to the folder, with ``/`` between parts."""
    found = data_names(folder, names, lambda name: _read_json(f"{folder}/{name}"))
    if not found:
        raise EmpathyError(
            f"the folder '{shown_path(folder)}' holds no file of a known container; names must end in one of: {KNOWN}."
        )
    return [f"{folder.rstrip('/')}/{name}" for name in found]


def _read_json(path: str) -> Any:
    with reading(path), open_file(path) as file:
        try:
            return orjson.loads(file.read())
        except orjson.JSONDecodeError:
            return None


def _local_names(folder: str) -> Iterator[str]:
    links = []
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=False):
        inside = "" if (relative := os.path.relpath(parent, folder)) == "." else relative.replace(os.sep, "/") + "/"
        yield from (inside + name for name in names)
        links += [inside + name for name in folders if os.path.islink(os.path.join(parent, name))]
    shown = [name for name in links if not any(part.startswith(".") for part in name.split("/"))]
    if shown:
        warn_once(
            f"'{folder}': links to folders are not followed: {listed(shown)}. Name such a folder itself to read it."
        )


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed must not be passed over: its rows would be missing without a word."""
    with reading(str(error.filename)):
        raise error
