"""What the user can mend: shown as one sentence without a traceback, exit code 2."""

import importlib
from types import ModuleType


class EmpathyError(Exception):
    """Something the user can mend; the message says what was found, what was expected and what to do."""


class MissingExtraError(EmpathyError):
    """A package of an optional extra is not installed; the message holds the install line."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: dotted name of the module to import.
        extra: the extra of this package that installs it, e.g. ``distill``.
        purpose: what needs it, worded to follow "needed for".

    Raises:
        MissingExtraError: the module's own top-level package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != top:
            raise
        message = f"'{top}' is not installed; it is needed for {purpose}. Install it with: pip install 'efficient-empathy[{extra}]'"
        raise MissingExtraError(message) from error
