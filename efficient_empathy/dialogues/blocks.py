"""Bytes of a file in bounded pieces: ranges, compression, lines."""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"
_SHOWN_BYTES = 4096
_ZSTD_FAULT = re.compile("zstd|truncated|corrupt", re.IGNORECASE)


class DamagedFileError(Exception):
    """A file's content ends early or does not unpack; what came before has been given out."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep the reason, ``truncated-file`` or ``damaged-file``, and the detail."""
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class CutLine(bytes):
    """The beginning of a line that is too long to be read."""


def read_range(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    """The bytes of a file from start up to stop, in blocks."""
    file.seek(start)
    left = stop - start
    while left > 0 and (block := file.read(min(BLOCK_BYTES, left))):
        left -= len(block)
        yield block


def unpack(file: BinaryIO, packed: str) -> Iterator[bytes]:
    """The content of a file in blocks, uncompressed.

    Args:
        file: the file, at its beginning.
        packed: ``gz``, ``zst`` or ``""``.

    Raises:
        DamagedFileError: the file ends early or is corrupt; all that could be unpacked has been given out before.
    """
    if packed == "gz":
        yield from _gunzip(file)
    elif packed == "zst":
        yield from _unzstd(file)
    else:
        while block := file.read(BLOCK_BYTES):
            yield block


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as unpacked:
        while True:
            try:
                block = unpacked.read1(BLOCK_BYTES)  # one step at a time: what a later error would take is out already
            except EOFError:
                raise DamagedFileError(
                    "truncated-file", "the compressed file ends early; fetch or write it again"
                ) from None
            except (gzip.BadGzipFile, zlib.error) as error:
                raise DamagedFileError("damaged-file", f"the file does not unpack from here on: {error}") from error
            if not block:
                return
            yield block


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    import pyarrow as pa

    if not file.read(1):
        return
    file.seek(0)
    with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as unpacked:
        while True:
            try:
                block = unpacked.read(BLOCK_BYTES >> 4)
            except OSError as error:
                if error.errno is not None or not _ZSTD_FAULT.search(str(error)):
                    raise
                reason = "truncated-file" if "truncated" in str(error).lower() else "damaged-file"
                raise DamagedFileError(reason, f"the file does not unpack from here on: {error}") from error
            if not block:
                return
            yield block


def without_bom(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks without the byte-order mark that some editors write at the beginning of a file."""
    first = True
    for block in blocks:
        yield block.removeprefix(_BOM) if first else block
        first = False


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines in some blocks, without the line feed; a line over ``MAX_LINE_BYTES`` comes as a ``CutLine``."""
    pieces: list[bytes] = []
    held = 0
    for block in blocks:
        lines = block.split(b"\n")
        held += len(lines[0])
        if held > MAX_LINE_BYTES:
            pieces = [_head(pieces, lines[0])]
        else:
            pieces.append(lines[0])
        if len(lines) == 1:
            continue
        yield _joined(pieces, held)
        yield from lines[1:-1]
        pieces, held = [lines[-1]], len(lines[-1])
    if held:
        yield _joined(pieces, held)


def _head(pieces: list[bytes], more: bytes) -> bytes:
    return (pieces[0] if pieces and pieces[0] else more)[:_SHOWN_BYTES]


def _joined(pieces: list[bytes], held: int) -> bytes:
    return CutLine(pieces[0][:_SHOWN_BYTES]) if held > MAX_LINE_BYTES else b"".join(pieces)
