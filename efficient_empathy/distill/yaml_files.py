"""YAML files of the user's or our own, read with errors that name them."""

from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from efficient_empathy.errors import EmpathyError


def read_yaml(source: Path | Traversable, what: str) -> Any:
    """The content of a YAML file.

    Args:
        source: the file.
        what: what it is and its name, for the errors.

    Raises:
        EmpathyError: it cannot be read, or is not YAML.
    """
    import yaml  # only where a file is read: --help stays fast

    try:
        return yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise EmpathyError(f"cannot read {what}: {error}.") from error
    except yaml.YAMLError as error:
        raise EmpathyError(f"{what} is not valid YAML: {error}") from error


def fields_of(
    value: Any, where: str, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> Mapping[Any, Any]:
    """A mapping that holds what it must and nothing that is unknown; without required fields, whatever it holds.

    Raises:
        EmpathyError: it is no mapping, lacks a field or has one that is unknown.
    """
    if not isinstance(value, Mapping):
        raise EmpathyError(f"{where} must be a mapping of names to values, not {type(value).__name__}.")
    if missing := [name for name in required if name not in value]:
        raise EmpathyError(f"{where} lacks {', '.join(missing)}.")
    if required and (unknown := [str(name) for name in value if name not in required + optional]):
        raise EmpathyError(
            f"{where} has unknown fields: {', '.join(unknown)}. Known: {', '.join(required + optional)}."
        )
    return value


def text_of(fields: Mapping[Any, Any], name: str) -> str:
    """A field that must be a text, its line breaks folded into blanks.

    Raises:
        EmpathyError: it is something else, or empty.
    """
    text = " ".join(str(fields[name]).split())
    if not isinstance(fields[name], str) or not text:
        raise EmpathyError(f"'{name}' must be a text that is not empty, not {fields[name]!r}.")
    return text
