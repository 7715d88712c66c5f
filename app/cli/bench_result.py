"""The result of `gatehouse bench`: a table, a JSON document, and the exit code."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from app.cli.load_target import Target
from app.cli.output import Output
from app.cli.parser import complain
from app.errors import ExitCode

if TYPE_CHECKING:
    from app.benchmarking.objective import Objective, Step

UNITS = "rates in requests/s, latencies and the generator's lag (p99) in ms"


def head(options: argparse.Namespace) -> list[str]:
    """Return the names of the columns."""
    late = [] if options.deadline is None else ["late"]
    shown = ("asked", "sent", "answered", "p50", "p90", "p99", "p99.9", "status")
    return [*shown, *late, "lag", "objective"]


def cells(step: "Step", options: argparse.Namespace) -> list[str]:
    """Return what the table says of one rate, by column."""
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


def title(target: Target, options: argparse.Namespace) -> str:
    """Return what was sent where."""
    size = f"{len(target.post.body):,} bytes"
    if options.request is not None:
        return f"{options.url}: {target.name}, requests of {options.request}"
    return f"{options.url}: {target.name}, {options.rows} candidates, {options.form}, {size}"


def print_table(target: Target, steps: "Sequence[Step]", options: argparse.Namespace) -> None:
    """Print a row for each rate, by rate."""
    from rich.table import Table

    output = Output()
    output.print_line(title(target, options))
    table = Table()
    for name in head(options):
        table.add_column(name, justify="left" if name in ("status", "objective") else "right")
    for step in sorted(steps, key=lambda step: step.rate):
        table.add_row(*cells(step, options))
    output.print(table)
    output.print_line(UNITS)
    last = steps[-1]
    if last.is_met and last.report.refusal is not None:
        output.print_line(f"first refused response: {last.report.refusal}")


def verdict(steps: "list[Step]", objective: "Objective", options: argparse.Namespace) -> int:
    """Say what came out of a sweep, or what went wrong; return the exit code."""
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
        complain(f"no rate meets the objective: {last.unfit or _broken(last)}")
        return ExitCode.FAILED
    if last.unfit is not None:
        complain(f"the result says nothing about the server: the {last.unfit}")
        return ExitCode.FAILED
    if last.broken is not None:
        has_objective = (objective.p99_ms, objective.errors) != (None, None)
        complain(f"{'the objective is not met: ' if has_objective else ''}{_broken(last)}")
        return ExitCode.FAILED
    return ExitCode.OK


def _broken(step: "Step") -> str:
    """Return what breaks the objective, and the first response that was refused."""
    refusal = step.report.refusal
    return f"{step.broken}" + ("" if refusal is None else f"; first refused response: {refusal}")


def document(
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
        "refusal": None if report.refusal is None else asdict(report.refusal),
        "late": None if options.deadline is None else report.late(options.deadline),
        "generator": {"lag_p99_ms": report.lag_ms(0.99), "busiest_core": report.busiest},
        "met": step.is_met,
        "problem": step.unfit or step.broken,
    }
