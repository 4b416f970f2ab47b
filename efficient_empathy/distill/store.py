"""Every answer that ever arrived, on disk the moment it does: what was paid for once is never asked again."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.distill.judges import Answer, Judge, Usage
from efficient_empathy.distill.questions import Criteria, Subject
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import canonical_json, sha256_bytes

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    example TEXT NOT NULL,
    rubric TEXT NOT NULL,
    judge TEXT NOT NULL,
    parameters TEXT NOT NULL,
    raw TEXT NOT NULL,
    scores TEXT,
    reason TEXT,
    form TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    usd REAL,
    time TEXT NOT NULL,
    PRIMARY KEY (key, attempt)
)
"""
_LOST_SCHEMA = """
CREATE TABLE IF NOT EXISTS lost (
    key TEXT NOT NULL,
    usd REAL,
    time TEXT NOT NULL
)
"""
"""Attempts whose answer never came; a store of before they were kept gets an empty table."""
_LOST_INDEX = "CREATE INDEX IF NOT EXISTS lost_by_key ON lost (key)"
_COLUMNS = "key, attempt, raw, scores, reason, form, prompt_tokens, completion_tokens, cached_tokens, usd, time"


@dataclass(frozen=True)
class StoredAnswer:
    """One answer as the store holds it."""

    key: str
    answer: Answer
    usd: float | None
    """What it cost in dollars; None when the price was not known."""
    time: str
    """When it arrived: UTC, ISO 8601, whole seconds."""


def answer_key(subject: Subject, criteria: Criteria[Any], judge: Judge) -> str:
    """The key of an answer: SHA-256 over subject and question, model and parameters, but not the server's address."""
    return sha256_bytes(canonical_json([subject.digest, criteria.digest, judge.name, dict(judge.parameters)]))


class LabelStore:
    """An SQLite file of answers; safe to use from several threads and to kill at any point."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            EmpathyError: the file cannot be written, or is not one of ours.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=60, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            # FULL: each answer is on the disk before the next question; a power cut costs none that was paid for.
            self._connection.execute("PRAGMA synchronous=FULL")
            for statement in (_SCHEMA, _LOST_SCHEMA, _LOST_INDEX):
                self._connection.execute(statement)
            self._connection.execute(f"SELECT {_COLUMNS} FROM answers LIMIT 0")  # noqa: S608 - a constant
        except (sqlite3.Error, OSError) as error:
            message = f"cannot use '{self.path}' as a label store: {error}. Choose another file with --store."
            raise EmpathyError(message) from error

    def put(
        self, subject: Subject, criteria: Criteria[Any], judge: Judge, answer: Answer, usd: float | None
    ) -> StoredAnswer:
        """Keep an answer; when this returns it is on the disk.

        An earlier answer to the same question stays beside it, since it was paid for too; the latest one counts.
        """
        key = answer_key(subject, criteria, judge)
        now = _now()
        usage = answer.usage
        values = (
            subject.digest,
            criteria.digest,
            judge.name,
            canonical_json(dict(judge.parameters)).decode(),
            # A lone surrogate cannot be stored as UTF-8.
            answer.raw.encode("utf-8", "replace").decode(),
            None if answer.scores is None else orjson.dumps(dict(answer.scores)).decode(),
            answer.reason,
            answer.form,
            usage.prompt,
            usage.completion,
            usage.cached,
            usd,
            now,
        )
        with self._lock, self._saying():
            self._connection.execute(
                "INSERT INTO answers SELECT ?, COALESCE(MAX(attempt), 0) + 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? "
                "FROM answers WHERE key = ?",
                (key, *values, key),
            )
        return StoredAnswer(key, answer, usd, now)

    def put_lost(self, key: str, usd: float | None) -> None:
        """Keep that an attempt was sent and its answer never came.

        Args:
            key: of the question.
            usd: what it may be billed at most, in dollars; None when the price is not known.
        """
        with self._lock, self._saying():
            self._connection.execute("INSERT INTO lost VALUES (?, ?, ?)", (key, usd, _now()))

    def lost(self, key: str) -> list[float | None]:
        """What each lost attempt at a question may be billed, as it was put; oldest first."""
        with self._lock, self._saying():
            rows = self._connection.execute("SELECT usd FROM lost WHERE key = ? ORDER BY rowid", (key,)).fetchall()
        return [usd for (usd,) in rows]

    def latest(self, key: str) -> StoredAnswer | None:
        """The answer that counts for a question, or None if none has arrived."""
        found = list(self.all_of(key))
        return found[-1] if found else None

    def all_of(self, key: str) -> Iterator[StoredAnswer]:
        """Every answer to a question, oldest first: their costs add up."""
        query = f"SELECT {_COLUMNS} FROM answers WHERE key = ? ORDER BY attempt"  # noqa: S608 - a constant
        with self._lock, self._saying():
            rows = self._connection.execute(query, (key,)).fetchall()
        for row in rows:
            yield _stored(row)

    @contextlib.contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise EmpathyError(
                f"the label store '{self.path}' cannot be used: {error}. What was answered before is kept in it; mend that and "
                "run the same command again."
            ) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "LabelStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _stored(row: tuple[Any, ...]) -> StoredAnswer:
    key, _, raw, scores, reason, form, prompt, completion, cached, usd, time = row
    parsed: Mapping[str, float] | None = None if scores is None else orjson.loads(scores)
    return StoredAnswer(key, Answer(raw, parsed, reason, Usage(prompt, completion, cached), form), usd, time)
