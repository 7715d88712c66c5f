"""`gatehouse bench`: send a server requests at a rate, or find the highest rate that is served."""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli import bench_result
from app.cli.load_target import Target, add_request, target_of
from app.cli.option_values import count, duration, error_share, large_positive, server_url
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, complain, not_empty
from app.cli.signals import importing
from app.errors import ExitCode

if TYPE_CHECKING:
    from app.benchmarking.load import Progress, Report
    from app.benchmarking.objective import Objective, Step

_LEAST_REQUESTS = 200.0  # of the first step of a sweep: two of them decide its p99
_DESCRIPTION = """\
Send a server score requests at Poisson times, whether or not earlier ones have finished, and
print latencies, counted from when each request was due. With --sweep, find the highest rate that
meets the objective. The requests are the model's own example, with --rows candidates."""
_EPILOG = """\
exit codes: 0 the objective is met, or none is given and a response has status 200; 1 it is not, the
server cannot be reached or has no model, or the load generator could not keep up; 2 wrong usage,
such as a model, a version or a file of requests that does not exist

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
    load.add_argument("--rate", type=large_positive, metavar="PER_S", help="requests per second")
    load.add_argument(
        "--sweep", action="store_true", help="raise the rate until the objective breaks"
    )
    times = parser.add_argument_group("how long")
    times.add_argument(
        "--duration",
        type=duration,
        default=10.0,
        metavar="TIME",
        help="of each rate (default: 10s)",
    )
    times.add_argument(
        "--warm-up", type=duration, default=1.0, metavar="TIME", help="not counted (default: 1s)"
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
        type=duration,
        metavar="TIME",
        help="sent as x-request-timeout-ms; responses after it are counted as late",
    )
    objective = parser.add_argument_group("objective")
    objective.add_argument(
        "--p99", type=duration, metavar="TIME", help="most that the 99th percentile may be: 20ms"
    )
    objective.add_argument(
        "--errors",
        type=error_share,
        metavar="SHARE",
        help="largest share of requests that may fail (default: 0 if there is an objective)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument(
        "--report", type=_report_file, metavar="FILE", help="write .html, .png or .svg, too"
    )


def run(options: argparse.Namespace) -> int:
    """Send the load, print the result; return the exit code."""
    if options.sweep and options.p99 is None:
        raise WrongUsage("--sweep needs an objective, such as --p99 20ms")
    with importing():
        from app.benchmarking.load import CannotConnect
        from app.benchmarking.objective import Objective
    has_p99 = options.p99 is not None
    errors = 0.0 if options.errors is None and has_p99 else options.errors
    objective = Objective(options.p99 * 1e3 if has_p99 else None, errors)
    try:
        target = target_of(options)
        steps = _steps(target, objective, options)
    except CannotConnect as error:
        complain(str(error))
        return ExitCode.FAILED
    if options.report is not None:
        _write_report(target, steps, objective, options)
    if options.json:
        document = bench_result.document(target, steps, objective, options)
        Output().print_line(json.dumps(document))
    else:
        bench_result.print_table(target, steps, options)
    return bench_result.verdict(steps, objective, options)


def _write_report(
    target: Target, steps: "list[Step]", objective: "Objective", options: argparse.Namespace
) -> None:
    from app.benchmarking.report import write_report

    ordered = sorted(steps, key=lambda step: step.rate)
    cells = [bench_result.cells(step, options) for step in ordered]
    rows = [bench_result.head(options), *cells]
    title = bench_result.title(target, options)
    write_report(options.report, title, rows, steps, objective, bench_result.UNITS)


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
            line = ", ".join(shown)
            if self._status is not None:
                self._status.update(line)
            elif time.monotonic() - self._shown >= self._EVERY_S:
                self._shown = time.monotonic()
                self._console.print_line(line)

        return show


def _report_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".html", ".png", ".svg"):
        raise argparse.ArgumentTypeError("must end in .html, .png or .svg")
    if not path.parent.is_dir():  # before the load, not after it
        raise argparse.ArgumentTypeError("must be in a folder that exists")
    return path
