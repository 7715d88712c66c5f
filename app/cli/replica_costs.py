"""Measure what requests cost one replica: a running server, or one that is started for it."""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.load_target import KEY, Target, target_of
from app.cli.running_server import ask

if TYPE_CHECKING:
    from app.benchmarking.load import Plan
    from app.benchmarking.replica import Replica

_QUIET_S, _BUSY_S = 1.0, 2.0
_BUSY_CONNECTIONS = 32
_START_S = 60.0


class CannotMeasure(Exception):
    """The server does not tell what a plan needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on one replica.

    Attributes:
        name: model and version.
        replica: the costs.
        request_bytes: of a request's body.
        response_bytes: of its response's body.
        memory_bytes: what the process holds in memory.
    """

    name: str
    replica: "Replica"
    request_bytes: int
    response_bytes: int
    memory_bytes: int


def measure(options: argparse.Namespace) -> Measured:
    """Send a server a few seconds of requests and read what they cost it.

    First one at a time, so that the cost model of the lanes is that of idle cores; then many at
    once, for the CPU time of the event loop and of the lanes under load.

    Raises:
        CannotConnect: the server cannot be reached, or its response is of no use.
        CannotMeasure: it refuses the requests, or does not show its metrics.
        WrongUsage: there is no such model or feature.
    """
    from app.benchmarking.load import fire
    from app.benchmarking.replica import INLINE_S, Replica

    target = target_of(options)
    response_bytes = _response_bytes(target, options.url)
    fire(_closed(target, 1, _QUIET_S))
    engine = _asked(f"{options.url}/v1/engine")
    costs = {queue["model"]: queue for queue in engine["queues"]}
    cost = costs.get(target.name)
    if cost is None or not cost["batches"]:
        raise CannotMeasure(f"{options.url} has no batch costs of {target.name}")
    before = _usage(options.url)
    report = fire(_closed(target, _BUSY_CONNECTIONS, _BUSY_S))
    after = _usage(options.url)
    served = report.statuses.get(200, 0)
    if not served or report.error_ratio > 0:
        raise CannotMeasure(f"{options.url} responds with status {max(report.statuses)}")
    lanes = options.lanes or len(engine["lanes"])
    batch_s, row_s = cost["batch_ms"] / 1e3, cost["row_us"] / 1e6
    used, is_gpu = after - before, target.device.startswith("cuda")
    front_s, scale = used.loop_s, 1.0
    if not is_gpu and batch_s + row_s * options.rows <= INLINE_S:
        front_s = used.without_batches_s(batch_s, row_s)  # the event loop has run some of them
    elif not is_gpu:
        scale = used.lane_scale(batch_s, row_s)
    replica = Replica(
        rows=options.rows,
        front_s=front_s / served,
        batch_s=batch_s * scale,
        row_s=row_s * scale,
        lanes=lanes,
        cores=options.cores or lanes,
        is_gpu=is_gpu,
        max_batch_rows=cost["max_batch_rows"],
        min_chunk_rows=engine["min_chunk_rows"],
        max_wait_s=engine["max_wait_ms"] / 1e3,
    )
    size = len(target.post.body)
    return Measured(target.name, replica, size, response_bytes, after.memory_bytes)


def _closed(target: Target, connections: int, duration_s: float) -> "Plan":
    """Return a load without a rate: every connection sends its next request after a response."""
    return replace(
        target.plan, rate=None, connections=connections, seconds=duration_s, warm_up_s=0.3
    )


def _response_bytes(target: Target, url: str) -> int:
    """Send one request; return the size of its response.

    Raises:
        CannotMeasure: it is refused.
    """
    headers = dict(target.post.headers)
    if key := os.environ.get(KEY):
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url + target.post.path, target.post.body, headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return len(response.read())
    except urllib.error.HTTPError as error:
        detail = _detail(error.read())
        raise CannotMeasure(f"{url} responds with status {error.code}{detail}") from None
    except OSError as error:
        raise CannotMeasure(f"no usable response from {url}: {error}") from None


def _detail(body: bytes) -> str:
    """Return what an error response of the service says, after a colon; else nothing."""
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    detail = document.get("detail") or document.get("error") if isinstance(document, dict) else None
    return f": {detail}" if detail else ""


def _asked(url: str) -> Any:  # noqa: ANN401  (JSON)
    """Return the JSON document at a URL.

    Raises:
        CannotMeasure: there is none.
    """
    try:
        return ask(url)
    except OSError as error:
        raise CannotMeasure(f"no usable response from {url}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Usage:
    """What a process has used so far, from its metrics.

    Attributes:
        loop_s: CPU time of the event loop (s).
        process_s: CPU time of all threads (s).
        batches: how many batches it has run.
        rows: how many rows they had.
        memory_bytes: what it holds in memory.
    """

    loop_s: float
    process_s: float
    batches: float
    rows: float
    memory_bytes: int

    def __sub__(self, other: "_Usage") -> "_Usage":
        """Return what was used between two moments."""
        return _Usage(
            self.loop_s - other.loop_s,
            self.process_s - other.process_s,
            self.batches - other.batches,
            self.rows - other.rows,
            self.memory_bytes,
        )

    def without_batches_s(self, batch_s: float, row_s: float) -> float:
        """Return the CPU time that is left when these batches cost what the cost model says (s).

        Where other processes disturb the machine, the cost model says too much; part of the event
        loop's time is left in any case.
        """
        left_s = self.process_s - (batch_s * self.batches + row_s * self.rows)
        return max(left_s, self.loop_s / 4)

    def lane_scale(self, batch_s: float, row_s: float) -> float:
        """Return the CPU time of the lanes in these batches over what the cost model says.

        The cost model has times by the clock. They are too long where other processes disturb the
        machine, and too short for lanes that share caches with others under load.
        """
        return (self.process_s - self.loop_s) / (batch_s * self.batches + row_s * self.rows)


_SERIES = (
    "gatehouse_event_loop_cpu_seconds_total",
    "process_cpu_seconds_total",
    "gatehouse_batch_rows_count",
    "gatehouse_batch_rows_sum",
    "process_resident_memory_bytes",
)


def _usage(url: str) -> _Usage:
    """Read what a server has used from its metrics.

    Raises:
        CannotMeasure: it does not show them, or lacks one.
    """
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:  # noqa: S310
            metrics = response.read().decode()
    except OSError as error:
        raise CannotMeasure(f"no usable response from {url}/metrics: {error}") from None
    values = []
    for name in _SERIES:
        sample = re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)
        if sample is None:
            raise CannotMeasure(f"{url}/metrics has no series {name}")
        values.append(float(sample[1]))
    loop_s, process_s, batches, rows, memory = values
    return _Usage(loop_s, process_s, batches, rows, int(memory))


@contextmanager
def server_of(store: Path) -> Iterator[str]:
    """Run a server of a store on this machine, and yield its URL.

    Raises:
        CannotMeasure: it does not become ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # The server must not outlive this command.
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    where = ["--store", str(store), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(  # noqa: S603  (the path of a store is one argument)
        [sys.executable, "-m", "app", "serve", *where],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        patience = time.monotonic() + _START_S
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > patience:
                raise CannotMeasure(f'cannot serve the store "{store}": try gatehouse check')
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()
        signal.signal(signal.SIGTERM, former)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310
            return True
    except OSError:
        return False
