"""A Ray cluster of several logical nodes on this machine, and the ways in which they fail."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

ZONES = {"a": "spot", "b": "spot", "c": "on-demand"}
CUT_S = 8.0  # a network that is cut comes back


class Nodes:
    """A node in each zone, with room for two replicas."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self._nodes: dict[str, Any] = {}
        self.address: str = self._cluster.address
        self.mend()
        ray.init(self.address, log_to_driver=False, logging_level="ERROR")

    def mend(self) -> None:
        """Every zone has its node again."""
        for zone, market in ZONES.items():
            if zone not in self._nodes:
                labels = {"stoa.io/zone": zone, "stoa.io/market": market}
                self._nodes[zone] = self._cluster.add_node(num_cpus=2, labels=labels)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()

    # -- faults

    def kill_engine(self, rng: random.Random) -> str:
        return _signal(_engines(), signal.SIGKILL, rng)

    def kill_actor(self, rng: random.Random) -> str:
        return _signal(_processes("ray::ReplicaActor"), signal.SIGKILL, rng)

    def notice(self, rng: random.Random) -> str:
        return _signal(_processes("ray::ReplicaActor"), signal.SIGTERM, rng)

    def cut_network(self, rng: random.Random) -> str:
        """An engine falls silent with its connections up; after a while it is back."""
        said = _signal(_engines(), signal.SIGSTOP, rng)
        if said:
            threading.Timer(CUT_S, _wake, [int(said.split()[-1])]).start()
        return said

    def kill_controller(self, rng: random.Random) -> str:
        return _signal(_processes("ray::ControllerActor"), signal.SIGKILL, rng)

    def kill_node(self, rng: random.Random) -> str:
        """Power off, with all that runs there. `mend` brings an empty machine."""
        zone = rng.choice(sorted(self._nodes))
        self._cluster.remove_node(self._nodes.pop(zone), allow_graceful=False)
        return f"zone {zone}"


FAULTS = ("kill_engine", "notice", "cut_network", "kill_actor", "kill_node", "kill_controller")


def _signal(pids: list[int], number: int, rng: random.Random) -> str:
    if not pids:
        return ""
    pid = rng.choice(sorted(pids))
    os.kill(pid, number)
    return f"pid {pid}"


def _wake(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _engines() -> list[int]:
    return [pid for pid in _processes("python") if "stoa.fleet.worker" in _line(pid)]


def _processes(beginning: str) -> list[int]:
    """Whose command's name begins so, and which have run for a moment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            name = _line(int(entry.name)).split("\0")[0]
            if os.path.basename(name).startswith(beginning) and _age_s(entry) > 3:
                found.append(int(entry.name))
    return found


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _age_s(entry: Path) -> float:
    try:
        return time.time() - entry.stat().st_mtime
    except OSError:
        return 0.0
