"""Parquet and Arrow files: where they can be cut, and their rows."""

import contextlib
from collections.abc import Iterator
from typing import Any

from efficient_empathy.dialogues.blocks import DamagedFileError
from efficient_empathy.dialogues.files import open_file
from efficient_empathy.dialogues.paths import is_url, shown_path
from efficient_empathy.errors import EmpathyError

_BATCH_ROWS = 1024
_ARROW_FILE = b"ARROW1"

Cut = tuple[int, int, int]
"""First row group or batch, the one after the last, number of the first row from 1."""


def plan_row_groups(path: str, unit_bytes: int) -> Iterator[Cut]:
    """Cut a Parquet file between row groups."""
    with _parquet(path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    yield from _cuts(((group.num_rows, group.total_byte_size) for group in groups), unit_bytes)


def plan_batches(path: str, unit_bytes: int) -> Iterator[Cut]:
    """Cut an Arrow file (stream or file format) between record batches."""
    sizes = [(batch.num_rows, batch.nbytes) for batch in _arrow_batches(path)]
    yield from _cuts(iter(sizes), unit_bytes)


def read_row_groups(path: str, start: int, stop: int) -> Iterator[dict[str, Any] | Exception]:
    """The rows of some row groups; a row with text that is not UTF-8, or a date out of range, comes as the error.

    Where a row group does not unpack, each row of it that could not be read comes as a ``DamagedFileError``.
    """
    with _parquet(path) as file:
        for group in range(start, stop):  # each by itself: a damaged one takes no other with it
            yield from _row_group(file, group)


def _row_group(file: Any, group: int) -> Iterator[dict[str, Any] | Exception]:
    import pyarrow as pa

    batches, given = file.iter_batches(_BATCH_ROWS, row_groups=[group]), 0
    try:
        for batch in batches:
            yield from _rows(batch)
            given += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        if not _of_content(error):
            raise
        detail = f"the rest of row group {group} does not unpack: {str(error).strip()}"
        for _ in range(file.metadata.row_group(group).num_rows - given):
            yield DamagedFileError("damaged-file", detail)


def read_batches(path: str, start: int, stop: int) -> Iterator[dict[str, Any] | Exception]:
    """The rows of some record batches; errors as in ``read_row_groups``."""
    for index, batch in enumerate(_arrow_batches(path)):
        if index >= stop:
            return
        if index >= start:
            for at in range(0, batch.num_rows, _BATCH_ROWS):
                yield from _rows(batch.slice(at, _BATCH_ROWS))


def _cuts(sizes: Iterator[tuple[int, int]], unit_bytes: int) -> Iterator[Cut]:
    start = rows = held_rows = held_bytes = stop = 0
    for stop, (count, size) in enumerate(sizes, 1):
        held_rows += count
        held_bytes += size
        if held_bytes >= unit_bytes and held_rows:
            yield start, stop, rows + 1
            start, rows, held_rows, held_bytes = stop, rows + held_rows, 0, 0
    if held_rows:
        yield start, stop, rows + 1


@contextlib.contextmanager
def _parquet(path: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_file(path))
        try:
            # Buffered, not read ahead: a column of a large row group is never held whole.
            file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            if not _of_content(error):
                raise
            raise EmpathyError(f"'{shown_path(path)}' is not a Parquet file, or is damaged: {error}") from error
        yield file


def _arrow_batches(path: str) -> Iterator[Any]:
    import pyarrow as pa

    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_file(path))
        magic = file.read(len(_ARROW_FILE))
        if not magic:
            return
        file.seek(0)
        # A local file is mapped, so that batches which are passed over cost nothing.
        source = file if is_url(path) else stack.enter_context(pa.memory_map(path))
        try:
            if magic == _ARROW_FILE:
                reader = pa.ipc.open_file(source)
                yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                yield from pa.ipc.open_stream(source)
        except (pa.ArrowInvalid, OSError, EOFError) as error:
            if not _of_content(error):
                raise
            raise EmpathyError(f"'{shown_path(path)}' is not an Arrow file, or is damaged: {error}") from error


def _of_content(error: Exception) -> bool:
    """Whether the file is at fault: pyarrow then raises a plain OSError; a disk or a network raises something else."""
    return not isinstance(error, OSError) or (type(error) is OSError and error.errno is None)


def _rows(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    batch = _readable(batch)
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):  # text that is not UTF-8 is a ValueError
        pass  # to_pylist converts all rows first, so none has been given out
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield error


def _readable(batch: Any) -> Any:
    """The batch with nanosecond columns as text or whole numbers: Python's own types would lose the last digits."""
    import pyarrow as pa

    for index, field in enumerate(batch.schema):
        kind = field.type
        if getattr(kind, "unit", None) == "ns":
            target = pa.int64() if pa.types.is_duration(kind) else pa.string()
            batch = batch.set_column(index, field.name, batch.column(index).cast(target))
    return batch
