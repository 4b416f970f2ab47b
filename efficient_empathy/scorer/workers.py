"""Several processes that rate units: each takes the next unit that is left and says what it came to."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from efficient_empathy.dialogues import Unit
from efficient_empathy.dialogues.paths import shown_path
from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.devices import is_gpu
from efficient_empathy.scorer.job import Job, RatesExamples, Route
from efficient_empathy.scorer.rating import rate_unit
from efficient_empathy.scorer.results import UnitResult

_TELL_EVERY_SECONDS = 0.25
_END_SECONDS = 5.0
_CHUNK, _DONE, _FAILED = "chunk", "done", "failed"


@dataclass(frozen=True)
class WorkerPlan:
    """How the cores are shared out."""

    workers: int
    """Processes that rate; 1 is the process of the run itself."""
    threads: int
    """Threads that compute in each of them."""


def plan_workers(job: Job, scorer: RatesExamples, units: int) -> WorkerPlan:
    """Share out the cores this process may use.

    ``auto`` gives each core a worker with one thread, since all that is not the model runs on one thread (see
    docs/throughput.md); a scorer on a GPU has one worker, since each would hold a model there.

    Args:
        job: with the number of workers asked for.
        scorer: ``threads`` and ``device`` are looked at, where it has them.
        units: how many are left to rate; more workers than that would idle.
    """
    cores = usable_cores()
    threads = getattr(scorer, "threads", None)
    if job.workers != "auto":
        workers = job.workers
    elif is_gpu(getattr(scorer, "device", "cpu")):
        workers = 1
    else:
        workers = max(1, cores // (threads or 1))
    workers = max(1, min(workers, units))
    return WorkerPlan(workers, threads or max(1, cores // workers))


def rate_in_processes(
    job: Job,
    units: Sequence[Unit],
    scorer: RatesExamples,
    route: Route | None,
    plan: WorkerPlan,
    on_chunk: Callable[[Mapping[str, int]], None],
) -> Iterator[UnitResult]:
    """Rate units in processes of their own, and yield each as it is complete, in any order.

    The processes end with the generator, however it ends, and with this process, however that ends.

    Args:
        job: what the units belong to.
        units: what to rate; started in this order.
        scorer: travels to the processes by pickle.
        route: travels as well.
        plan: how many processes, with how many threads.
        on_chunk: told of the examples of each subset as they are written, a few times a second at most.

    Raises:
        EmpathyError: a worker raised it, or a worker ended without a word.
    """
    waiting = list(reversed(units))
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_started(n, job, scorer, route, plan)) for n in range(1, plan.workers + 1)]
        by_connection = {worker.connection: worker for worker in workers}
        for worker in workers:
            worker.give(waiting)
        while by_connection:
            for ready in wait(list(by_connection)):
                worker = by_connection[ready]  # type: ignore[index]
                kind, content = worker.receive()
                if kind == _CHUNK:
                    on_chunk(content)
                elif kind == _FAILED:
                    raise EmpathyError(content)
                else:
                    if not worker.give(waiting):
                        del by_connection[worker.connection]
                    yield content


class _Worker:
    """The parent's end of one process."""

    def __init__(self, number: int, process: Any, connection: Connection) -> None:
        self.number = number
        self.process = process
        self.connection = connection
        self._unit: Unit | None = None

    def give(self, waiting: list[Unit]) -> bool:
        """Hand over the next unit; without one the worker is told to end, and the answer is False."""
        self._unit = waiting.pop() if waiting else None
        with contextlib.suppress(BrokenPipeError):  # it has died: ``receive`` says so
            self.connection.send(self._unit)
        return self._unit is not None

    def receive(self) -> tuple[str, Any]:
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(_END_SECONDS)
            raise EmpathyError(self._death()) from None

    def _death(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            how = f"was killed by signal {-code}"
            if -code == signal.SIGKILL:
                how += ", as the system does when memory runs out"
        else:
            how = f"ended with exit code {code}; what it said stands above"
        unit = self._unit
        place = f" while it rated '{shown_path(unit.path)}' from row {unit.line} on" if unit is not None else ""
        return (
            f"worker {self.number} {how}{place}. What was finished is kept: run the same command again to go on, "
            "with fewer --workers if memory is short."
        )


@contextlib.contextmanager
def _started(number: int, job: Job, scorer: RatesExamples, route: Route | None, plan: WorkerPlan) -> Iterator[_Worker]:
    # Always spawned: a forked copy of a process with threads (ONNX Runtime's, the tokenizer's) may hang.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(theirs, job, scorer, route, plan.threads), name=f"ee-worker-{number}", daemon=True
    )
    with _interrupts_held():
        process.start()
    theirs.close()  # so that the worker's end is the only one, and its death is seen
    well = False
    try:
        yield _Worker(number, process, ours)
        well = True
    finally:
        ours.close()
        if not well:
            process.terminate()
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start a process that leaves Ctrl-C to its parent from its first moment on: it inherits that the signal is held back.

    One that comes meanwhile reaches the parent afterwards.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, job: Job, scorer: Any, route: Route | None, threads: int) -> None:
    """What a worker does: rate units until there is none, an error, or no parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The tokenizer's own threads would compete with the neighbours'; it reads this when it is first used.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    if hasattr(scorer, "with_threads"):
        scorer = scorer.with_threads(threads)
    told = _Teller(connection)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while (unit := connection.recv()) is not None:
            try:
                result = rate_unit(job, unit, scorer, route, told.chunk)
            except EmpathyError as error:
                connection.send((_FAILED, str(error)))
                return
            told.flush()
            connection.send((_DONE, result))


def _end_with_parent() -> None:
    """End at once when the parent is gone: a run that goes on must not find its predecessor's workers at work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Teller:
    """Adds up what a worker has written and tells the parent now and then."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._counts: Counter[str] = Counter()
        self._last = 0.0

    def chunk(self, counts: Mapping[str, int]) -> None:
        """Take the counts of one chunk."""
        self._counts.update(counts)
        if time.monotonic() - self._last >= _TELL_EVERY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tell what has not been told."""
        if self._counts:
            self._connection.send((_CHUNK, dict(self._counts)))
        self._counts.clear()
        self._last = time.monotonic()
