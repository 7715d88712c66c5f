"""`gatehouse plan`: how many replicas an objective needs, from the measured costs of one."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from app.cli import scaling
from app.cli.load_target import add_request
from app.cli.option_values import count, duration, headroom, large_positive, server_url
from app.cli.output import Output, counted
from app.cli.parser import Parser, WrongUsage, complain
from app.cli.replica_costs import CannotMeasure, Measured, measure
from app.cli.settings_options import add_store, existing_store, store_of
from app.cli.signals import importing
from app.cli.started_server import server_of
from app.errors import ExitCode

if TYPE_CHECKING:
    from app.benchmarking.replica import Fleet, Replica

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

The server that is started on the store has one process, and takes the GATEHOUSE_ variables that
change what a request costs (lanes, batches, limits, policies, logs), not those of its address, keys
and TLS, nor recording or tracing. A server at --url may have several processes (--processes): each
is planned with an event loop and lanes of its own, and a replica has as many as the server. If it
requires an API key, the environment variable GATEHOUSE_KEY must have it.

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
    parser.add_argument(
        "--metrics-url",
        type=server_url,
        metavar="URL",
        help="where that server has /metrics, if it has GATEHOUSE_METRICS_PORT (default: --url)",
    )
    objective = parser.add_argument_group("objective")
    objective.add_argument(
        "--rate", type=large_positive, required=True, metavar="PER_S", help="requests per second"
    )
    objective.add_argument(
        "--p99",
        type=duration,
        required=True,
        metavar="TIME",
        help="most that the 99th percentile of the latency may be: 50ms",
    )
    objective.add_argument(
        "--headroom",
        type=headroom,
        default=0.3,
        metavar="SHARE",
        help="of each replica's capacity that stays free for peaks and failures (default: 0.3)",
    )
    add_request(parser)
    parser.set_defaults(request=None, deadline=_PATIENT_S)
    _add_replica(parser)
    _add_output(parser)


def _add_replica(parser: Parser) -> None:
    """Add what a replica is, and what it costs."""
    replica = parser.add_argument_group("replica")
    replica.add_argument(
        "--cores",
        type=large_positive,
        metavar="N",
        help="of a replica (default: one per lane of its processes)",
    )
    replica.add_argument(
        "--lanes",
        type=count,
        metavar="N",
        help="of each process of a replica (default: those of the server)",
    )
    replica.add_argument(
        "--price",
        type=large_positive,
        metavar="PRICE",
        help="of a core for an hour, in any currency",
    )


def _add_output(parser: Parser) -> None:
    """Add the form of the plan, and the names in a Kubernetes object."""
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
    """Measure, compute and print; return the exit code.

    Raises:
        WrongUsage: the options do not fit together, or there is no such store, model or feature.
    """
    if options.metrics_url is not None and options.url is None:
        raise WrongUsage("--metrics-url is of a running server: it needs --url")
    with importing():
        from app.benchmarking.load import CannotConnect
        from app.benchmarking.replica import fleet
    try:
        if options.url is not None:
            measured = measure(options)
        else:
            with server_of(existing_store(store_of(options))) as url:
                options.url = url
                measured = measure(options)
    except (CannotConnect, CannotMeasure) as error:
        complain(str(error))
        return ExitCode.FAILED
    plan = fleet(measured.replica, options.rate, options.p99, options.headroom, measured.processes)
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
        "limits": _limits(measured),
        "capacity": asdict(plan.limit),
        "planned": asdict(plan.planned),
        "replicas": plan.replicas,
        "cores": _cores(measured, plan),
        "memory_bytes": plan.replicas * measured.memory_bytes,
        "network_bits_per_s": {
            "in": options.rate * measured.request_bytes * 8,
            "out": options.rate * measured.response_bytes * 8,
        },
        "cost_per_million_candidates": _cost(measured, plan, options),
        "busy_share": _busy_share(plan),
    }


def _limits(measured: Measured) -> dict[str, float]:
    """Return what the event loops, the lanes and the cores of a replica allow (1/s)."""
    limits = measured.replica.limits
    return {name: rate * measured.processes for name, rate in limits.items()}


def _cores(measured: Measured, plan: "Fleet") -> float:
    return plan.replicas * measured.processes * measured.replica.cores


def _cost(measured: Measured, plan: "Fleet", options: argparse.Namespace) -> float | None:
    if options.price is None:
        return None
    per_hour = _cores(measured, plan) * options.price
    return float(per_hour / (options.rate * measured.replica.rows * 3600) * 1e6)


def _lines(measured: Measured, plan: "Fleet", options: argparse.Namespace) -> Sequence[str]:
    """Return the plan as text."""
    replica, limit, planned = measured.replica, plan.limit, plan.planned
    limits = _limits(measured)
    lowest = min(limits, key=lambda name: limits[name])
    net_in, net_out = (
        options.rate * size * 8 / 1e9 for size in (measured.request_bytes, measured.response_bytes)
    )
    lines = [
        f"measured: {measured.name}, {replica.rows} candidates, {options.form}, "
        f"{measured.request_bytes:,} bytes in, {measured.response_bytes:,} bytes out",
        f"  a batch      {replica.batch_s * 1e3:.3f} ms + {replica.row_s * 1e6:.2f} µs a row, "
        f"{counted(replica.lanes, 'lane')} on {_device(replica)}",
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
        f"  cores        {_cores(measured, plan):,g}",
        f"  memory       {plan.replicas * measured.memory_bytes / 1e9:,.1f} GB",
        f"  network      {net_in:.2f} Gbit/s in, {net_out:.2f} Gbit/s out",
    ]
    if measured.processes > 1:
        lines.insert(
            4, f"  processes    {measured.processes}, each with such a loop and such lanes"
        )
    cost = _cost(measured, plan, options)
    if cost is not None:
        lines.append(f"  cost         {cost:.4g} per million candidates")
    return lines


def _device(replica: "Replica") -> str:
    """Return what the lanes run on."""
    return "a GPU" if replica.is_gpu else counted(replica.cores, "core")
