"""`gatehouse bench`: send a server requests at a rate, or find the highest rate that is served."""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, complain, not_empty
from app.cli.signals import importing
from app.cli.traffic_changes import ask, server_url, version_number
from app.errors import ExitCode, did_you_mean

if TYPE_CHECKING:
    from app.benchmarking.load import Plan, Progress, Report
    from app.benchmarking.objective import Objective, Step
    from app.benchmarking.requests import Post

KEY = "GATEHOUSE_KEY"
_LEAST_REQUESTS = 200.0  # of the first step of a sweep: two of them decide its p99
_DESCRIPTION = """\
Send a server score requests at Poisson times, whether or not earlier ones have finished, and
print latencies, counted from when each request was due. With --sweep, find the highest rate that
meets the objective. The requests are the model's own example, with --rows candidates."""
_EPILOG = """\
exit codes: 0 the objective is met (or none is given); 1 it is not, the server cannot be reached, or
the load generator could not keep up; 2 wrong usage

If the server requires an API key, the environment variable GATEHOUSE_KEY must have it. Send load
only to servers that you may load. The generator uses up to one core for 4,000 requests/s.

examples:
  gatehouse bench http://127.0.0.1:8000 --rate 200 --rows 100 --p99 20ms
  gatehouse bench http://127.0.0.1:8000 --sweep --form v2-binary --p99 50ms --report bench.html
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("url", type=server_url, metavar="URL", help="of the server")
    load = parser.add_argument_group("load").add_mutually_exclusive_group(required=True)
    load.add_argument("--rate", type=number_above_0, metavar="PER_S", help="requests per second")
    load.add_argument(
        "--sweep", action="store_true", help="raise the rate until the objective breaks"
    )
    times = parser.add_argument_group("how long")
    times.add_argument(
        "--duration", type=seconds, default=10.0, metavar="TIME", help="of each rate (default: 10s)"
    )
    times.add_argument(
        "--warm-up", type=seconds, default=1.0, metavar="TIME", help="not counted (default: 1s)"
    )
    times.add_argument(
        "--connections",
        type=count,
        default=256,
        metavar="N",
        help="most connections, which are kept alive; more are opened as needed (default: 256)",
    )
    request = add_request(parser)
    request.add_argument(
        "--request",
        type=not_empty(Path),
        metavar="FILE",
        help="native requests to send instead: a JSON document, or one a line, drawn at random",
    )
    request.add_argument(
        "--deadline",
        type=seconds,
        metavar="TIME",
        help="sent as x-request-timeout-ms; responses after it are counted as late",
    )
    objective = parser.add_argument_group("objective")
    objective.add_argument(
        "--p99", type=seconds, metavar="TIME", help="most that the 99th percentile may be: 20ms"
    )
    objective.add_argument(
        "--errors",
        type=_share,
        metavar="SHARE",
        help="largest share of requests that may fail (default: 0 if there is an objective)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument(
        "--report", type=_report_file, metavar="FILE", help="write .html, .png or .svg, too"
    )


def add_request(parser: Parser) -> argparse._ArgumentGroup:
    """Add the options that say what a request is, and return their group."""
    request = parser.add_argument_group("request")
    request.add_argument("--model", metavar="NAME", help="of the model (default: the only one)")
    request.add_argument(
        "--version", type=version_number, metavar="N", help="of the model (default: the active one)"
    )
    request.add_argument(
        "--rows", type=count, default=100, metavar="N", help="candidates (default: 100)"
    )
    request.add_argument(
        "--form",
        choices=("json", "v2-json", "v2-binary"),
        default="json",
        help="native JSON, or the Open Inference Protocol in JSON or binary (default: json)",
    )
    request.add_argument(
        "--only",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=(),
        metavar="FEATURE,…",
        help="send these features only (default: all, or keys only where the model has tables)",
    )
    return request


def run(options: argparse.Namespace) -> int:
    """Send the load, print the result; return the exit code."""
    if options.sweep and options.p99 is None:
        raise WrongUsage("--sweep needs an objective, such as --p99 20ms")
    with importing():
        from app.benchmarking.load import CannotConnect
        from app.benchmarking.objective import Objective
    errors = options.errors
    if errors is None and options.p99 is not None:
        errors = 0.0
    objective = Objective(None if options.p99 is None else options.p99 * 1e3, errors)
    try:
        target = target_of(options)
        steps = _steps(target, objective, options)
    except CannotConnect as error:
        complain(f"cannot connect to {error}")
        return ExitCode.FAILED
    if options.report is not None:
        from app.benchmarking.report import write_report

        ordered = sorted(steps, key=lambda each: each.rate)
        rows = [_head(options), *(_cells(step, options) for step in ordered)]
        title = _title(target, options)
        write_report(options.report, title, rows, steps, objective, _UNITS)
    if options.json:
        Output().print_line(json.dumps(_document(target, steps, objective, options)))
    else:
        _print_table(target, steps, options)
    return _verdict(steps, objective, options)


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the requests that it gets.

    Attributes:
        name: what is scored: model and version, or a file.
        plan: with the requests; rate and times are those of a second at most.
        post: the first of the requests.
        device: where the model runs.
    """

    name: str
    plan: "Plan"
    post: "Post"
    device: str


def target_of(options: argparse.Namespace) -> Target:
    """Ask the server for a model's example, and make the requests of it.

    Raises:
        WrongUsage: there is no such model or feature, or the file has no request.
        CannotConnect: the server does not answer.
    """
    from app.benchmarking.load import Plan, http

    url = urlsplit(options.url)
    if url.path or url.query:
        raise WrongUsage(f"URL must be that of a server, without a path: not {url.path}")
    card = _card(options)
    posts = _posts(card, options)
    extra = {}
    if options.deadline is not None:
        extra["x-request-timeout-ms"] = str(max(1, round(options.deadline * 1e3)))
    if key := os.environ.get(KEY):
        extra["authorization"] = f"Bearer {key}"
    host = url.hostname or ""
    requests = [
        http(each.path, each.body, {**each.headers, **extra}, url.netloc.rpartition("@")[2])
        for each in posts
    ]
    plan = Plan(
        url.port or (443 if url.scheme == "https" else 80),
        requests,
        connections=getattr(options, "connections", 256),
        host=host,
        tls=url.scheme == "https",
    )
    version = options.version or card["version"]
    return Target(f"{card['name']}/{version}", plan, posts[0], card["device"])


def _card(options: argparse.Namespace) -> Any:  # noqa: ANN401  (JSON)
    """Return a model's card with an example request of many candidates.

    Raises:
        WrongUsage: there is no such model, or there are several and none is named.
        CannotConnect: the server does not answer.
    """
    from app.benchmarking.load import CannotConnect
    from app.benchmarking.requests import EXAMPLE_CANDIDATES

    models = f"{options.url}/v1/models"
    try:
        names = [each["name"] for each in ask(models)["models"]]
        known = f"(models: {', '.join(names) or 'none'})"
        name = options.model
        if name is None:
            if len(names) != 1:
                raise WrongUsage(f"name a model with --model: there are {len(names)} {known}")
            (name,) = names
        elif name not in names:
            raise WrongUsage(f'no model "{name}"{did_you_mean(name, names)} {known}')
        card = ask(f"{models}/{quote(name)}")
        example = f"{models}/{quote(name)}/example?candidates={EXAMPLE_CANDIDATES}"
        more = ask(example, os.environ.get(KEY))  # with a key it has the key of a user
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise CannotConnect(f"{options.url}: {reason}") from None
    return {**card, "example_request": more}


def _posts(card: Any, options: argparse.Namespace) -> "list[Post]":  # noqa: ANN401
    from app.benchmarking.requests import Post, file_bodies, inputs_of, post_of, resized

    try:
        if options.request is not None:
            if options.form != "json" or options.only:
                raise ValueError("its requests are sent as they are: omit --form and --only")
            path = post_of(card["name"], options.version, "json", {}, []).path
            bodies = file_bodies(options.request.read_bytes())
            return [Post(path, body, {"content-type": "application/json"}) for body in bodies]
    except ValueError as error:
        raise WrongUsage(f"{options.request}: {error}") from None
    try:
        request = resized(
            card["example_request"], options.rows, options.only, card.get("tables", [])
        )
    except ValueError as error:
        raise WrongUsage(f"--only: {error}") from None
    inputs = inputs_of(card)
    return [post_of(card["name"], options.version, options.form, request, inputs)]


def _steps(target: Target, objective: "Objective", options: argparse.Namespace) -> "list[Step]":
    """Measure the rate, or sweep; show progress on standard error."""
    from app.benchmarking.objective import Step, sweep

    with Live(quiet=options.json and not sys.stderr.isatty()) as live:

        def measure_at(rate: float) -> "Report":
            return measured(target, rate, options.duration, options.warm_up, live)

        def show(step: Step) -> None:
            problem = step.unfit or step.broken
            live.print_line(
                f"{step.rate:,.0f} requests/s: p50 {step.report.latency_ms(0.5):.2f} ms, "
                f"p99 {step.report.latency_ms(0.99):.2f} ms, {problem or 'met'}"
            )

        if options.sweep:
            start = _LEAST_REQUESTS / options.duration
            return sweep(measure_at, objective, start, on_step=show)
        report = measure_at(options.rate)
        broken, unfit = objective.broken(report), objective.unfit(report)
        return [Step(options.rate, report, broken, unfit)]


def measured(
    target: Target, rate: float, duration_s: float, warm_up_s: float, live: "Live"
) -> "Report":
    """Send requests at a rate, with as many processes as that needs, and return the report."""
    from dataclasses import replace

    from app.benchmarking.load import SENDS_PER_S, fire

    plan = replace(target.plan, rate=rate, seconds=duration_s, warm_up_s=warm_up_s)
    processes = min(os.cpu_count() or 1, math.ceil(rate / SENDS_PER_S))
    return fire(plan, processes, live.showing(rate, duration_s))


class Live:
    """Shows the progress of a load: one line that changes on a terminal, else a line now and then.

    It writes to standard error, so that a result on standard output stays whole.
    """

    _EVERY_S = 5.0

    def __init__(self, *, quiet: bool) -> None:
        """Show nothing if `quiet`."""
        self._console = Output(stderr=True, quiet=quiet)
        self._status = self._console.status("connecting") if self._console.is_terminal else None
        self._shown = 0.0

    def __enter__(self) -> "Live":
        """Begin to show."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the line."""
        if self._status is not None:
            self._status.stop()

    def print_line(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print_line(text)

    def showing(self, rate: float, duration_s: float) -> "Callable[[Progress], None]":
        """Return what takes the progress of a load at this rate."""
        self._shown = time.monotonic()

        def show(progress: "Progress") -> None:
            recent = sorted(progress.latencies_s)
            shown = [
                f"{min(progress.elapsed_s, duration_s):.0f} of {duration_s:g} s",
                f"{rate:,.0f} requests/s",
                f"{progress.sent - progress.answered} open",
                f"{progress.failed} failed",
            ]
            if recent:
                p50, p99 = recent[len(recent) // 2], recent[int(len(recent) * 0.99)]
                shown.append(f"p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms")
            if progress.elapsed_s < 0:
                shown[0] = "warming up"
            text = ", ".join(shown)
            if self._status is not None:
                self._status.update(text)
            elif time.monotonic() - self._shown >= self._EVERY_S:
                self._shown = time.monotonic()
                self._console.print_line(text)

        return show


_UNITS = "rates in requests/s, latencies and the generator's lag (p99) in ms"


def _head(options: argparse.Namespace) -> list[str]:
    late = [] if options.deadline is None else ["late"]
    shown = ("asked", "sent", "answered", "p50", "p90", "p99", "p99.9", "status")
    return [*shown, *late, "lag", "objective"]


def _cells(step: "Step", options: argparse.Namespace) -> list[str]:
    from app.benchmarking.report import QUANTILES

    report = step.report
    return [
        f"{step.rate:,.0f}",
        f"{report.sent_rate:,.0f}",
        f"{report.answered_rate:,.0f}",
        *(f"{report.latency_ms(share):.2f}" for share in QUANTILES),
        ", ".join(f"{_status(status)}: {n:,}" for status, n in report.statuses.items()),
        *([] if options.deadline is None else [f"{report.late(options.deadline):,}"]),
        f"{report.lag_ms(0.99):.2f}",
        step.unfit or step.broken or "met",
    ]


def _status(status: int) -> str:
    return str(status) if status else "none"


def _title(target: Target, options: argparse.Namespace) -> str:
    size = f"{len(target.post.body):,} bytes"
    if options.request is not None:
        return f"{options.url}: {target.name}, requests of {options.request}"
    return f"{options.url}: {target.name}, {options.rows} candidates, {options.form}, {size}"


def _print_table(target: Target, steps: "Sequence[Step]", options: argparse.Namespace) -> None:
    from rich.table import Table

    output = Output()
    output.print_line(_title(target, options))
    table = Table()
    for name in _head(options):
        table.add_column(name, justify="left" if name in ("status", "objective") else "right")
    for step in sorted(steps, key=lambda each: each.rate):
        table.add_row(*_cells(step, options))
    output.print(table)
    output.print_line(_UNITS)


def _verdict(steps: "list[Step]", objective: "Objective", options: argparse.Namespace) -> int:
    """Say what came out where an objective is given; return the exit code."""
    from app.benchmarking.objective import highest

    output = Output(stderr=options.json)
    best = highest(steps)
    if options.sweep and best is not None:
        output.print_line(
            f"highest rate: {best.rate:,.0f} requests/s "
            f"with p99 {best.report.latency_ms(0.99):.2f} ms (objective: {objective.p99_ms:g} ms)"
        )
        over = [step for step in steps if step.rate > best.rate]
        if over and all(step.unfit is not None for step in over):
            complain(f"the server may serve more: the {over[-1].unfit}; use more machines to send")
            return ExitCode.FAILED
        return ExitCode.OK
    last = steps[-1]
    if options.sweep:
        complain(f"no rate meets the objective: {last.unfit or last.broken}")
        return ExitCode.FAILED
    if last.unfit is not None:
        complain(f"the result says nothing about the server: the {last.unfit}")
        return ExitCode.FAILED
    if last.broken is not None:
        complain(f"the objective is not met: {last.broken}")
        return ExitCode.FAILED
    return ExitCode.OK


def _document(
    target: Target, steps: "list[Step]", objective: "Objective", options: argparse.Namespace
) -> dict[str, object]:
    """Return the result as a JSON document."""
    from app.benchmarking.objective import highest

    best = highest(steps)
    return {
        "url": options.url,
        "model": target.name,
        "form": options.form if options.request is None else str(options.request),
        "rows": options.rows if options.request is None else None,
        "request_bytes": len(target.post.body),
        "duration_s": options.duration,
        "objective": {"p99_ms": objective.p99_ms, "errors": objective.errors},
        "highest_rate": best.rate if options.sweep and best is not None else None,
        "steps": [_step_document(step, options) for step in steps],
    }


def _step_document(step: "Step", options: argparse.Namespace) -> dict[str, object]:
    from app.benchmarking.report import QUANTILES

    report = step.report
    answered = 200 in report.statuses
    return {
        "rate": step.rate,
        "sent_rate": report.sent_rate,
        "answered_rate": report.answered_rate,
        "latency_ms": {
            f"p{share * 100:g}": report.latency_ms(share) if answered else None
            for share in QUANTILES
        },
        "statuses": {_status(status): n for status, n in report.statuses.items()},
        "late": None if options.deadline is None else report.late(options.deadline),
        "generator": {"lag_p99_ms": report.lag_ms(0.99), "busiest_core": report.busiest},
        "met": step.is_met,
        "problem": step.unfit or step.broken,
    }


def seconds(text: str) -> float:
    """Convert a duration: a number and ms, s or m."""
    for unit, factor in (("ms", 1e-3), ("s", 1.0), ("m", 60.0)):
        if text.endswith(unit):
            try:
                number = float(text.removesuffix(unit)) * factor
            except ValueError:
                break
            if 0 < number < 1e6:
                return number
            break
    raise argparse.ArgumentTypeError("must be a time above 0, such as 20ms, 10s or 2m")


def number_above_0(text: str) -> float:
    """Convert a number that must be above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e7:
        raise argparse.ArgumentTypeError("must be a number above 0 and below 10000000")
    return number


def count(text: str) -> int:
    """Convert a whole number that must be above 0."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 7 and int(text) >= 1):
        raise argparse.ArgumentTypeError("must be a whole number of 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError("must be a share from 0 to below 1, such as 0.001")
    return number


def _report_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".html", ".png", ".svg"):
        raise argparse.ArgumentTypeError("must end in .html, .png or .svg")
    return path
