"""Label files: one judged example a line, and how they are joined to the dialogues that they are about."""

import codecs
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from efficient_empathy.dialogues import Record, RowError, parse_row, record_examples
from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.rubric import Dimension, Rubric
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import read_manifest_file, sha256_file, write_atomic

LABELS = "labels"
"""The kind of a label file's manifest."""
_TABLE = ".parquet"
_OTHERWISE_READ = (_TABLE, ".gz", ".bz2", ".lz4", ".zst")
"""Endings by which ``load_labelled`` takes a file for a table, or for packed."""


@dataclass(frozen=True)
class Labelled:
    """Examples and what a judge made of them."""

    examples: list[Example]
    """In the order of the label file."""
    scores: np.ndarray
    """float32 (n, d): one row an example, one column a dimension of the rubric."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Rows of the label file that gave no example, by reason: ``unscored``, ``not-in-dialogues``, or
    ``same-text-again`` where an earlier row is about the same text."""


def check_label_name(path: Path) -> None:
    """Raise EmpathyError for a label file's name whose ending says that it is no plain JSONL, which is what is written."""
    if path.suffix in _OTHERWISE_READ:
        plain = path.with_suffix("") if path.suffix != _TABLE else path.with_suffix(".jsonl")
        raise EmpathyError(f"-o '{path}': labels are written as plain JSONL, not as {path.suffix}; name it '{plain}'.")


def write_labels(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a label file (plain JSONL): the whole of it or, if something goes wrong, nothing.

    Raises:
        EmpathyError: as ``check_label_name``, or the file cannot be written.
    """
    check_label_name(path)
    write_atomic(path, label_lines(rows))


def label_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The bytes of a label file."""
    return b"".join(orjson.dumps(dict(row), option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def beside(labels: Path, ending: str) -> Path:
    """What belongs to a label file stands beside it: ``labels.jsonl`` has ``labels`` and the ending.

    Raises:
        EmpathyError: the path names no file.
    """
    if not labels.name:
        raise EmpathyError(f"'{labels}' names no file; give the name of a label file.")
    return labels.with_name((labels.name.removesuffix(".jsonl") or labels.name) + ending)


def label_manifest(labels: Path) -> Path:
    """The manifest of a label file, which says who judged and from what."""
    return beside(labels, ".manifest.json")


def check_labels(path: Path) -> str | None:
    """See that a label file is as ``label`` wrote it, where its manifest stands beside it.

    Returns:
        The SHA-256 that the manifest names; None where there is none for this file.

    Raises:
        EmpathyError: the labels or their manifest have changed.
    """
    record = label_manifest(path)
    if not record.is_file():
        return None
    expected = read_manifest_file(record)["files"].get(path.name)
    if expected is not None and sha256_file(path) != expected:
        raise EmpathyError(
            f"'{path}' has changed since its labels were written: '{record.name}' beside it names another SHA-256. Copy it again; "
            "or, if the labels were meant to be edited, remove that manifest, which no longer speaks of them."
        )
    return expected


def load_labelled(labels_path: Path | str, dialogues: Iterable[Example] | None, rubric: Rubric) -> Labelled:
    """Read labels and join them to their examples.

    A label belongs to the example with its ``digest`` or, where it has none, to the example with its ``id``; a row that
    finds no example and itself holds a dialogue is example and label in one.

    Args:
        labels_path: JSONL, also compressed (.gz, .zst), or Parquet.
        dialogues: the examples that the labels may be about, read once; None when every row holds its own dialogue.
        rubric: names the score fields and their scales.

    Raises:
        EmpathyError: the file is not as its manifest has it; a row has no score for a dimension or one off its scale, was
            judged by another rubric, names an example by an id that several have, or no row could be joined.
    """
    path = Path(labels_path)
    check_labels(path)
    rows = list(_read_rows(path))
    if not rows:
        raise EmpathyError(f"'{path}' holds no labels.")
    by_digest, by_id, ambiguous = _wanted(rows, dialogues)
    seen: set[str] = set()
    examples: list[Example] = []
    scores: list[list[float]] = []
    skipped: Counter[str] = Counter()
    for line, row in rows:
        values = _scores(row, rubric, f"'{path}', line {line}")
        if values is None:
            skipped["unscored"] += 1
            continue
        # A digest that no example has means that the text has changed: the id alone would join it to other words.
        joined = by_digest.get(str(row["digest"])) if row.get("digest") else by_id.get(str(row.get("id")))
        if joined is not None and not row.get("digest") and joined.id in ambiguous:
            raise EmpathyError(
                f"'{path}', line {line}: different examples are called '{joined.id}'. Name only the files that the labels "
                "are about, or give each label the 'digest' of its example."
            )
        example = joined or _own_example(path, line, row)
        if example is None:
            skipped["not-in-dialogues"] += 1
            continue
        if example.digest in seen:
            skipped["same-text-again"] += 1
            continue
        seen.add(example.digest)
        examples.append(example)
        scores.append(values)
    if not examples:
        known = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise EmpathyError(
            f"none of the {len(rows)} labels in '{path}' could be used ({known}). Name the dialogues that they are "
            "about with --dialogues; labels are joined by 'digest', then by 'id'."
        )
    return Labelled(examples, np.asarray(scores, dtype=np.float32), dict(skipped))


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == _TABLE:
            batches = pq.ParquetFile(path).iter_batches()
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
            return
        # "detect" goes by the ending: .gz, .zst and others.
        with pa.input_stream(str(path), compression="detect") as stream:
            for line, text in enumerate(io.BufferedReader(stream), 1):
                text = text.removeprefix(codecs.BOM_UTF8) if line == 1 else text
                if text.strip():
                    yield line, _object(text, path, line)
    except (OSError, pa.ArrowException) as error:
        raise EmpathyError(f"cannot read the labels '{path}': {error}.") from error


def _object(text: bytes, path: Path, line: int) -> dict[str, Any]:
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise EmpathyError(f"'{path}', line {line} is not valid JSON: {error}.") from error
    if not isinstance(row, dict):
        raise EmpathyError(f"'{path}', line {line} must be a JSON object, not {type(row).__name__}.")
    return row


def _wanted(
    rows: list[tuple[int, dict[str, Any]]], dialogues: Iterable[Example] | None
) -> tuple[dict[str, Example], dict[str, Example], set[str]]:
    """Pick the examples that labels are about out of a stream, which may hold far more than memory does.

    Returns:
        Examples by digest, examples by id, and ids that stand for several texts.
    """
    digests = {str(row["digest"]) for _, row in rows if row.get("digest")}
    ids = {str(row["id"]) for _, row in rows if row.get("id") is not None}
    by_digest: dict[str, Example] = {}
    by_id: dict[str, Example] = {}
    ambiguous: set[str] = set()
    for example in dialogues or ():
        if example.id in ids and by_id.setdefault(example.id, example).digest != example.digest:
            ambiguous.add(example.id)
        if digests and example.digest in digests:
            by_digest.setdefault(example.digest, example)
    return by_digest, by_id, ambiguous


def _scores(row: Mapping[str, Any], rubric: Rubric, where: str) -> list[float] | None:
    judged_by = row.get("rubric")
    if isinstance(judged_by, str) and judged_by not in (rubric.digest, rubric.name):
        raise EmpathyError(
            f"{where} was judged by another rubric ({judged_by[:12]}…) than '{rubric.name}' ({rubric.digest[:12]}…). "
            "Name the rubric that was used with --rubric."
        )
    values = [row.get(dimension.name) for dimension in rubric.dimensions]
    if all(value is None for value in values) and all(dimension.name in row for dimension in rubric.dimensions):
        return None
    return [_score(value, d, where) for value, d in zip(values, rubric.dimensions, strict=True)]


def _score(value: Any, dimension: Dimension, where: str) -> float:
    number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    if not dimension.low <= number <= dimension.high:
        found = "is missing" if value is None else f"is {value!r}"
        raise EmpathyError(
            f"{where}: '{dimension.name}' {found}; it must be a number from {dimension.low} to {dimension.high}."
        )
    return number


def _own_example(path: Path, line: int, row: dict[str, Any]) -> Example | None:
    try:
        dialogue = parse_row(row, f"{path.name}:{line}")
        found = record_examples(Record(row, dialogue, str(path), line, None), "last-turn")
    except RowError:
        return None
    return found[-1] if found else None
