"""Rating on a Ray cluster: actors take units as local workers do, and what was lost with a node is rated again."""

import contextlib
import dataclasses
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from efficient_empathy.dialogues import Unit
from efficient_empathy.dialogues.paths import is_url
from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError, require
from efficient_empathy.scorer import runfolder
from efficient_empathy.scorer.job import Job, RatesExamples, Route
from efficient_empathy.scorer.outputs import writing
from efficient_empathy.scorer.ray_actor import Task
from efficient_empathy.scorer.ray_options import RayOptions
from efficient_empathy.scorer.ray_pool import Pool, amount
from efficient_empathy.scorer.ray_scorer import ship_scorer
from efficient_empathy.scorer.results import UnitResult
from efficient_empathy.scorer.scorer import Scorer
from efficient_empathy.scorer.workers import WorkerPlan

_LOCAL_OBJECT_STORE = 256 << 20
"""Bytes for a Ray of our own: what travels is a scorer folder and counts."""
_KNOCK_SECONDS = 5.0


def check(options: RayOptions | None) -> None:
    """See that Ray is installed, where it is asked for.

    Raises:
        MissingExtraError: it is not.
    """
    if options is not None:
        require("ray", "ray", "--engine ray")


@contextlib.contextmanager
def connected(options: RayOptions | None) -> Iterator[None]:
    """Be connected to the cluster; one that the caller was connected to before stays so.

    Raises:
        EmpathyError: the cluster cannot be reached.
    """
    if options is None:
        yield
        return
    import ray

    if ray.is_initialized():
        yield
        return
    _connect(ray, options)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, options: RayOptions) -> None:
    # What actors have to say comes as answers; Ray's own notes would stand between the lines of the progress.
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        try:
            ray.init(
                address="local",
                num_cpus=usable_cores(),
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE,
                **quiet,
            )
        except Exception as error:  # Ray raises this very class where its processes do not come up in time
            raise EmpathyError(f"Ray did not start on this machine: {_line(error)}") from error
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise EmpathyError(
            f"there is no Ray cluster at '{address}' that this machine belongs to: {_line(error)}. Start one with 'ray start "
            "--head', join it on every machine with 'ray start --address HOST:PORT', and run this on one of them; --address "
            "local uses this machine alone."
        ) from error


def _knock(address: str) -> None:
    """See that somebody answers: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def plan_actors(job: Job, scorer: RatesExamples, units: int) -> WorkerPlan:
    """How many actors to start: as many as asked for, or as the cluster has room for; one unit or more for each.

    Raises:
        EmpathyError: the cluster has no node with room for one.
    """
    import ray

    assert job.ray is not None  # noqa: S101 - the engine calls this for such jobs alone
    threads = getattr(scorer, "threads", None) or 1
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(room_for(node, threads, job.ray.gpus) for node in nodes)
    if job.workers == "auto" and not room:
        raise EmpathyError(
            f"no node of the cluster has room for an actor of {amount(threads, job.ray.gpus)}; the nodes have: "
            f"{'; '.join(amount(node.get('CPU', 0), node.get('GPU', 0)) for node in nodes) or 'nothing'}. "
            "Give fewer --threads or --gpus, or where nodes are started on demand say how many with --workers."
        )
    workers = room if job.workers == "auto" else job.workers
    return WorkerPlan(max(1, min(workers, units)), threads)


def room_for(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    """How many actors fit on a node; a share of a GPU never spans two."""
    fits = int(resources.get("CPU", 0) // cpus)
    if not gpus:
        return fits
    have = resources.get("GPU", 0)
    return min(fits, int(have // gpus) if gpus >= 1 else int(have) * int(1 / gpus + 1e-9))


def rate_on_ray(
    job: Job,
    units: Sequence[Unit],
    scorer: RatesExamples,
    route: Route | None,
    plan: WorkerPlan,
    on_chunk: Callable[[Mapping[str, int]], None],
) -> Iterator[UnitResult]:
    """Rate units in actors of a cluster, and yield each as it is complete, in any order.

    The actors end with the generator, however it ends, and with this process, however that ends. A unit whose actor
    or node was lost is rated again elsewhere.

    Args:
        job: what the units belong to.
        units: what to rate; started in this order.
        scorer: travels to the actors; the folder of a ``Scorer`` does, where a node does not see it.
        route: travels as well.
        plan: how many actors, with how many threads.
        on_chunk: told of the examples of each subset as they are written, about twice a second an actor; of those of
            a unit that was lost, with a minus.

    Raises:
        EmpathyError: an actor raised it, a node lacks something, or one unit's actors were lost too often.
    """
    assert job.ray is not None  # noqa: S101 - the engine calls this for such jobs alone
    if not units:
        return
    run_file = runfolder.temporary_folder(job.out) / f"ray-{secrets.token_hex(8)}"
    with writing(job.out):
        run_file.touch()
    travelling = ship_scorer(scorer, job.ray.device, plan.threads) if isinstance(scorer, Scorer) else scorer
    pool = Pool(_task(job, units, travelling, route, plan.threads, run_file.name), job.ray, units, on_chunk)
    try:
        yield from pool.run(plan.workers)
    finally:
        pool.close()
        run_file.unlink(missing_ok=True)


def _task(job: Job, units: Sequence[Unit], scorer: Any, route: Route | None, threads: int, run: str) -> Task:
    paths = sorted({unit.path for unit in units})
    local = [path for path in paths if not is_url(path)]
    relative = not job.out.is_absolute() or any(not os.path.isabs(path) for path in local)
    sizes = {record["path"]: record["bytes"] for record in runfolder.input_sizes(local) if record["bytes"] is not None}
    folder = str(Path.cwd()) if relative else None
    # Without where it runs: actors rate units, they start no others.
    return Task(dataclasses.replace(job, ray=None), route, scorer, threads, run, folder, paths[0], sizes)
