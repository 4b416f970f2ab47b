"""``RowScorer``: rows of any format in, the new fields of each of their examples out; what all adapters share."""

import copy
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from efficient_empathy.dialogues import Dialogue, Example, Record, RowError, parse_row, record_examples
from efficient_empathy.dialogues.examples import EXAMPLE_MODES, ExampleMode
from efficient_empathy.dialogues.formats import GROUP_KEYS, PROMPT_KEYS, RESPONSE_KEYS
from efficient_empathy.dialogues.records import FIELD_PREFIX, check_dialogue
from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import canonical_json, sha256_bytes
from efficient_empathy.scorer.job import RatesExamples, Route, check_scorer
from efficient_empathy.scorer.rating import rated_scores

BadRows = Literal["keep", "drop", "raise"]
BAD_ROWS: tuple[str, ...] = get_args(BadRows)
REJECT = FIELD_PREFIX + "reject"
"""Why a row could not be read: the reasons of ``rejected/``; null where it could."""
_KEYS = frozenset(
    {"id", "turns", "messages", "conversations", "context", "instruction", "history", "system", "utterance"}
    | {*PROMPT_KEYS, *RESPONSE_KEYS, *GROUP_KEYS}
)
_left_behind: list[Any] = []
"""Scorers that a forked process inherited: were one to go, its session would wait for threads that the fork did not copy."""


@dataclass(frozen=True)
class RowOptions:
    """What becomes of rows, whatever they flow through."""

    policy: Route | None = None
    """Chooses the subset of each example, written to ``ee_subset``; None scores only."""
    keep: tuple[str, ...] = ()
    """Subsets of the policy that are let through; none named lets all through."""
    examples: ExampleMode = "every-turn"
    """Which examples a conversation gives, each a row of its own; a row that is itself one example is one, whatever this says."""
    bad_rows: BadRows = "keep"
    """A row that cannot be read: ``keep`` lets it through with null scores and the reason in ``ee_reject``, ``drop`` leaves it out
    (``RowScorer.dropped`` counts by reason), ``raise`` stops."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", (self.keep,) if isinstance(self.keep, str) else tuple(self.keep))
        if self.examples not in EXAMPLE_MODES:
            raise EmpathyError(f"examples must be one of {', '.join(EXAMPLE_MODES)}, not '{self.examples}'.")
        if self.bad_rows not in BAD_ROWS:
            raise EmpathyError(f"bad_rows must be one of {', '.join(BAD_ROWS)}, not '{self.bad_rows}'.")
        subsets = self.policy.subsets if self.policy is not None else ()
        if missing := [name for name in self.keep if name not in subsets]:
            raise EmpathyError(
                f"keep names '{missing[0]}', but the policy's subsets are: {', '.join(subsets) or '(there is no policy)'}."
            )


@dataclass(frozen=True)
class Rated:
    """The examples of some rows with their new fields, column by column."""

    rows: list[int]
    """Place of each example's row among those that came in; a conversation's place stands once an example."""
    columns: dict[str, list[Any]]
    """``ee_id``, ``ee_turn``, one column a dimension, ``ee_subset`` with a policy, ``ee_tier`` of a cascade, ``ee_reject``; each
    as long as ``rows``."""

    def merged(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows that came in plus the new fields; fields of an earlier run are left out."""
        found = []
        for place, *values in zip(self.rows, *self.columns.values(), strict=True):
            own = {key: value for key, value in rows[place].items() if not str(key).startswith(FIELD_PREFIX)}
            found.append({**own, **dict(zip(self.columns, values, strict=True))})
        return found


class RowScorer:
    """Scores rows in any process: pickled or forked, it opens a session of its own where it is first used.

    In the process that made it, the scorer it was given is used as it is. In a worker of a data loader or of a pool a copy with one
    thread is, unless the scorer was loaded with a number of threads.
    """

    def __init__(self, scorer: RatesExamples, options: RowOptions | None = None):
        self.options = options or RowOptions()
        check_scorer(scorer, self.options.policy)
        self._given = scorer
        self._start()

    def _start(self) -> None:
        self._home = os.getpid()
        self._own: RatesExamples | None = None
        self.dropped: dict[str, int] = {}
        """Rows that were left out as bad, by reason, in this process."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the scores."""
        return self._given.dimensions

    @property
    def columns(self) -> dict[str, str]:
        """The new columns and what they hold: ``string``, ``int`` or ``float``."""
        scores = {FIELD_PREFIX + name: "float" for name in self.dimensions}
        found = {FIELD_PREFIX + "id": "string", FIELD_PREFIX + "turn": "int", **scores}
        if self.options.policy is not None:
            found[FIELD_PREFIX + "subset"] = "string"
        if getattr(self._given, "cascade", None) is not None:
            found[FIELD_PREFIX + "tier"] = "string"
        return {**found, REJECT: "string"}

    def rate(self, rows: Sequence[Mapping[str, Any]]) -> Rated:
        """Score every example of some rows, and leave out what ``keep`` and ``bad_rows`` leave out.

        Raises:
            EmpathyError: a row cannot be read and ``bad_rows`` is ``raise``, or the scorer gave what is no score.
        """
        places, examples, faults = self._read(rows)
        scores, tiers = rated_scores(self._scorer(), examples, lambda index: f"row {places[index]} of this batch")
        policy, dimensions = self.options.policy, self.dimensions
        subsets: list[str | None] = [None] * len(examples)
        by: list[str | None] = [*tiers] if tiers else [None] * len(examples)
        if policy is not None and examples:
            subsets = [policy.subsets[index] for index in policy.decide(scores, dimensions).tolist()]
        keep = self.options.keep
        kept: list[tuple[int, tuple[Any, ...]]] = [
            (place, (example.id, example.turn, *row, subset, tier, None))
            for place, example, row, subset, tier in zip(places, examples, scores.tolist(), subsets, by, strict=True)
            if not keep or subset in keep
        ]
        nothing = (None,) * (len(dimensions) + 4)
        kept += [(place, (*nothing, reason)) for place, reason in faults]
        kept.sort(key=lambda found: found[0])
        names = [FIELD_PREFIX + name for name in ("id", "turn", *dimensions, "subset", "tier", "reject")]
        values = zip(*(fields for _, fields in kept), strict=True) if kept else ([] for _ in names)
        columns = {name: list(column) for name, column in zip(names, values, strict=True)}
        return Rated([place for place, _ in kept], {name: columns[name] for name in self.columns})

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[Example], list[tuple[int, str]]]:
        """Examples with the places of their rows, and the bad rows that go on with their reasons."""
        places, examples, faults = [], [], []
        for place, row in enumerate(rows):
            try:
                found = row_examples(row, self.options.examples)
            except RowError as error:
                if self.options.bad_rows == "raise":
                    raise EmpathyError(
                        f"row {place} of this batch: {error}. Mend it, or choose bad_rows='keep' or 'drop'."
                    ) from error
                if self.options.bad_rows == "keep":
                    faults.append((place, error.reason))
                else:
                    self.dropped[error.reason] = self.dropped.get(error.reason, 0) + 1
                continue
            places += [place] * len(found)
            examples += found
        return places, examples, faults

    def _scorer(self) -> RatesExamples:
        if self._own is not None and self._home == os.getpid():
            return self._own
        if self._home != os.getpid():
            _left_behind.extend((self._given, self._own))
            self._given = copy.deepcopy(self._given)  # without the session
            self._start()
        self._own = self._given
        if in_worker() and hasattr(self._given, "with_threads"):
            threads = getattr(self._given, "threads", None) or _threads_of_worker()
            # The tokenizer's own threads would compete with the neighbours'; it reads this when it is first used.
            os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
            self._own = self._given.with_threads(threads)
        return self._own

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options, "_given": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def row_examples(row: Any, mode: ExampleMode = "every-turn") -> list[Example]:
    """The examples of one row of any format; a row without an id is named after its text.

    Raises:
        RowError: the row holds no example that can be read.
    """
    if not isinstance(row, Mapping):
        raise RowError("not-an-object", f"a row must be columns by name, not {type(row).__name__}")
    row = {key: _plain(value) for key, value in row.items() if is_read(key)} | {
        key: None for key in row if not is_read(key)
    }
    dialogue = parse_row(row, "")
    check_dialogue(row, dialogue)
    if not _is_unicode(dialogue):
        raise RowError("invalid-utf8", "a text holds half of a surrogate pair")
    if not dialogue.id:
        dialogue = replace(dialogue, id=_text_id(dialogue))
    return record_examples(Record(row, dialogue, "", 0, None), mode)


def _is_unicode(dialogue: Dialogue) -> bool:
    try:
        for text in (dialogue.id, dialogue.group or "", *(turn.text for turn in dialogue.turns)):
            text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_read(key: Any) -> bool:
    """Whether a column of this name may be looked at; all others pass untouched, and need not be decoded."""
    return isinstance(key, str) and (key in _KEYS or key in (FIELD_PREFIX + "turn", FIELD_PREFIX + "id"))


def in_worker() -> bool:
    """Whether this process is one of several that share the cores: of a pool, of a data loader, or a rank."""
    # datasets and datatrove start theirs with the second
    modules = [sys.modules[name] for name in ("multiprocessing", "multiprocess") if name in sys.modules]
    return _local_ranks() > 1 or any(module.parent_process() is not None for module in modules)


def _threads_of_worker() -> int:
    ranks_alone = multiprocessing.parent_process() is None and _local_ranks() > 1
    return max(1, usable_cores() // _local_ranks()) if ranks_alone else 1


def _local_ranks() -> int:
    """Ranks on this machine, as launchers of distributed runs say it."""
    value = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(value) if value.isdigit() and value != "0" else 1


def _text_id(dialogue: Dialogue) -> str:
    turns = [[turn.role, turn.text] for turn in dialogue.turns]
    return f"text:{sha256_bytes(canonical_json(turns))[:16]}"


def _plain(value: Any) -> Any:
    """A cell as Python's own types: NumPy's arrays and numbers, as data frames hold them, become lists and numbers."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float) and value != value:
        return None  # what is missing in a data frame is NaN
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
