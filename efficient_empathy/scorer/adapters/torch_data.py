"""torch: rows that are scored, and filtered, on their way through a ``DataLoader``."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from efficient_empathy.dialogues.records import FIELD_PREFIX
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.adapters.rows import RowOptions, RowScorer
from efficient_empathy.scorer.job import RatesExamples

Row = Mapping[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sharding:
    """How rows are shared out, so that each is scored once."""

    rank: int | None = None
    """Place of this process among those that train together, from 0; None asks ``torch.distributed``, then ``RANK``."""
    world_size: int | None = None
    """How many these are; None as with ``rank``."""
    by_source: bool | None = None
    """True: the source gives each worker and rank its own rows already. False: it gives all rows to everyone, and every n-th is
    taken here. None knows for lists, map-style data sets and Hugging Face data sets, and what functions make of these or yield; it
    refuses to guess for others."""
    chunk: int = 1000
    """Rows that are scored at a time: more give less padding, fewer a first row sooner."""

    def __post_init__(self) -> None:
        if (self.rank is None) != (self.world_size is None):
            raise EmpathyError("rank and world_size belong together: give both, or neither.")
        if self.rank is not None and not 0 <= self.rank < (self.world_size or 0):
            raise EmpathyError(f"rank must be from 0 to world_size - 1, not {self.rank} of {self.world_size}.")
        if self.chunk < 1:
            raise EmpathyError(f"chunk must be at least 1, not {self.chunk}.")


class ScoredRows(IterableDataset):
    """Rows with their ``ee_`` fields, one an example, without those that a policy leaves out.

    Goes into a ``DataLoader`` with any number of workers, forked or spawned, on any number of ranks: together they give each row
    once. Each worker opens a session of its own, with one thread unless the scorer was loaded with a number of them.
    """

    def __init__(
        self,
        source: Iterable[Row] | Callable[[], Iterable[Row]] | Any,
        scorer: RatesExamples,
        options: RowOptions | None = None,
        sharding: Sharding | None = None,
    ):
        """Wrap a source.

        Args:
            source: a list, a map-style data set, an ``IterableDataset``, a Hugging Face data set, or a callable that returns an
                iterable anew for each pass.
            scorer: gives the scores.
            options: policy, what to keep, which examples, what becomes of bad rows.
            sharding: how rows are shared out.

        Raises:
            EmpathyError: the source can be passed over once only, or nothing says whether it shares its rows out.
        """
        super().__init__()
        if isinstance(source, Iterator):
            raise EmpathyError(
                "an iterator or generator can be passed over once only, and by one worker: give a function that makes it."
            )
        self._source, self._sharding = source, sharding or Sharding()
        self._rows = RowScorer(scorer, options)
        self._ranks: tuple[int, int] | None = None
        if self._sharding.by_source is None:
            _check_known(source)

    @property
    def dropped(self) -> dict[str, int]:
        """Bad rows that were left out in this process, by reason."""
        return self._rows.dropped

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for rows in _chunks(self._own_rows(), self._sharding.chunk):
            yield from self._rows.rate(rows).merged(rows)
        if self.dropped:
            _log.warning("bad rows left out so far in this process, by reason: %s", self.dropped)

    def _own_rows(self) -> Iterable[Row]:
        """The rows of this worker of this rank."""
        rank, ranks = self._place()
        worker = get_worker_info()
        at, of = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        source: Any = self._source() if callable(self._source) else self._source
        if self._sharding.by_source:
            return source
        if self._sharding.by_source is None:
            _check_known(source)  # of what a function makes nothing was known before
            if _is_hugging_face_stream(source):
                return _split(source, rank, ranks)  # which shares its rows out among the workers itself
        at, of = rank * of + at, ranks * of
        if _is_map_style(source):
            return self._rows_at(source, range(at, len(source), of))
        return itertools.islice(source, at, None, of)

    def _rows_at(self, source: Any, indices: Iterable[int]) -> Iterator[Row]:
        """Rows of a map-style source, fetched together where it can."""
        if not hasattr(source, "__getitems__"):
            yield from (source[index] for index in indices)
            return
        for some in _chunks(indices, self._sharding.chunk):
            yield from source.__getitems__(some)

    def _place(self) -> tuple[int, int]:
        """Rank, and number of ranks."""
        if self._sharding.rank is not None:
            return self._sharding.rank, cast(int, self._sharding.world_size)
        if self._ranks is not None:
            return self._ranks
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker belongs to no process group: it is told the rank of the process that starts it.
        started = torch.distributed.is_available() and torch.distributed.is_initialized()
        return {**self.__dict__, "_ranks": self._place() if started else self._ranks}


class ScoredBatches:
    """The batches of a ``DataLoader`` or of any other iterable, scored in the process that takes them.

    A batch is a list of rows, or columns by name; it comes out as the same kind, one row an example, and may have become empty.
    To score in the loader's workers instead, wrap its data set: see ``ScoredRows``.
    """

    def __init__(self, batches: Iterable[Any], scorer: RatesExamples, options: RowOptions | None = None):
        self._batches = batches
        self._rows = RowScorer(scorer, options)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            if not isinstance(batch, Mapping):
                yield self._rows.rate(batch).merged(batch)
                continue
            rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            found = self._rows.rate(rows).merged(rows)
            names = [*(name for name in batch if not name.startswith(FIELD_PREFIX)), *self._rows.columns]
            yield {name: [row[name] for row in found] for name in names}


def _check_known(source: Any) -> None:
    """Refuse a source that may share its rows out itself, or not."""
    if isinstance(source, IterableDataset) and not _is_hugging_face_stream(source):
        raise EmpathyError(
            f"does {type(source).__name__} give each worker and rank its own rows? Say Sharding(by_source=True) if it does, "
            "by_source=False if each gets all rows: a wrong guess would lose rows, or score them twice."
        )


def _is_map_style(source: Any) -> bool:
    return hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, IterableDataset)


def _is_hugging_face_stream(source: Any) -> bool:
    return any(kind.__module__ == "datasets.iterable_dataset" for kind in type(source).__mro__)


def _split(source: Any, rank: int, ranks: int) -> Any:
    if ranks == 1 or getattr(source, "_distributed", None) is not None:  # its owner has split it already
        return source
    from datasets.distributed import split_dataset_by_node

    return split_dataset_by_node(source, rank, ranks)


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Rows in lists of up to ``size``."""
    held: list[Any] = []
    for row in rows:
        held.append(row)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
