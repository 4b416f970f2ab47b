"""What runs on the nodes of a Ray cluster: an actor that rates units."""

import os
import platform
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.dialogues import Unit
from efficient_empathy.dialogues.files import open_file, reading
from efficient_empathy.dialogues.paths import is_url
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import versions
from efficient_empathy.scorer import runfolder
from efficient_empathy.scorer.job import VERSIONED, Job, RatesExamples, Route
from efficient_empathy.scorer.rating import rate_unit
from efficient_empathy.scorer.ray_scorer import ShippedScorer

DONE, FAILED = "done", "failed"
_NEWS_SECONDS = 0.5
_LOOK_SECONDS = 10.0
"""How long a new file may take to be seen through a network file system."""

Answer = tuple[str, Any]
"""``DONE`` with what was asked for, or ``FAILED`` with a message for the user."""


@dataclass(frozen=True)
class Task:
    """What an actor is told of the run."""

    job: Job
    route: Route | None
    scorer: ShippedScorer | RatesExamples
    threads: int
    """Threads that compute."""
    run: str
    """Name of a file among the run's unfinished ones: gone once the run has ended or another has begun."""
    folder: str | None
    """Working directory of the run, where inputs or output are named relative to it."""
    first_input: str
    sizes: Mapping[str, int]
    """Bytes of each input that is a local file."""


class UnitRater:
    """Rates one unit at a time in a process of its own, anywhere in the cluster."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._scorer: Any = None
        self._unit = -1
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def start(self) -> Answer:
        """See that this node has what it takes, and open the scorer; the answer tells its name and versions."""
        try:
            self._start()
        except EmpathyError as error:
            return FAILED, f"on node '{platform.node()}': {error}"
        return DONE, {"host": platform.node(), "pid": os.getpid(), "versions": versions(*VERSIONED)}

    def rate(self, unit: Unit) -> Answer:
        """Rate a unit and commit it; the answer is its ``UnitResult`` and counts that ``news`` has not told."""
        task = self._task
        self._unit = unit.index
        try:
            if not self._run_file().exists():
                return FAILED, f"the run in '{task.job.out}' has ended, or another has begun."
            self._check_size(unit)
            result = rate_unit(task.job, unit, self._scorer, task.route, self._count)
        except EmpathyError as error:
            return FAILED, str(error)
        with self._lock:
            return DONE, (result, self._take_counts())

    def news(self) -> tuple[int, dict[str, int]]:
        """Index of the unit and the examples of each subset written since the last call, after a short wait."""
        time.sleep(_NEWS_SECONDS)
        with self._lock:
            return self._unit, self._take_counts()

    def _count(self, counts: Mapping[str, int]) -> None:
        with self._lock:
            self._counts.update(counts)

    def _take_counts(self) -> dict[str, int]:
        counts, self._counts = dict(self._counts), Counter()
        return counts

    def _start(self) -> None:
        task = self._task
        if task.folder is not None:
            try:
                os.chdir(task.folder)
            except OSError:
                raise EmpathyError(
                    f"there is no folder '{task.folder}', from where inputs or output are named; name them by paths "
                    "that every node sees, from the root on."
                ) from None
        self._check_out()
        with reading(task.first_input), open_file(task.first_input) as file:
            file.read(1)
        # The tokenizer's own threads would compete with the neighbours'; it reads this when it is first used.
        os.environ["RAYON_NUM_THREADS"] = str(task.threads)
        self._scorer = task.scorer.open() if isinstance(task.scorer, ShippedScorer) else task.scorer

    def _run_file(self) -> Path:
        return runfolder.temporary_folder(self._task.job.out) / self._task.run

    def _check_out(self) -> None:
        out, run_file = self._task.job.out, self._run_file()
        end = time.monotonic() + _LOOK_SECONDS
        while not run_file.exists():
            if time.monotonic() > end:
                raise EmpathyError(
                    f"the output folder '{out}' is not the one of the run. Every node must see it under the same path: "
                    "choose one on shared storage with -o."
                )
            time.sleep(0.2)
        probe = run_file.with_name(f"{run_file.name}.{secrets.token_hex(8)}")
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise EmpathyError(
                f"cannot write to '{out}': {error.strerror}; give this node's user the right to."
            ) from None

    def _check_size(self, unit: Unit) -> None:
        if is_url(unit.path) or unit.path not in self._task.sizes:
            return
        try:
            found = os.path.getsize(unit.path)
        except OSError:
            return  # reading it says so
        if found != (expected := self._task.sizes[unit.path]):
            raise EmpathyError(
                f"the input '{unit.path}' has {found} bytes on node '{platform.node()}' and {expected} where the run was "
                "started. Every node must see the same files: put them on shared storage."
            )
