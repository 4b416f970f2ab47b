"""One unit's rated examples as files: written under a temporary name, renamed when the unit is complete."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.chunks import Chunk

_BYTES_A_WRITE = 1 << 18
"""Written and hashed at once: calls for each line cost more than its bytes."""


class Part(Protocol):
    """A file that one unit adds to one subset."""

    def add(self, chunk: Chunk, places: Sequence[int]) -> None:
        """Append some examples of a chunk: the rows that came in, with new fields."""

    def finish(self, final: Path) -> dict[str, Any] | None:
        """Close, flush and rename; returns file name, bytes and SHA-256, or None when nothing was added."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write into a sentence: a full disk, a folder without permission.

    Raises:
        EmpathyError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise EmpathyError(
            f"cannot write to '{folder}': {error.strerror or error}. Mend that and run the same command again."
        ) from error


class JsonlPart:
    """Rows as JSON lines; also used, with ``write``, for lines that are ready."""

    def __init__(self, temporary: Path) -> None:
        self._path = temporary
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._lines: list[bytes] = []
        self._waiting = 0

    def add(self, chunk: Chunk, places: Sequence[int]) -> None:
        """Append some examples of a chunk."""
        for line in chunk.lines(places):
            self.write(line)

    def write(self, line: bytes) -> None:
        """Append one line, given without its line end."""
        self._lines.append(line)
        self._waiting += len(line)
        if self._waiting >= _BYTES_A_WRITE:
            self._flush()

    def finish(self, final: Path) -> dict[str, Any] | None:
        """Close, flush and rename; None when nothing was added."""
        self._flush()
        if self._file is None:
            return None
        with writing(final.parent):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            final.parent.mkdir(exist_ok=True)
            os.replace(self._path, final)
        return {"file": f"{final.parent.name}/{final.name}", "bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def _flush(self) -> None:
        if not self._lines:
            return
        self._lines.append(b"")  # the last line has its end, too
        block = b"\n".join(self._lines)
        self._lines.clear()
        self._waiting = 0
        with writing(self._path.parent):
            if self._file is None:
                self._file = open(self._path, "wb")  # noqa: SIM115 - closed by finish
            self._file.write(block)
        self._digest.update(block)
        self._bytes += len(block)
