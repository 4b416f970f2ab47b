"""``push``: a folder to the Hub, as its manifest vouches for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.audit.files import check_files, open_folder
from efficient_empathy.errors import EmpathyError, require
from efficient_empathy.hub.client import check_names, hub, is_offline, saying, vouched_files
from efficient_empathy.manifest import MANIFEST, read_manifest_file

_MAIN = "main"


@dataclass(frozen=True)
class Push:
    """A folder that is to be pushed, or was."""

    folder: str
    kind: str
    repo: str
    revision: str
    digest: str
    """SHA-256 of the manifest."""
    files: dict[str, int]
    """Bytes of each file that goes there, the manifest among them."""
    left_here: list[str]
    """Files of the folder that its manifest does not vouch for: they stay."""
    commit: str | None = None
    """Hash of the commit; None where nothing was pushed."""
    url: str | None = None


def plan_push(folder: Path, repo: str, revision: str | None = None) -> Push:
    """What would be pushed, after a check of every file; the Hub is not asked.

    Raises:
        EmpathyError: the folder is of another kind, was changed, or the names have no form that the Hub knows.
    """
    check_names(repo, revision)
    opened = open_folder(folder)
    names = [*vouched_files(f"'{folder}'", opened.manifest), MANIFEST]
    found = check_files(opened)
    if found.changed:
        raise EmpathyError(f"'{folder}' is not as it was written: {'; '.join(found.changed)}. Nothing was pushed.")
    sizes = {name: (opened.root / name).stat().st_size for name in names}
    left = [*found.beside, *found.unknown]
    return Push(str(folder), opened.kind, repo, revision or _MAIN, opened.digest, sizes, left)


def push(folder: Path, repo: str, private: bool = False, revision: str | None = None) -> Push:
    """Put a scorer, an expert or a mixture on the Hub, in one commit.

    Files of an earlier push that are no longer part of the folder go; what else the repository holds stays. The token is
    that of ``HF_TOKEN`` or of the login.

    Args:
        folder: what to push.
        repo: ``owner/name``; it is made where it is not there.
        private: only its owner sees it; one that is there already must be so.
        revision: the branch, made where it is not there; None for ``main``.

    Raises:
        EmpathyError: as ``plan_push``; the repository is public where a private one was asked for; the Hub refuses, or cannot be
            reached.
    """
    plan = plan_push(folder, repo, revision)
    if is_offline():
        raise EmpathyError(f"cannot push to '{repo}': HF_HUB_OFFLINE is set. Unset it to reach the Hub.")
    client = hub()
    api = client.HfApi(library_name="efficient-empathy")
    with saying(f"push to '{repo}'"):
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:  # one that is there stays as it is
            raise EmpathyError(
                f"'{repo}' is there already and is public, but --private was asked for: nothing was pushed. Make it private in its "
                "settings on the Hub, choose another name, or push without --private."
            )
        if plan.revision != _MAIN:
            api.create_branch(repo, branch=plan.revision, exist_ok=True)
        operations: list[Any] = [client.CommitOperationAdd(name, str(Path(folder) / name)) for name in plan.files]
        operations += [client.CommitOperationDelete(name) for name in _stale(api, plan)]
        done = api.create_commit(
            repo,
            operations,
            commit_message=f"Push of a {plan.kind} by ee-cli, {plan.digest[:12]}",
            revision=plan.revision,
        )
    return Push(**{**plan.__dict__, "commit": done.oid, "url": done.commit_url})


def _stale(api: Any, plan: Push) -> list[str]:
    """Files that the manifest there vouches for and this one does not."""
    errors = require("huggingface_hub.errors", "hub", "pushing and pulling")
    try:
        path = api.hf_hub_download(plan.repo, MANIFEST, revision=plan.revision)
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
        return []
    try:
        vouched = read_manifest_file(Path(path))["files"].keys() - plan.files.keys()
    except EmpathyError:
        return []  # a manifest of something else: what it names is not ours to remove
    there = set(api.list_repo_files(plan.repo, revision=plan.revision))
    return sorted(vouched & there)
