"""How far a run is: a moving line where people watch, now and then a plain one where they do not."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import orjson

PROGRESS = ("auto", "bar", "lines", "json", "none")
_LINE_EVERY_SECONDS = 30.0
_EVENT_EVERY_SECONDS = 1.0


class Progress(Protocol):
    """What the engine tells while it works."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""

    def start(self, weights: Mapping[int, float], done: Collection[int], counts: Mapping[str, int]) -> None:
        """Say what lies ahead: the weight of each unit by index, the units already done, their examples by subset."""

    def chunk(self, counts: Mapping[str, int]) -> None:
        """Say that more examples were written, by subset."""

    def unit_done(self, index: int) -> None:
        """Say that a unit is complete."""


class Quiet:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to stop."""

    def start(self, weights: Mapping[int, float], done: Collection[int], counts: Mapping[str, int]) -> None:
        """Show nothing."""

    def chunk(self, counts: Mapping[str, int]) -> None:
        """Show nothing."""

    def unit_done(self, index: int) -> None:
        """Show nothing."""


class _Counting:
    """Keeps the figures that both ways of showing need."""

    def __init__(self) -> None:
        self._weights: Mapping[int, float] = {}
        self._total = 1.0
        self._done: set[int] = set()
        self._done_before = self._done_weight = 0.0
        self._counts: Counter[str] = Counter()
        self._examples_before = 0
        self._began = time.monotonic()

    def start(self, weights: Mapping[int, float], done: Collection[int], counts: Mapping[str, int]) -> None:
        """Take what lies ahead, and begin to count."""
        self._weights, self._done, self._counts = weights, set(done), Counter(counts)
        self._total = sum(weights.values()) or 1.0
        self._done_before = self._done_weight = sum(weights[index] for index in done)
        self._examples_before = self._counts.total()
        self._began = time.monotonic()

    def chunk(self, counts: Mapping[str, int]) -> None:
        """Add examples."""
        self._counts.update(counts)

    def unit_done(self, index: int) -> None:
        """Add a unit."""
        self._done.add(index)
        self._done_weight += self._weights[index]

    def _share_done(self) -> float:
        return self._done_weight / self._total

    def _speed(self) -> float:
        """Examples a second, of this run alone."""
        seconds = time.monotonic() - self._began
        return (self._counts.total() - self._examples_before) / seconds if seconds > 0 else 0.0

    def _line(self) -> str:
        parts = [
            f"{len(self._done)}/{len(self._weights)} units",
            f"{self._counts.total():,} examples",
            f"{self._speed():,.0f}/s",
        ]
        if (left := self._seconds_left()) is not None:
            parts.append(f"{_duration(left)} left")
        if len(self._counts) > 1 and (total := self._counts.total()):
            parts.append(", ".join(f"{name} {100 * count / total:.0f} %" for name, count in self._counts.items()))
        return " · ".join(parts)

    def _seconds_left(self) -> float | None:
        seconds = time.monotonic() - self._began
        done = self._done_weight - self._done_before
        if done <= 0:
            return None  # no unit of this run is complete: there is nothing to go by
        return seconds * max(0.0, self._total - self._done_weight) / done


class PlainLines(_Counting):
    """A line at the start, every half minute and at the end, for logs."""

    def __init__(self, write: Callable[[str], None], every_seconds: float = _LINE_EVERY_SECONDS) -> None:
        super().__init__()
        self._write = write
        self._every = every_seconds
        self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write(self._line())

    def start(self, weights: Mapping[int, float], done: Collection[int], counts: Mapping[str, int]) -> None:
        """Say what lies ahead."""
        super().start(weights, done, counts)
        self._last = self._began
        self._write(f"rating {len(weights)} units" + (f", {len(self._done)} of them done before" if self._done else ""))

    def chunk(self, counts: Mapping[str, int]) -> None:
        """Add examples; say so if the last line is long ago."""
        super().chunk(counts)
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._write(self._line())


class JsonEvents(_Counting):
    """One JSON object a line, for machines: ``start``, ``progress`` now and then, ``done`` or ``stopped``.

    Each holds what is known at its time: ``units`` and ``units_done``, ``share_done`` (0 to 1), ``examples``,
    ``examples_per_second`` (of this run), ``seconds_left`` (null until a unit of this run is complete) and ``subsets``
    with the examples of each.
    """

    def __init__(self, write: Callable[[str], None], every_seconds: float = _EVENT_EVERY_SECONDS) -> None:
        super().__init__()
        self._write = write
        self._every = every_seconds
        self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell("done" if kind is None else "stopped")

    def start(self, weights: Mapping[int, float], done: Collection[int], counts: Mapping[str, int]) -> None:
        """Say what lies ahead."""
        super().start(weights, done, counts)
        self._tell("start")

    def chunk(self, counts: Mapping[str, int]) -> None:
        """Add examples; say so if the last event is long ago."""
        super().chunk(counts)
        if time.monotonic() - self._last >= self._every:
            self._tell("progress")

    def _tell(self, event: str) -> None:
        self._last = time.monotonic()
        left = self._seconds_left()
        facts = {
            "event": event,
            "units": len(self._weights),
            "units_done": len(self._done),
            "share_done": round(self._share_done(), 4),
            "examples": self._counts.total(),
            "examples_per_second": round(self._speed(), 1),
            "seconds_left": None if left is None else round(left, 1),
            "subsets": dict(self._counts),
        }
        self._write(orjson.dumps(facts).decode())


class LiveBar(_Counting):
    """A bar that moves, on a terminal's stderr."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
        self._task: Any = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, weights: Mapping[int, float], done: Collection[int], counts: Mapping[str, int]) -> None:
        """Show the bar."""
        super().start(weights, done, counts)
        self._task = self._bar.add_task(self._line(), total=1.0)
        self._bar.update(self._task, completed=self._share_done())

    def chunk(self, counts: Mapping[str, int]) -> None:
        """Add examples and show them."""
        super().chunk(counts)
        self._bar.update(self._task, description=self._line(), completed=self._share_done())

    def unit_done(self, index: int) -> None:
        """Add a unit and move the bar."""
        super().unit_done(index)
        self._bar.update(self._task, description=self._line(), completed=self._share_done())


def progress_for(write: Callable[[str], None], kind: str = "auto") -> Progress:
    """How progress is shown.

    Args:
        write: takes one line for stderr.
        kind: ``bar``, ``lines``, ``json``, ``none``, or ``auto``: a bar if stderr is a terminal, else nothing.
    """
    if kind == "auto":
        kind = "bar" if sys.stderr.isatty() else "none"
    if kind == "bar":
        return LiveBar()
    if kind == "lines":
        return PlainLines(write)
    return JsonEvents(write) if kind == "json" else Quiet()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
