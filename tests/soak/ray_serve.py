"""A real Ray cluster of several nodes serves; replicas and nodes are lost under load.

    python -m tests.soak.ray_serve [--callers 8] [--seconds 6] [--short]

The nodes run on this machine, the head with Ray Serve's proxy and no replica. Callers send requests
without a pause, with the retries of tests/clients/score.py, and every response is checked as in
tests.soak.fleet. The soak checks that the replicas are on different nodes, that every call
succeeds, and that a loss affects no more calls than were open, one a caller. It prints a table by
scene.
`--short` leaves out the update and the autoscaling. With RAY_SERVE_ENABLE_HA_PROXY=1, HAProxy takes
the place of Ray's proxy; it notices a loss at its next health check, so more calls may be affected.

Needs the extra `ray`. The exit code is 0 if all checks pass.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster

from app.artifacts.store import Store
from app.cli.ray import Options, application
from tests import REPOSITORY
from tests.soak.fleet import Callers, Tally
from tests.soak.model import publish_echo
from tests.support.server import free_port

_OBJECT_STORE_BYTES = 80 << 20  # the least that Ray accepts is 75 MiB; Serve needs next to nothing
_PATIENCE_S = 90.0
_MOST_KILLS = 8
_HAS_HAPROXY = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


@dataclass
class Fleet:
    """A cluster that serves.

    Attributes:
        cluster: its head has no CPU for replicas.
        nodes: its other nodes, with a CPU each.
        store: they all read it.
        port: of Ray Serve's proxy.
        callers: once they call.
    """

    cluster: Cluster
    nodes: list[Any]
    store: Store
    port: int = field(default_factory=free_port)
    callers: Callers | None = None

    @property
    def url(self) -> str:
        """The URL of the proxy."""
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, replicas: int, **options: Any) -> None:
        """Deploy the application, or update it, and wait until it runs."""
        given = {"min_replicas": replicas, "max_replicas": replicas} | options
        store = str(self.store.folder)
        serve.run(application(Options(store=store, lanes=1, **given)))

    def replicas(self) -> dict[int, str]:
        """Return the node of each live replica, by its PID."""
        return {
            actor["Pid"]: actor["Address"]["NodeID"]
            for actor in actors().values()
            if actor["State"] == "ALIVE" and actor["Name"].startswith("SERVE_REPLICA::")
        }

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        patience = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > patience:
                raise TimeoutError(f"{serve.status()}; replicas: {self.replicas()}")
            time.sleep(0.1)


@contextmanager
def fleet(store: Store, nodes: int) -> Iterator[Fleet]:
    """Start a cluster and Ray Serve; stop them afterwards."""
    # The workers import the code of this working tree.
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    memory = {"object_store_memory": _OBJECT_STORE_BYTES}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, **memory},
    )
    try:
        workers = [cluster.add_node(num_cpus=1, wait=False, **memory) for _ in range(nodes)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        running = Fleet(cluster, workers, store)
        address = {"host": "127.0.0.1", "port": running.port}
        serve.start(proxy_location="HeadOnly", http_options=address)
        yield running
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


Scene = Callable[[Fleet, float], int]
"""Returns how many replicas were lost."""


def quiet(_running: Fleet, seconds: float) -> int:
    """Nothing happens."""
    time.sleep(seconds)
    return 0


def loss_of_a_replica(running: Fleet, _seconds: float) -> int:
    """SIGKILL to a replica, and to another one until a call was open; Ray starts new ones."""
    assert running.callers
    retries, lost = running.callers.retries, 0
    granted = retries.granted
    while retries.granted == granted and lost < _MOST_KILLS:
        before = running.replicas()
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        lost += 1
        running.wait_for(lambda: _is_replaced(running, killed, len(before)))  # noqa: B023
        running.wait_for(lambda: serve.status().applications["default"].status == "RUNNING")
    return lost


def _is_replaced(running: Fleet, killed: int, count: int) -> bool:
    replicas = running.replicas()
    return killed not in replicas and len(replicas) == count


def loss_of_a_node(running: Fleet, seconds: float) -> int:
    """A node is killed with all of its processes."""
    lost = set(running.replicas().values())
    node = next(node for node in running.nodes if node.node_id in lost)
    running.nodes.remove(node)
    running.cluster.remove_node(node, allow_graceful=False)
    running.wait_for(lambda: node.node_id not in running.replicas().values())
    time.sleep(seconds / 2)
    return 1


def update(running: Fleet, _seconds: float) -> int:
    """The application is deployed with another setting: its replicas are replaced in turn."""
    before = running.replicas()
    running.deploy(len(before), log_level="warning")
    running.wait_for(lambda: not set(before) & set(running.replicas()))
    return 0


def growth(running: Fleet, seconds: float) -> int:
    """The load is too much for the replicas, as far as the policy knows: Ray adds one."""
    count = len(running.replicas())
    delays = {"look_back_s": 3, "upscale_delay_s": 1, "downscale_delay_s": 600}
    running.deploy(count, max_replicas=count + 1, busy=0.01, log_level="warning", **delays)
    running.wait_for(lambda: len(running.replicas()) == count + 1)
    time.sleep(seconds / 2)
    return 0


def soak(*, callers: int, seconds: float, short: bool) -> list[str]:
    """Play the scenes, print the table and return the failed checks."""
    failed: list[str] = []
    scenes: list[Scene] = [quiet, loss_of_a_replica, loss_of_a_node]
    if not short:
        scenes[2:2] = [update, growth]
    with tempfile.TemporaryDirectory() as temporary:
        store = Store(Path(temporary) / "store")
        publish_echo(store)
        with fleet(store, nodes=2 if short else 3) as running:
            running.deploy(2)
            nodes = set(running.replicas().values())
            if len(nodes) != 2 or not nodes <= {node.node_id for node in running.nodes}:
                failed.append(f"replicas are not on two nodes: {running.replicas()}")
            columns = ("requests", "failed", "mixed", "retried", "p50 ms", "p99 ms")
            print(f"| {'scene':18} | {' | '.join(columns)} |")
            print(f"| {'---':18} |{' ---: |' * len(columns)}", flush=True)
            with Callers(running.url, callers) as calling:
                running.callers = calling
                for scene in scenes:
                    calling.tally = tally = Tally()
                    before = calling.retries.granted
                    lost = scene(running, seconds)
                    retried = calling.retries.granted - before
                    name = scene.__name__.replace("_", " ")
                    print(tally.row(name, f"{retried:7}"), flush=True)
                    failed += [f"{name}: {fault}" for fault in tally.failures + tally.mixed]
                    if retried > lost * callers and not _HAS_HAPROXY:
                        failed.append(f"{name}: {retried} calls were affected, {callers} open")
    return failed


def main() -> int:
    """Run the soak with the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--callers", type=int, default=8, help="(default: 8)")
    parser.add_argument(
        "--seconds", type=float, default=6, help="length of the quiet parts (default: 6)"
    )
    parser.add_argument("--short", action="store_true", help="losses only")
    options = parser.parse_args()
    failed = soak(callers=options.callers, seconds=options.seconds, short=options.short)
    for failure in failed[:50]:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
