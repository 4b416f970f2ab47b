"""The type of ``-o``, which all commands that write share."""

import os
from pathlib import Path
from typing import Any

import click

from efficient_empathy.manifest import check_local


class OutputPath(click.Path):
    """A local path as ``pathlib.Path``; a URL is refused before any work."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            EmpathyError: it is a URL.
        """
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        check_local(path)
        return path
