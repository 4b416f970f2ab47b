"""Names of inputs: what a file is called, what of a path may be shown, and what tells files of one name apart."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from urllib.parse import parse_qsl

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
_USER = re.compile(r"://(?:/*[^/]*:)?[^/]*@")
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+")
_SHORTEST_SECRET = 4
"""Shorter parts of a URL are taken out of a message with the URL alone: they stand in other words by chance."""


def is_url(path: str) -> bool:
    """Whether a path goes through fsspec."""
    return "://" in path


def base_name(path: str) -> str:
    """A file's name without its folder; of a URL without what may be secret."""
    return posixpath.basename(shown_path(path)) if is_url(path) else os.path.basename(path)


def shown_path(path: str) -> str:
    """A path as it may be passed on: a URL without user, password and query, where keys are sometimes put."""
    return _USER.sub("://", path.split("?")[0]) if is_url(path) else path


def kept_name(path: str) -> str:
    """A path as it may be kept in a file: as shown, where URLs that only differ in what is left out stay apart by a hash."""
    shown = shown_path(path)
    return shown if shown == path else f"{shown}#{sha256_bytes(path.encode())[:12]}"


def scrubbed(text: str, path: str) -> str:
    """A message about a path, without what ``shown_path`` leaves out of it, however the message words the address."""
    if not is_url(path):
        return text
    text = _ADDRESS.sub(lambda found: shown_path(found[0]), text.replace(path, shown_path(path)))
    query = path.partition("?")[2]
    users = [found[0].removeprefix("://").strip("/@") for found in _USER.finditer(path)]
    secrets = [query, *(value for _, value in parse_qsl(query)), *users, *(user.partition(":")[2] for user in users)]
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "…")
    return text


def container_of(path: str) -> tuple[str, str] | None:
    """What a name says: ``lines``, ``json``, ``csv``, ``parquet`` or ``arrow``; and ``gz``, ``zst`` or ``""``."""
    name = base_name(path).lower()
    return next((kind for suffix, kind in _CONTAINERS.items() if name.endswith(suffix)), None)


def row_names(paths: Sequence[str]) -> list[str]:
    """What each input's rows without an id are called by: its file's name.

    Files of saved data sets are called by folder, the split, and name. Files that would share a name take as many folders before
    it as tell them apart; where they lie decides that, not how they were given or from which folder.
    """
    names = [_plain_name(path) for path in paths]
    parts = [_parts(path) for path in paths]
    for size in range(2, max(map(len, parts), default=0) + 1):
        shared = {name for name, count in Counter(names).items() if count > 1}
        if not shared:
            return names
        names = ["/".join(own[-size:]) if name in shared else name for own, name in zip(parts, names, strict=True)]
    # What still shares a name are URLs that differ in their query alone.
    counts = Counter(names)
    return [kept_name(path) if counts[name] > 1 else name for path, name in zip(paths, names, strict=True)]


def _plain_name(path: str) -> str:
    parts = shown_path(path).replace(os.sep, "/").split("/")
    return "/".join(parts[-2:] if parts[-1].lower().endswith(".arrow") else parts[-1:])


def _parts(path: str) -> list[str]:
    whole = shown_path(path) if is_url(path) else os.path.abspath(path)
    return whole.replace(os.sep, "/").split("/")
