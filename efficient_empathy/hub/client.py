"""The Hub's client, as every command here uses it, and what it raises as one sentence."""

import contextlib
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from efficient_empathy.errors import EmpathyError, require

KINDS = ("scorer", "expert", "mixture")
"""What is passed on; data is not, since whose it is nobody here knows."""
_SUFFIXES = (".json", ".md", ".onnx", ".safetensors", ".csv")
"""What these folders hold; nothing in them can run code when it is loaded."""
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w][\w./-]{0,199}")


def hub() -> ModuleType:
    """``huggingface_hub``.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("huggingface_hub", "hub", "pushing and pulling")


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` is set."""
    return bool(require("huggingface_hub.constants", "hub", "pushing and pulling").HF_HUB_OFFLINE)


def check_names(repo: str, revision: str | None) -> None:
    """See that a repository and a revision have a form that the Hub knows.

    Raises:
        EmpathyError: one has not.
    """
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise EmpathyError(f"'{repo}' names no repository of the Hub; write OWNER/NAME, e.g. me/my-scorer.")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise EmpathyError(f"'{revision}' is no revision; give a branch, a tag or a commit hash.")


def vouched_files(source: str, record: dict[str, Any]) -> list[str]:
    """The files that a manifest vouches for, after a look at what they are.

    Raises:
        EmpathyError: the manifest is of another kind, or names a file that has no place in such a folder.
    """
    if record["kind"] not in KINDS:
        raise EmpathyError(
            f"{source} is a folder of kind '{record['kind']}'; only {', '.join(KINDS)} go to the Hub and back."
        )
    for name in record["files"]:
        parts = name.split("/")
        if "\\" in name or ":" in name or any(part in ("", ".", "..") or part.startswith(".") for part in parts):
            raise EmpathyError(
                f"the manifest of {source} names '{name}', which lies outside of its folder: do not use it."
            )
        if not name.endswith(_SUFFIXES):
            raise EmpathyError(
                f"the manifest of {source} names '{name}'; such a folder holds only {', '.join(_SUFFIXES)}: do not use it."
            )
    return list(record["files"])


@contextlib.contextmanager
def saying(doing: str) -> Iterator[None]:
    """Turn what the client raises into a sentence; it never holds a token.

    Args:
        doing: worded to follow "cannot", e.g. ``pull 'me/scorer'``.

    Raises:
        EmpathyError: the block failed.
    """
    errors = require("huggingface_hub.errors", "hub", "pushing and pulling")
    requests = require("requests", "hub", "pushing and pulling")
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise EmpathyError(f"cannot {doing}: HF_HUB_OFFLINE is set. Unset it to reach the Hub.") from error
    except errors.LocalEntryNotFoundError as error:
        where = "HF_HUB_OFFLINE is set, and it is not in the cache" if is_offline() else "the Hub cannot be reached"
        raise EmpathyError(f"cannot {doing}: {where}. Try again with a connection.") from error
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise EmpathyError(
            f"cannot {doing}: there is no such repository, or this login may not use it. Check the name; log in "
            "with: hf auth login, or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EmpathyError(
            f"cannot {doing}: there is no such revision. Give a branch, a tag or a commit hash."
        ) from error
    except errors.EntryNotFoundError as error:
        raise EmpathyError(
            f"cannot {doing}: a file is not there that a folder of ee-cli has ({_status(error)})."
        ) from error
    except errors.HfHubHTTPError as error:
        login = " Log in with: hf auth login, or set HF_TOKEN." if _status(error).startswith(("401", "403")) else ""
        raise EmpathyError(f"cannot {doing}: the Hub answered {_status(error)}.{login}") from error
    except (requests.exceptions.RequestException, errors.HFValidationError) as error:
        raise EmpathyError(
            f"cannot {doing}: {type(error).__name__}. Check the name, the connection and HF_ENDPOINT."
        ) from error
    except _transfer_errors(errors) as error:  # hf_xet raises plain ones where a transfer breaks off
        raise EmpathyError(f"cannot {doing}: the transfer broke off ({type(error).__name__}). Try again.") from error
    except OSError as error:  # a full disk, a cache that cannot be written to
        raise EmpathyError(f"cannot {doing}: {error.strerror or error}. Mend that and try again.") from error


def _transfer_errors(errors: Any) -> tuple[type[Exception], ...]:
    """What comes of transfers over Xet: plain errors, and the client's own where it has them."""
    own = (getattr(errors, name, None) for name in ("XetError", "XetDownloadError"))
    return (RuntimeError, *(kind for kind in own if kind is not None))


def _status(error: Any) -> str:
    response = getattr(error, "response", None)
    return "nothing" if response is None else f"{response.status_code} {response.reason}"
