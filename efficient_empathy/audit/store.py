"""Label files against the store of the judge's answers that they were written from."""

import contextlib
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.audit.rows import read_rows


def store_problems(labels: Path, store: Path, names: list[str]) -> list[str]:
    """What is wrong with a store, and labels that no answer in it gave: one sentence each.

    Args:
        labels: the label file.
        store: the SQLite file of answers beside it.
        names: the dimensions of the rubric.
    """
    # A file that nothing is being written to is read as it is: the folder may be read-only.
    how = "mode=ro" if store.with_name(store.name + "-wal").exists() else "immutable=1"
    answers: dict[tuple[Any, Any], list[dict[str, float]]] = defaultdict(list)
    try:
        with contextlib.closing(sqlite3.connect(f"{store.absolute().as_uri()}?{how}", uri=True)) as connection:
            ((state,), *_) = connection.execute("PRAGMA integrity_check(1)").fetchall()
            if state != "ok":
                return [f"the store '{store.name}' is damaged: {' '.join(state.split())}"]
            query = "SELECT example, rubric, scores FROM answers WHERE scores IS NOT NULL"
            for example, rubric, scores in connection.execute(query):
                answers[example, rubric].append(orjson.loads(scores))
    except (sqlite3.Error, orjson.JSONDecodeError, UnicodeDecodeError) as error:
        return [f"the store '{store.name}' cannot be read: {error}"]
    strangers = sum(
        not any(all(row[name] == found[name] for name in names) for found in answers[row["digest"], row["rubric"]])
        for _, row in read_rows(labels)
    )
    return [f"{strangers} labels are not what the store '{store.name}' holds of them"] if strangers else []
