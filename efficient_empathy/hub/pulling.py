"""``pull``: a folder from the Hub, every file checked against its manifest, and a note of where it came from."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.audit.files import open_folder
from efficient_empathy.errors import EmpathyError
from efficient_empathy.hub.client import check_names, hub, saying, vouched_files
from efficient_empathy.manifest import (
    MANIFEST,
    ORIGIN,
    atomic_folder,
    changed_files,
    manifest_digest,
    pretty_json,
    read_manifest_file,
    write_atomic,
)


@dataclass(frozen=True)
class Origin:
    """What ``origin.json`` holds: where a folder was pulled from."""

    repo: str
    revision: str
    """As it was asked for: a branch, a tag or a commit."""
    commit: str
    """The commit that it was then."""
    digest: str
    """SHA-256 of the manifest: the note speaks of this very folder."""


@dataclass(frozen=True)
class Pull:
    """What was pulled."""

    folder: str
    kind: str
    files: int
    origin: Origin


def pull(repo: str, out: Path, revision: str | None = None) -> Pull:
    """Fetch a scorer, an expert or a mixture; the folder appears whole and checked, or not at all.

    Only what its manifest vouches for is fetched, through the cache of ``huggingface_hub``; with ``HF_HUB_OFFLINE`` set,
    from that cache alone. Pulled again at the same commit, nothing changes.

    Args:
        repo: ``owner/name``.
        out: the folder to write.
        revision: a branch, a tag or a commit hash; None for ``main``.

    Raises:
        EmpathyError: the folder holds something else, there is no such repository or revision, a file is not as the manifest
            has it, or the Hub cannot be reached and the cache does not have it.
    """
    check_names(repo, revision)
    if out.name in ("", ".."):
        raise EmpathyError(f"'{out}' has no name of its own, which a folder needs that is made anew; give one with -o.")
    client = hub()
    asked, source = revision or "main", f"'{repo}' at '{revision or 'main'}'"
    with saying(f"pull {source}"):
        first = Path(client.hf_hub_download(repo, MANIFEST, revision=asked))
        # The cache keeps files by commit: what is fetched next is of the same one, even if the branch moves on.
        commit = first.parent.name
        record = read_manifest_file(first)
        names = vouched_files(source, record)
        origin = Origin(repo, asked, commit, manifest_digest(first.parent))
        if _is_there(out, origin):
            return Pull(str(out), record["kind"], len(names), origin)
        paths = {name: client.hf_hub_download(repo, name, revision=commit) for name in names}
        _write(out, {**paths, MANIFEST: str(first)}, origin)
    return Pull(str(out), record["kind"], len(names), origin)


def _is_there(out: Path, origin: Origin) -> bool:
    """Whether the folder is this very one already.

    Raises:
        EmpathyError: it is something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if out.is_dir() and (out / MANIFEST).is_file():
        opened = open_folder(out)
        if opened.digest == origin.digest and not changed_files(out):
            _note(out, origin)
            return True
    raise EmpathyError(
        f"'{out}' is already there, and is something else. Choose another folder with -o, or remove it first."
    )


def _write(out: Path, paths: dict[str, Any], origin: Origin) -> None:
    with atomic_folder(out) as scratch:
        for name, path in paths.items():
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        if problems := changed_files(scratch):
            raise EmpathyError(
                f"what came from '{origin.repo}' is not what its manifest names: {'; '.join(problems)}. Nothing was kept; pull "
                "again, and if it stays so, tell its owner."
            )
        _note(scratch, origin)
        if out.is_dir():
            out.rmdir()  # it is empty


def _note(folder: Path, origin: Origin) -> None:
    write_atomic(folder / ORIGIN, pretty_json(asdict(origin)))
