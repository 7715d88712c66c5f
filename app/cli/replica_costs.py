"""Measure what requests cost one replica, which is a running server of one or more processes."""

import argparse
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from app.cli.load_target import KEY, Target, target_of
from app.cli.running_server import ask
from app.telemetry.siblings import UP

if TYPE_CHECKING:
    from app.benchmarking.load import Plan, Refusal, Report
    from app.benchmarking.replica import Replica

_QUIET_S, _BUSY_S = 1.0, 2.0
_BUSY_CONNECTIONS = 32
_ASKS_A_PROCESS = 8  # the kernel chooses the process: after so many, nearly all have responded


class CannotMeasure(Exception):
    """The server does not tell what a plan needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on one replica.

    Attributes:
        name: model and version.
        replica: the costs of one of its processes.
        request_bytes: of a request's body.
        response_bytes: of its response's body.
        memory_bytes: what its processes hold in memory; what they share is counted for each.
        processes: how many it has; each has an event loop and lanes of its own.
    """

    name: str
    replica: "Replica"
    request_bytes: int
    response_bytes: int
    memory_bytes: int
    processes: int = 1


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
    from app.benchmarking.replica import Replica
    from app.engine.inline import INLINE_S

    target = target_of(options)
    response_bytes = _response_bytes(target, options.url)
    metrics_url = (options.metrics_url or options.url).removesuffix("/metrics")
    processes = _usage(metrics_url).processes  # before the load: the metrics may be elsewhere
    is_gpu = target.device.startswith("cuda")
    if is_gpu and processes > 1:
        raise CannotMeasure(
            f"{options.url} has {processes} processes that share a GPU, which a plan cannot "
            "divide: measure a server of one process"
        )
    fire(_closed(target, 1, _QUIET_S))
    engine, cost = _engine_of(target.name, options.url, processes)
    fitting = engine["max_queue_rows"] // options.rows
    report, used = _busy(target, options.url, metrics_url, min(_BUSY_CONNECTIONS, fitting))
    served = report.statuses[200]
    if used.processes != processes or used.rows < served * options.rows / 2:
        raise CannotMeasure(
            f"the metrics of {metrics_url} do not show the requests that {options.url} served: "
            "measure one server that stays up, not several behind one address"
        )
    lanes = options.lanes or len(engine["lanes"])
    batch_s, row_s = cost["batch_ms"] / 1e3, cost["row_us"] / 1e6
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
        cores=options.cores / processes if options.cores else lanes,
        is_gpu=is_gpu,
        max_batch_rows=cost["max_batch_rows"],
        min_chunk_rows=engine["min_chunk_rows"],
        max_wait_s=engine["max_wait_ms"] / 1e3,
    )
    size = len(target.post.body)
    return Measured(target.name, replica, size, response_bytes, used.memory_bytes, processes)


def _busy(target: Target, url: str, metrics_url: str, connections: int) -> "tuple[Report, _Usage]":
    """Send requests over many connections; return the report, and what the server has used.

    Where so many do not fit into the limits of the server, half as many are tried.

    Raises:
        CannotMeasure: some are refused for another reason, or have no response.
    """
    from app.benchmarking.load import fire

    while True:
        before = _usage(metrics_url)
        report = fire(_closed(target, connections, _BUSY_S))
        after = _usage(metrics_url)
        refusal = report.refusal
        if refusal is None:
            break
        if refusal.status != HTTPStatus.TOO_MANY_REQUESTS or connections == 1:
            raise CannotMeasure(f"{url} responds with status {refusal}")
        connections //= 2
    if not report.statuses.get(HTTPStatus.OK) or report.error_ratio > 0:
        raise CannotMeasure(f"{url} has left requests without a response")
    return report, after - before


def _engine_of(model: str, url: str, processes: int) -> tuple[Any, Any]:
    """Return the state of the engine that has run most batches of a model, and what they cost.

    Each process has an engine of its own, and any of them responds.

    Raises:
        CannotMeasure: none has run one.
    """
    asks = 1 if processes == 1 else _ASKS_A_PROCESS * processes
    found = [
        (engine, queue)
        for engine in (_asked(f"{url}/v1/engine") for _ in range(asks))
        for queue in engine["queues"]
        if queue["model"] == model and queue["batches"]
    ]
    if not found:
        raise CannotMeasure(f"{url} has no batch costs of {model}")
    return max(found, key=lambda engine_and_queue: engine_and_queue[1]["batches"])


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
        raise CannotMeasure(f"{url} responds with status {_refusal(error)}") from None
    except OSError as error:
        raise CannotMeasure(f"no usable response from {url}: {error}") from None


def _refusal(error: urllib.error.HTTPError) -> "Refusal":
    from app.benchmarking.load import Refusal, reason_of

    return Refusal(error.code, reason_of(error.read()))


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
    """What the processes of a server have used so far, from its metrics; sums over all of them.

    Attributes:
        loop_s: CPU time of the event loops (s).
        process_s: CPU time of all threads (s).
        batches: how many batches they have run.
        rows: how many rows those had.
        memory_bytes: what they hold in memory.
        processes: how many there are.
    """

    loop_s: float
    process_s: float
    batches: float
    rows: float
    memory_bytes: int
    processes: int = 1

    def __sub__(self, other: "_Usage") -> "_Usage":
        """Return what was used between two moments."""
        return _Usage(
            self.loop_s - other.loop_s,
            self.process_s - other.process_s,
            self.batches - other.batches,
            self.rows - other.rows,
            self.memory_bytes,
            self.processes,
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
        CannotMeasure: it does not show them, lacks one, or they are not of all of its processes.
    """
    place = f"{url}/metrics"
    try:
        with urllib.request.urlopen(place, timeout=10) as response:  # noqa: S310
            metrics = response.read().decode()
    except urllib.error.HTTPError as error:
        hint = ""
        if error.code == HTTPStatus.NOT_FOUND:
            hint = "; if the server has GATEHOUSE_METRICS_PORT, give --metrics-url"
        raise CannotMeasure(f"{place} responds with status {_refusal(error)}{hint}") from None
    except OSError as error:
        raise CannotMeasure(f"no usable response from {place}: {error}") from None
    return _usage_in(metrics, place)


def _usage_in(metrics: str, place: str) -> _Usage:
    """Add up what metrics say; with several processes, each sample has the number of one.

    Raises:
        CannotMeasure: a series is missing, or the samples of a process are.
    """
    if missing := re.findall(rf'^{UP}{{process="(\d+)"}} 0$', metrics, re.MULTILINE):
        raise CannotMeasure(f"{place} lacks the metrics of process {missing[0]}: try again")
    sums, processes = [], 1
    for name in _SERIES:
        samples = re.findall(rf'^{name}(?:{{process="\d+"}})? (\S+)$', metrics, re.MULTILINE)
        if not samples:
            raise CannotMeasure(f"{place} has no series {name}")
        sums.append(sum(map(float, samples)))
        processes = max(processes, len(samples))
    loop_s, process_s, batches, rows, memory = sums
    return _Usage(loop_s, process_s, batches, rows, int(memory), processes)
