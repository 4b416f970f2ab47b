"""Reading the rows that a filter or score run wrote, whatever their container."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from efficient_empathy.dialogues.formats import GROUP_KEYS
from efficient_empathy.errors import EmpathyError


def count_rows(path: Path) -> int:
    """Rows of a JSONL or Parquet file."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.ParquetFile(path).metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise EmpathyError(f"cannot read '{path}': {error}. Copy or write the folder again.") from error
    with _opened(path) as file:
        return sum(1 for _ in file)


def read_rows(path: Path, containing: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL or Parquet file with their numbers, from 1.

    Args:
        path: the file.
        containing: leave out rows whose JSON, or whose ids, cannot hold this text; it may be let through elsewhere.

    Raises:
        EmpathyError: the file cannot be read.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, containing)
        return
    # The id as JSON has it, since it may hold quotes or line ends.
    needles = {orjson.dumps(containing)[1:-1], containing.encode()} if containing is not None else {b""}
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            # Rows keep the bytes that they came in with: an id may be written there with \u escapes.
            if any(needle in line for needle in needles) or (containing is not None and b"\\u" in line):
                yield number, _object(path, number, line)


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise EmpathyError(f"cannot read '{path}': {error.strerror}. Check the folder with: ee-cli verify") from error


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise EmpathyError(
            f"'{path}', line {number} is not valid JSON ({error}); check it with: ee-cli verify"
        ) from error
    return row if isinstance(row, dict) else {}


def _parquet_rows(path: Path, containing: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1000):
            ids = [batch.column(name) for name in ("ee_id", "id", *GROUP_KEYS) if name in batch.schema.names]
            for index in range(len(batch)):
                number += 1
                if containing is None or any(containing in str(column[index].as_py()) for column in ids):
                    yield number, batch.slice(index, 1).to_pylist()[0]
    except (pa.ArrowException, OSError) as error:
        raise EmpathyError(f"cannot read '{path}': {error}. Check it with: ee-cli verify") from error
