"""`gatehouse plan`: how many replicas an objective needs, from the measured costs of one."""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli import scaling
from app.cli.bench import KEY, Target, add_request, count, number_above_0, seconds, target_of
from app.cli.output import Output
from app.cli.parser import Parser, complain
from app.cli.settings_options import add_store, existing_store, store_of
from app.cli.signals import importing
from app.cli.traffic_changes import ask, server_url
from app.errors import ExitCode

if TYPE_CHECKING:
    from app.benchmarking.load import Plan
    from app.benchmarking.replica import Fleet, Replica

_QUIET_S, _BUSY_S = 1.0, 2.0
_BUSY_CONNECTIONS = 32
_START_S = 60.0
_PATIENT_S = 60.0  # requests that are measured are not refused for their deadline
_ROOM = 2  # an autoscaler may start so many times the planned replicas
_DESCRIPTION = """\
Compute how many replicas serve a rate within an objective, and what they cost. The costs of a
request are measured on a running server (--url), or on one that this command starts on the store
and stops again: three seconds of requests with --rows candidates. A simulation of one replica's
event loop, queue and lanes then gives the highest rate that meets the objective."""
_EPILOG = """\
exit codes: 0 success; 1 no number of replicas meets the objective, or the server cannot be reached;
2 wrong usage

examples:
  gatehouse plan --store store --rows 500 --rate 2000 --p99 50ms --price 0.04
  gatehouse plan --url http://127.0.0.1:8000 --rows 500 --rate 2000 --p99 50ms --scaler hpa
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_store(parser)
    parser.add_argument(
        "--url", type=server_url, metavar="URL", help="measure this server, not one of the store"
    )
    objective = parser.add_argument_group("objective")
    objective.add_argument(
        "--rate", type=number_above_0, required=True, metavar="PER_S", help="requests per second"
    )
    objective.add_argument(
        "--p99",
        type=seconds,
        required=True,
        metavar="TIME",
        help="most that the 99th percentile of the latency may be: 50ms",
    )
    objective.add_argument(
        "--headroom",
        type=_headroom,
        default=0.3,
        metavar="SHARE",
        help="of each replica's capacity that stays free for peaks and failures (default: 0.3)",
    )
    add_request(parser)
    parser.set_defaults(request=None, deadline=_PATIENT_S)
    replica = parser.add_argument_group("replica")
    replica.add_argument(
        "--cores", type=number_above_0, metavar="N", help="of a replica (default: one per lane)"
    )
    replica.add_argument(
        "--lanes", type=count, metavar="N", help="of a replica (default: those of the server)"
    )
    replica.add_argument(
        "--price",
        type=number_above_0,
        metavar="PRICE",
        help="of a core for an hour, in any currency",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON instead of text")
    output.add_argument(
        "--scaler", choices=("hpa", "keda"), help="print this Kubernetes object instead, as YAML"
    )
    output.add_argument(
        "--name",
        type=_label,
        default="gatehouse",
        metavar="NAME",
        help="of the Deployment (default: gatehouse)",
    )
    output.add_argument(
        "--namespace",
        type=_label,
        default="default",
        metavar="NAME",
        help="of the Deployment (default: default)",
    )


def _label(text: str) -> str:
    """Convert the name of a Kubernetes object (RFC 1123, section 2.1)."""
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            "must be 1 to 63 lowercase letters, digits and hyphens, such as gatehouse"
        )
    return text


def run(options: argparse.Namespace) -> int:
    """Measure, compute and print; return the exit code."""
    with importing():
        from app.benchmarking.load import CannotConnect
        from app.benchmarking.replica import fleet
    try:
        if options.url is not None:
            measured = measure(options)
        else:
            with _server_of(existing_store(store_of(options))) as url:
                options.url = url
                measured = measure(options)
    except (CannotConnect, _CannotMeasure) as error:
        complain(str(error))
        return ExitCode.FAILED
    plan = fleet(measured.replica, options.rate, options.p99, options.headroom)
    if plan is None:
        fastest_ms = _alone_s(measured.replica) * 1e3
        complain(
            f"no number of replicas meets p99 {options.p99 * 1e3:g} ms: a request of "
            f"{measured.replica.rows} candidates alone takes {fastest_ms:.2f} ms"
        )
        return ExitCode.FAILED
    if options.scaler is not None:
        Output().print_line(_scaler(plan, options).rstrip())
    elif options.json:
        Output().print_line(json.dumps(_document(measured, plan, options)))
    else:
        for line in _lines(measured, plan, options):
            Output().print_line(line)
    return ExitCode.OK


class _CannotMeasure(Exception):
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
        CannotConnect: the server does not answer.
        _CannotMeasure: it refuses the requests, or does not show its metrics.
        WrongUsage: there is no such model or feature.
    """
    from app.benchmarking.load import fire
    from app.benchmarking.replica import INLINE_S, Replica

    target = target_of(options)
    response_bytes = _response_bytes(target, options.url)
    fire(_closed(target, 1, _QUIET_S))
    engine = _asked(f"{options.url}/v1/engine")
    costs = {each["model"]: each for each in engine["queues"]}
    cost = costs.get(target.name)
    if cost is None or not cost["batches"]:
        raise _CannotMeasure(f"{options.url} has no batch costs of {target.name}")
    before = _usage(options.url)
    report = fire(_closed(target, _BUSY_CONNECTIONS, _BUSY_S))
    after = _usage(options.url)
    served = report.statuses.get(200, 0)
    if not served or report.error_ratio > 0:
        raise _CannotMeasure(f"{options.url} responds with status {max(report.statuses)}")
    lanes = options.lanes or len(engine["lanes"])
    batch_s, row_s = cost["batch_ms"] / 1e3, cost["row_us"] / 1e6
    used, is_gpu = after - before, target.device.startswith("cuda")
    scale = 1.0
    if not is_gpu and batch_s + row_s * options.rows > INLINE_S:
        scale = used.lane_scale(batch_s, row_s)  # else the event loop has run some of the batches
    replica = Replica(
        rows=options.rows,
        front_s=used.loop_s / served,
        batch_s=batch_s * scale,
        row_s=row_s * scale,
        lanes=lanes,
        cores=options.cores or lanes,
        is_gpu=is_gpu,
        max_batch_rows=cost["max_batch_rows"],
        min_chunk_rows=engine["min_chunk_rows"],
    )
    size = len(target.post.body)
    return Measured(target.name, replica, size, response_bytes, after.memory_bytes)


def _closed(target: Target, connections: int, duration_s: float) -> "Plan":
    return replace(
        target.plan, rate=None, connections=connections, seconds=duration_s, warm_up_s=0.3
    )


def _response_bytes(target: Target, url: str) -> int:
    """Send one request; return the size of its response.

    Raises:
        _CannotMeasure: it is refused.
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
        raise _CannotMeasure(f"{url} responds with status {error.code}{detail}") from None
    except OSError as error:
        raise _CannotMeasure(f"{url}: {error}") from None


def _detail(body: bytes) -> str:
    """Return what an error response of the service says, after a colon; else nothing."""
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    detail = document.get("detail") or document.get("error") if isinstance(document, dict) else None
    return f": {detail}" if detail else ""


def _asked(url: str) -> Any:  # noqa: ANN401  (JSON)
    try:
        return ask(url)
    except OSError as error:
        raise _CannotMeasure(f"{url}: {error}") from None


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
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:  # noqa: S310
            text = response.read().decode()
    except OSError as error:
        raise _CannotMeasure(f"{url}/metrics: {error}") from None
    values = []
    for name in _SERIES:
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        if found is None:
            raise _CannotMeasure(f"{url}/metrics has no series {name}")
        values.append(float(found[1]))
    loop_s, process_s, batches, rows, memory = values
    return _Usage(loop_s, process_s, batches, rows, int(memory))


@contextmanager
def _server_of(store: Path) -> Iterator[str]:
    """Run a server of a store on this machine, and yield its URL.

    Raises:
        _CannotMeasure: it does not become ready.
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
                raise _CannotMeasure(f'cannot serve the store "{store}": try gatehouse check')
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


def _alone_s(replica: "Replica") -> float:
    """Return how long a request takes that nothing delays."""
    parts = max(1, min(replica.lanes, replica.rows // replica.min_chunk_rows))
    return replica.front_s + replica.batch_s + replica.row_s * replica.rows / parts


def _scaler(plan: "Fleet", options: argparse.Namespace) -> str:
    least = min(2, plan.replicas)
    return scaling.render(
        options.scaler,
        name=options.name,
        namespace=options.namespace,
        min_replicas=least,
        max_replicas=max(least, _ROOM * plan.replicas),
        busy_share=_busy_share(plan),
    )


def _busy_share(plan: "Fleet") -> float:
    """Return how busy a replica is that has what is planned: its lanes, or its event loop."""
    return round(max(plan.planned.lane_share, plan.planned.front_share), 2)


def _document(measured: Measured, plan: "Fleet", options: argparse.Namespace) -> dict[str, object]:
    replica = measured.replica
    return {
        "model": measured.name,
        "objective": {"rate": options.rate, "p99_ms": options.p99 * 1e3, "rows": replica.rows},
        "measured": asdict(measured),
        "limits": replica.limits,
        "capacity": asdict(plan.limit),
        "planned": asdict(plan.planned),
        "replicas": plan.replicas,
        "cores": plan.replicas * replica.cores,
        "memory_bytes": plan.replicas * measured.memory_bytes,
        "network_bits_per_s": {
            "in": options.rate * measured.request_bytes * 8,
            "out": options.rate * measured.response_bytes * 8,
        },
        "cost_per_million_candidates": _cost(plan, replica, options),
        "busy_share": _busy_share(plan),
    }


def _cost(plan: "Fleet", replica: "Replica", options: argparse.Namespace) -> float | None:
    if options.price is None:
        return None
    per_hour = plan.replicas * replica.cores * options.price
    return float(per_hour / (options.rate * replica.rows * 3600) * 1e6)


def _lines(measured: Measured, plan: "Fleet", options: argparse.Namespace) -> Sequence[str]:
    """Return the plan as text."""
    replica, limit, planned = measured.replica, plan.limit, plan.planned
    limits = replica.limits
    lowest = min(limits, key=lambda each: limits[each])
    net_in, net_out = (
        options.rate * size * 8 / 1e9 for size in (measured.request_bytes, measured.response_bytes)
    )
    lines = [
        f"measured: {measured.name}, {replica.rows} candidates, {options.form}, "
        f"{measured.request_bytes:,} bytes in, {measured.response_bytes:,} bytes out",
        f"  a batch      {replica.batch_s * 1e3:.3f} ms + {replica.row_s * 1e6:.2f} µs a row, "
        f"{_counted(replica.lanes, 'lane')} on {_device(replica)}",
        f"  event loop   {replica.front_s * 1e3:.3f} ms a request",
        f"  memory       {measured.memory_bytes / 1e6:,.0f} MB",
        "one replica",
        f"  at most      {limit.rate:,.0f} requests/s with p99 {limit.p99_s * 1e3:.1f} ms "
        f"(limit: {lowest}, {limits[lowest]:,.0f} requests/s)",
        f"  planned      {planned.rate:,.0f} requests/s with p50 {planned.p50_s * 1e3:.1f} ms, "
        f"p99 {planned.p99_s * 1e3:.1f} ms; lanes busy {planned.lane_share:.0%}, "
        f"event loop {planned.front_share:.0%}",
        f"for {options.rate:,.0f} requests/s ({options.rate * replica.rows:,.0f} candidates/s)",
        f"  replicas     {plan.replicas:,}, headroom {options.headroom:.0%}",
        f"  cores        {plan.replicas * replica.cores:,g}",
        f"  memory       {plan.replicas * measured.memory_bytes / 1e9:,.1f} GB",
        f"  network      {net_in:.2f} Gbit/s in, {net_out:.2f} Gbit/s out",
    ]
    cost = _cost(plan, replica, options)
    if cost is not None:
        lines.append(f"  cost         {cost:.4g} per million candidates")
    return lines


def _device(replica: "Replica") -> str:
    """Return what the lanes run on."""
    return "a GPU" if replica.is_gpu else _counted(replica.cores, "core")


def _counted(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _headroom(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 0.95:
        raise argparse.ArgumentTypeError("must be a share from 0 to below 0.95, such as 0.3")
    return number
