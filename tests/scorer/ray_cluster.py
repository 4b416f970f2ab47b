"""A real Ray cluster of several nodes on this machine, small and without a dashboard."""

import contextlib
import re
import socket
import time
from pathlib import Path

_RAYS_OWN = re.compile(
    r"\([\w+]+( pid=[^)]*)?\) |\[\d{4}-\d\d-\d\d [^]]*[EW] \d+ |\d{4}-\d\d-\d\d [\d:,]+\s(WARNING|ERROR)\b"
)


def said_by_us(stderr):
    """Lines but for those in which Ray itself complains of a busy machine; what it merely tells is ours to keep quiet."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not _RAYS_OWN.match(line))


def _free_ports():
    """Ports for a node's helpers: where they are named, a node need not wait for slow ones to tell theirs."""
    names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


class TwoNodes:
    """A head and one more node, of one CPU each; a killed node is replaced when the next test asks for two."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._add(include_dashboard=False)
        self._second = None

    @property
    def address(self):
        """Where a driver finds it."""
        return self._cluster.address

    def complete(self):
        """Have two nodes."""
        if self._second is None:
            self._second = self._add()

    def _add(self, **settings):
        for left in (2, 1, 0):
            try:
                return self._cluster.add_node(num_cpus=1, object_store_memory=100 << 20, **settings, **_free_ports())
            except Exception as error:  # Ray's own class for a node that is not up in 30 seconds, as on a busy machine
                if not left or "timed out during startup" not in str(error):
                    raise

    def kill_second(self):
        """As a machine that loses its power: no process of the node ends in order."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = None

    def shutdown(self):
        """End every process."""
        self._cluster.shutdown()


def raters():
    """Process ids of the actors on this machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(b"ray::UnitRater"):
                found.append(int(process.name))
    return found


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
