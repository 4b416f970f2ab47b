"""One unit's rated examples as a Parquet table whose column types are found from the rows."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from efficient_empathy.dialogues.records import FIELD_PREFIX, row_json
from efficient_empathy.manifest import sha256_file
from efficient_empathy.scorer.chunks import Chunk
from efficient_empathy.scorer.outputs import writing

_ROWS_A_GROUP = 10_000
_BYTES_A_GROUP = 64 << 20


class ParquetPart:
    """Rows as a Parquet table, in row groups of up to 10,000 rows and about 64 MiB of what came in.

    A column whose values Arrow cannot hold in one type (5 here, "five" there) is written as JSON text, for the
    whole file.
    Rows wait in a spool of Arrow batches on disk until the types of all of them are known, so memory stays bounded.
    """

    def __init__(self, temporary: Path) -> None:
        self._path = temporary
        self._spool_path = temporary.with_name(temporary.name + ".spool")
        self._spool: BinaryIO | None = None
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._schemas: list[Any] = []

    def add(self, chunk: Chunk, places: Sequence[int]) -> None:
        """Append some examples of a chunk."""
        for place in places:
            self.append(*chunk.row(place))
            self._bytes += chunk.size(place)
            if self._bytes >= _BYTES_A_GROUP:
                self._flush()

    def append(self, row: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        """Append one row with new fields."""
        self._rows.append({**{k: v for k, v in row.items() if not k.startswith(FIELD_PREFIX)}, **fields})
        if len(self._rows) == _ROWS_A_GROUP:
            self._flush()

    def finish(self, final: Path) -> dict[str, Any] | None:
        """Write the table, flush and rename; None when nothing was added."""
        import pyarrow.parquet as pq

        self._flush()
        if self._spool is None:
            return None
        with writing(final.parent):
            self._spool.close()
            schema = self._fitting(_joint_schema(self._schemas))
            with pq.ParquetWriter(self._path, schema, compression="zstd") as writer:
                for table in self._batches():
                    writer.write_table(_as_schema(table, schema), row_group_size=_ROWS_A_GROUP)
            with open(self._path, "rb") as file:
                os.fsync(file.fileno())
            self._spool_path.unlink()
            final.parent.mkdir(exist_ok=True)
            os.replace(self._path, final)
        return {
            "file": f"{final.parent.name}/{final.name}",
            "bytes": final.stat().st_size,
            "sha256": sha256_file(final),
        }

    def _flush(self) -> None:
        if not self._rows:
            return
        import pyarrow as pa

        table = _batch_table(self._rows)
        with writing(self._path.parent):
            if self._spool is None:
                self._spool = open(self._spool_path, "wb")  # noqa: SIM115 - closed by finish
            # A stream of its own for each batch: their schemas may differ.
            with pa.ipc.new_stream(self._spool, table.schema) as stream:
                stream.write_table(table)
        self._schemas.append(table.schema)
        self._rows, self._bytes = [], 0

    def _fitting(self, schema: Any) -> Any:
        """The schema, with JSON text for a column whose joint type cannot hold all values: a number of 17 digits is no float."""
        import pyarrow as pa

        mixed = {field.name for field in schema for own in self._schemas if _differs(field, own)}
        for table in self._batches() if mixed else ():
            for name in sorted(mixed & set(table.column_names)):
                try:
                    pa.array(table.column(name).to_pylist(), schema.field(name).type)
                except (pa.ArrowException, OverflowError, ValueError, TypeError):
                    schema = schema.set(schema.get_field_index(name), _text_field(name))
                    mixed.remove(name)
        return schema

    def _batches(self) -> Iterator[Any]:
        import pyarrow as pa

        with open(self._spool_path, "rb") as file:
            for _ in self._schemas:
                yield pa.ipc.open_stream(file).read_all()


def _column(values: list[Any]) -> Any:
    """Values as an Arrow array of the type that fits them; None where none does."""
    import pyarrow as pa

    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return None
    return array if _storable(array.type) else None


def _storable(kind: Any) -> bool:
    """Parquet has no struct without fields."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.num_fields == 0:
        return False
    return all(_storable(kind.field(index).type) for index in range(kind.num_fields))


def _batch_table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    fields, columns = [], []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        column = _column(values)
        if column is None:
            column = _as_text(values)
            fields.append(_text_field(name))
        else:
            fields.append(pa.field(name, column.type))
        columns.append(column)
    return pa.table(columns, schema=pa.schema(fields))


def _joint_schema(schemas: list[Any]) -> Any:
    """The schema that holds all batches: each column's joint type, or JSON text where there is none."""
    import pyarrow as pa

    fields = []
    for name in dict.fromkeys(name for schema in schemas for name in schema.names):
        own = [schema.field(name) for schema in schemas if name in schema.names]
        try:
            joint = pa.unify_schemas([pa.schema([field]) for field in own], promote_options="permissive").field(0)
        except pa.ArrowException:
            joint = _text_field(name)
        fields.append(_text_field(name) if any(map(_is_text, own)) else joint)
    return pa.schema(fields)


def _differs(field: Any, schema: Any) -> bool:
    return not _is_text(field) and field.name in schema.names and schema.field(field.name).type != field.type


def _as_schema(table: Any, schema: Any) -> Any:
    import pyarrow as pa

    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        if _is_text(field):
            ready = _is_text(table.schema.field(field.name))
            columns.append(column if ready else _as_text(column.to_pylist()))
        else:
            columns.append(column if column.type == field.type else pa.array(column.to_pylist(), field.type))
    return pa.table(columns, schema=schema)


def _text_field(name: str) -> Any:
    """A column of JSON text, marked as such for whoever reads the file."""
    import pyarrow as pa

    return pa.field(name, pa.string(), metadata={"ee_encoding": "json"})


def _is_text(field: Any) -> bool:
    return (field.metadata or {}).get(b"ee_encoding") == b"json"


def _as_text(values: list[Any]) -> Any:
    import pyarrow as pa

    return pa.array([None if value is None else row_json(value).decode() for value in values], pa.string())
