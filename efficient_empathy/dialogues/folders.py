"""Which of a folder's files are data: what tools write beside it, and what ee-cli itself writes, is passed over."""

import functools
import logging
import posixpath
from collections.abc import Callable, Iterable
from typing import Any

from efficient_empathy.dialogues.paths import base_name, container_of, shown_path

_log = logging.getLogger(__name__)

RECORD = ".manifest.json"
"""How the name of the manifest beside a label file ends."""
_MANIFEST = "manifest.json"
_NOT_DATA = {_MANIFEST, "run.json", "state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
_REJECTED = "rejected"
_PLAN = ".units/plan.json"
"""What a run of ours that has begun has noted in its output folder."""
_WITH_REJECTED = ("subsets", "scored", "answers")
"""Kinds of our outputs that keep rejected rows."""

Read = Callable[[str], Any]
"""Reads a JSON file; None where it holds no JSON."""


def is_data(path: str) -> bool:
    """Whether a file's name is one of data."""
    return container_of(path) is not None and base_name(path) not in _NOT_DATA


def data_names(folder: str, names: Iterable[str], read: Read) -> list[str]:
    """The data files among a folder's files.

    Args:
        folder: the folder's name, for messages.
        names: its files, relative to it, with ``/`` between parts.
        read: reads one of them.
    """
    names = list(names)
    rejected = _our_rejected(names, read)
    seen, passed = [], set()
    for name in names:
        if any(part.startswith(".") for part in name.split("/")):
            continue
        parents = _parents(name)
        if ours := next((parent for parent in parents if parent in rejected), None):
            passed |= {ours} if is_data(name) else set()
        else:
            seen.append(name)
    if passed:
        warn_once(f"'{shown_path(folder)}': passed over {listed(passed)}, rows that ee-cli could not read.")
    saved, labels = _saved_datasets(seen, read), label_files(seen, read)
    keep = []
    for name in seen:
        parent, last = posixpath.split(name)
        if is_data(name) and name not in labels and (parent not in saved or last in saved[parent]):
            keep.append(name)
    return keep


def listed(folders: Iterable[str], most: int = 3) -> str:
    """Some folders in a sentence."""
    ordered = sorted(folders)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(f"{name}/" for name in ordered[:most]) + more


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning; a command looks for its files more than once."""
    _log.warning("%s", text)


def _parents(name: str) -> list[str]:
    """The folders that a file lies in, the outermost first."""
    parts = name.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _our_rejected(names: Iterable[str], read: Read) -> set[str]:
    """Folders of rejected rows that runs of ours wrote; a folder of somebody else may have that name, too."""
    there = set(names)
    found = {parent for name in there for parent in _parents(name) if posixpath.basename(parent) == _REJECTED}
    return {folder for folder in found if _is_output(posixpath.dirname(folder), there, read)}


def _is_output(folder: str, names: set[str], read: Read) -> bool:
    if posixpath.join(folder, _PLAN) in names:
        return True
    manifest = posixpath.join(folder, _MANIFEST)
    record = read(manifest) if manifest in names else None
    return isinstance(record, dict) and record.get("kind") in _WITH_REJECTED


def _saved_datasets(names: Iterable[str], read: Read) -> dict[str, set[str]]:
    """For each folder that ``datasets`` saved, the files that are its data: it may leave cached files beside them."""
    found = {}
    for name in names:
        parent, last = posixpath.split(name)
        if (
            last == "state.json"
            and isinstance(state := read(name), dict)
            and isinstance(state.get("_data_files"), list)
        ):
            found[parent] = {str(item.get("filename")) for item in state["_data_files"] if isinstance(item, dict)}
    return found


def label_files(names: Iterable[str], read: Read) -> set[str]:
    """Label files that ``label`` wrote among the dialogues, and their manifests: neither are dialogues."""
    found = set()
    for name in names:
        if name.endswith(RECORD) and isinstance(record := read(name), dict) and record.get("kind") == "labels":
            labelled = record["files"] if isinstance(record.get("files"), dict) else {}
            found |= {name, *(posixpath.join(posixpath.dirname(name), file) for file in labelled)}
    return found
