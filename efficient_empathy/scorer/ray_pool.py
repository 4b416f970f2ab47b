"""The actors of a run on a Ray cluster: who is given what, and what happens when one is lost."""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from efficient_empathy.dialogues import Unit
from efficient_empathy.dialogues.paths import shown_path
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import versions
from efficient_empathy.scorer.job import VERSIONED
from efficient_empathy.scorer.ray_actor import FAILED, Answer, Task, UnitRater
from efficient_empathy.scorer.ray_options import RayOptions
from efficient_empathy.scorer.results import UnitResult

_TICK_SECONDS = 2.0
_TELL_AFTER_SECONDS = 20.0
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_log = logging.getLogger(__name__)


def amount(cpus: float, gpus: float) -> str:
    """CPUs and GPUs in words."""
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")


class _Rater:
    """The driver's end of one actor."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.host: str | None = None
        """Where it runs; None until it has started."""
        self.unit: Unit | None = None
        """What it rates."""


class Pool:
    """Actors that rate the units of one run."""

    def __init__(
        self,
        task: Task,
        options: RayOptions,
        units: Sequence[Unit],
        on_chunk: Callable[[Mapping[str, int]], None],
    ) -> None:
        import ray

        self._ray = ray
        self._task = ray.put(task)
        self._options = options
        self._needs = {"num_cpus": task.threads, "num_gpus": options.gpus}
        self._actor = ray.remote(
            **self._needs, concurrency_groups={"news": 1}, max_restarts=0, scheduling_strategy="SPREAD"
        )(UnitRater)
        self._waiting = list(reversed(units))
        self._on_chunk = on_chunk
        self._raters: list[_Rater] = []
        self._calls: dict[Any, tuple[_Rater, Callable[[_Rater, Any], Iterator[UnitResult]]]] = {}
        self._told: dict[int, Counter[str]] = {}
        self._losses: Counter[int] = Counter()
        self._failed_starts = 0

    def run(self, actors: int) -> Iterator[UnitResult]:
        """Start actors, rate every unit, and yield each result as it comes.

        Raises:
            EmpathyError: an actor raised it, a node lacks something, or actors were lost too often.
        """
        for _ in range(actors):
            self._add()
        idle_since, told = time.monotonic(), False
        while self._waiting or any(rater.unit for rater in self._raters):
            ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=_TICK_SECONDS)
            if ready:
                yield from self._take(ready[0])
            if any(rater.host for rater in self._raters):
                idle_since, told = time.monotonic(), False
                continue
            idle = time.monotonic() - idle_since
            if idle > self._options.start_seconds:
                raise EmpathyError(f"{self._no_room()} Free some and run the same command again.")
            if idle > _TELL_AFTER_SECONDS and not told:
                told = True
                _log.warning("%s Waiting for up to %d seconds.", self._no_room(), self._options.start_seconds)

    def close(self) -> None:
        """End every actor; what it has committed stays."""
        for rater in self._raters:
            self._ray.kill(rater.handle)
        self._raters, self._calls = [], {}

    def _add(self) -> None:
        rater = _Rater(self._actor.remote(self._task))
        self._raters.append(rater)
        self._calls[rater.handle.start.remote()] = rater, self._started

    def _take(self, call: Any) -> Iterator[UnitResult]:
        rater, then = self._calls.pop(call)
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(call)
        except errors.RayTaskError:
            raise  # a fault of the program: it is shown whole
        except errors.RayError as error:
            self._lost(rater, error)
            return
        yield from then(rater, answer)

    def _started(self, rater: _Rater, answer: Answer) -> Iterator[UnitResult]:
        facts = _checked(answer)
        check_versions(facts, self._options.gpus)
        rater.host = facts["host"]
        self._ask_news(rater)
        self._give(rater)
        yield from ()

    def _rated(self, rater: _Rater, answer: Answer) -> Iterator[UnitResult]:
        result, counts = _checked(answer)
        rater.unit = None
        self._on_chunk(counts)
        self._told.pop(result.unit["index"], None)
        self._give(rater)
        yield result

    def _heard(self, rater: _Rater, news: tuple[int, dict[str, int]]) -> Iterator[UnitResult]:
        index, counts = news
        if counts:
            if rater.unit is not None and rater.unit.index == index:
                self._told.setdefault(index, Counter()).update(counts)
            self._on_chunk(counts)
        if rater.unit is not None:
            self._ask_news(rater)
        yield from ()

    def _ask_news(self, rater: _Rater) -> None:
        self._calls[rater.handle.news.options(concurrency_group="news").remote()] = rater, self._heard

    def _give(self, rater: _Rater) -> None:
        if self._waiting:
            rater.unit = self._waiting.pop()
            self._calls[rater.handle.rate.remote(rater.unit)] = rater, self._rated

    def _lost(self, rater: _Rater, error: Exception) -> None:
        """Give the unit of a lost actor back, and start another actor in its place, which may be on another node."""
        self._raters.remove(rater)
        self._calls = {call: (other, then) for call, (other, then) in self._calls.items() if other is not rater}
        self._ray.kill(rater.handle)  # one that cannot be reached may still be there
        cause, unit = cause_of(error), rater.unit
        if rater.host is None:
            self._failed_starts += 1
            if self._failed_starts > self._options.retries:
                raise EmpathyError(
                    f"{self._failed_starts} actors were lost before they had started, the last because: {cause}. Every "
                    "node needs efficient-empathy with the same extras as here."
                )
        elif unit is not None:
            self._losses[unit.index] += 1
            self._on_chunk({subset: -count for subset, count in self._told.pop(unit.index, Counter()).items()})
            if self._losses[unit.index] > self._options.retries:
                raise EmpathyError(
                    f"{self._losses[unit.index]} actors were lost one after the other while they rated "
                    f"'{shown_path(unit.path)}' from row {unit.line} on, the last on node '{rater.host}': {cause}. What was "
                    "finished is kept: run the same command again to go on, with fewer --workers if memory is short."
                )
            self._waiting.append(unit)
            _log.warning(
                "An actor on node '%s' was lost (%s); the unit from row %d of '%s' is rated again.",
                rater.host,
                cause,
                unit.line,
                shown_path(unit.path),
            )
        if self._waiting:
            self._add()
        for other in self._raters:
            if other.host is not None and other.unit is None:  # it had run out of units
                self._ask_news(other)
                self._give(other)

    def _no_room(self) -> str:
        free = self._ray.available_resources()
        return (
            f"The cluster has started no actor yet: each needs {amount(*self._needs.values())}, free are "
            f"{amount(free.get('CPU', 0), free.get('GPU', 0))} in all."
        )


def check_versions(facts: Mapping[str, Any], gpus: float) -> None:
    """Refuse a node with other versions than here, which might write other bytes; on GPUs the runtime may be another package.

    Raises:
        EmpathyError: a version differs.
    """
    here, there = versions(*VERSIONED), facts["versions"]
    for name in sorted({*here, *there} - {"python", *(_RUNTIMES if gpus else ())}):
        if here.get(name) != there.get(name):
            raise EmpathyError(
                f"node '{facts['host']}' has {name} {there.get(name, 'not installed')}, here it is "
                f"{here.get(name, 'not installed')}: what they write might differ. Install the same everywhere."
            )


def _checked(answer: Answer) -> Any:
    kind, content = answer
    if kind == FAILED:
        raise EmpathyError(content)
    return content


def cause_of(error: Exception) -> str:
    """What Ray says of a lost actor, in a few words."""
    text = str(error)
    if found := re.findall(r"^\s*(\w*(?:Error|Exception): .+)$", text, re.MULTILINE):
        return found[-1].strip()
    said = [line.strip() for line in text.splitlines() if line[:1].strip() and not line.startswith(" ")]
    return " ".join(said)[:300].rstrip(". ") or type(error).__name__
