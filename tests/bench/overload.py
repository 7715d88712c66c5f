"""Measure goodput and latency of the service under overload.

    python -m tests.bench.overload [--seconds 10] [--out tests/bench/overload.svg]

A model of known cost (`tests.bench.slow_model`) on one lane receives 0.5, 1, 2, 5 and 10 times its
capacity in an open loop (`app.benchmarking.load`), with a deadline. Its capacity of about 70
requests per second is less than a fiftieth of what the HTTP front end can accept, so the result
depends on admission, not on the cost of refusals. One lane leaves the second core to the event loop
and to the load generator.

A good response has status 200 and reaches the client within the deadline, by the client's clock.
Shares of the peak are computed from rows per second. A late response has status 200 after the
deadline: by the client's clock, or by the server's own log, where there must be none. The
scenarios: requests of 8 rows; one in ten with 2000 rows; one in ten with high priority and the
others low.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from app.artifacts.store import Store
from app.benchmarking.load import Plan, Report, fire, http
from tests.bench.slow_model import publish_slow
from tests.support.server import Server, standalone_server

TIMES = (0.5, 1.0, 2.0, 5.0, 10.0)
PATIENT_MS = 60_000


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: its size, its priority, and its share of all."""

    name: str
    share: float
    rows: int = 8
    priority: str = "normal"

    def request(self, timeout_ms: int) -> bytes:
        """Return the complete HTTP request."""
        body = json.dumps({"candidates": {"c": list(range(1, self.rows + 1))}}).encode()
        return http(
            "/v1/models/slow/score",
            body,
            {
                "content-type": "application/json",
                "x-request-timeout-ms": str(timeout_ms),
                "x-request-priority": self.priority,
            },
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """A mix of requests, and the cost of the model that receives them."""

    name: str
    kinds: Sequence[Kind]
    batch_s: float = 0.020
    row_s: float = 0.00125
    max_batch_rows: int = 32
    min_chunk_rows: int = 8

    def plan(self, port: int, timeout_ms: int, seconds: float) -> Plan:
        """Return the plan for the load generator."""
        requests = [kind.request(timeout_ms) for kind in self.kinds]
        weights = [kind.share for kind in self.kinds]
        return Plan(port, requests, weights, seconds, connections=900)


SCENARIOS = (
    Scenario("8 rows", [Kind("all", 1.0)]),
    Scenario(
        "8 rows and 2000",
        [Kind("8 rows", 0.9), Kind("2000 rows", 0.1, rows=2000)],
        row_s=0.00003,
        max_batch_rows=512,
        min_chunk_rows=64,
    ),
    Scenario(
        "high priority and low",
        [Kind("high", 0.1, priority="high"), Kind("low", 0.9, priority="low")],
    ),
)


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one offered rate."""

    times: float
    report: Report
    late_at_server: int


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """The result of a scenario. `capacity` is its rate without deadlines (requests/s)."""

    scenario: Scenario
    capacity: float
    deadline_ms: int
    steps: list[Step] = field(default_factory=list)

    @property
    def peak(self) -> float:
        """Maximum goodput of all steps (rows/s)."""
        return max(self.goodput(step) for step in self.steps)

    def goodput(self, step: Step) -> float:
        """Return the rows per second of good responses.

        Counting requests would favor a server that admits only small ones.
        """
        parts = [step.report.of([number]) for number in range(len(self.scenario.kinds))]
        rates = [part.rate_within(self.deadline_ms / 1e3) for part in parts]
        return sum(rate * kind.rows for rate, kind in zip(rates, self.scenario.kinds, strict=True))


def run(
    scenario: Scenario, deadline_ms: int, seconds: float, times: Sequence[float]
) -> ScenarioResult:
    """Measure the capacity of a scenario, then offer multiples of it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        publish_slow(Store(folder / "store"), batch_s=scenario.batch_s, row_s=scenario.row_s)
        flags = {
            "--lanes": 1,
            "--max-batch-rows": scenario.max_batch_rows,
            "--min-chunk-rows": scenario.min_chunk_rows,
            "--slow-request-ms": deadline_ms,  # so that later responses are logged
        }
        arguments = [str(word) for flag in flags.items() for word in flag]
        with standalone_server(folder / "store", folder / "log", *arguments) as server:
            port = int(server.url.rsplit(":", 1)[1])
            patient = scenario.plan(port, PATIENT_MS, seconds)
            capacity = fire(replace(patient, connections=24)).rate_within()
            result = ScenarioResult(scenario, capacity, deadline_ms)
            plan = scenario.plan(port, deadline_ms, seconds)
            for multiple in times:
                before = len(late(server, deadline_ms))
                report = fire(replace(plan, rate=capacity * multiple))
                later = len(late(server, deadline_ms)) - before
                result.steps.append(Step(multiple, report, later))
    return result


def late(server: Server, deadline_ms: int) -> list[Mapping[str, object]]:
    """Return log entries of responses with status 200 that took longer than the deadline."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    timed = [line for line in lines if line.get("route") == "/v1/models/{model}/score"]
    return [line for line in timed if line["status"] == 200 and line["ms"] > deadline_ms]


def table(result: ScenarioResult) -> str:
    """Return the table of a scenario in Markdown, with one row per step and kind of request."""
    lines = [
        f"### {result.scenario.name}: {result.capacity:.0f} requests/s, "
        f"deadline {result.deadline_ms} ms\n",
        "| offered | of | good, 1/s | rows, of peak | p50 | p99 | 429 | 503 | 504 | unanswered "
        "| refused without Retry-After | late, caller | late, server |",
        "| ---: | --- |" + " ---: |" * 11,
    ]
    for step in result.steps:
        lines += [_line(result, step, "all", step.report, step.late_at_server)]
        if len(result.scenario.kinds) > 1:
            for number, kind in enumerate(result.scenario.kinds):
                lines += [_line(result, step, kind.name, step.report.of([number]), None)]
    return "\n".join(lines)


def _line(
    result: ScenarioResult, step: Step, name: str, report: Report, late_at_server: int | None
) -> str:
    statuses = report.statuses
    deadline_s = result.deadline_ms / 1e3
    goodput = report.rate_within(deadline_s)
    silent = np.isin(report.status, (429, 503)) & ~report.told_when
    late_here = (report.status == 200) & (report.latency_s > deadline_s)
    cells = [
        f"{step.times:g} ×",
        name,
        f"{goodput:.1f}",
        f"{result.goodput(step) / result.peak:.0%}" if name == "all" else "",
        *(f"{report.latency_ms(share):.0f} ms" if goodput else "" for share in (0.5, 0.99)),
        *(statuses.get(status, 0) for status in (429, 503, 504, 0)),
        silent.sum(),
        late_here.sum(),
        "" if late_at_server is None else late_at_server,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def plot(results: Sequence[ScenarioResult], out: Path) -> None:
    """Plot goodput and p99 by offered load."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"  # keep text as text, which makes the file small
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    goodput, latency = figure.subplots(1, 2)
    for result in results:
        times = [step.times for step in result.steps]
        shares = [result.goodput(step) / result.peak for step in result.steps]
        goodput.plot(times, shares, marker="o", label=result.scenario.name)
        p99s = [step.report.latency_ms(0.99) for step in result.steps]
        latency.plot(times, p99s, marker="o", label=result.scenario.name)
        latency.axhline(result.deadline_ms, color="grey", linestyle=":")
    goodput.set(title="Rows in time, as a share of the peak", ylim=(0, 1.05))
    latency.set(title="p99 of accepted (ms); dotted: the deadline", ylim=(0, None))
    for axes in (goodput, latency):
        axes.set(xscale="log", xlabel="offered load, as a multiple of the capacity")
        axes.set_xticks(times, [f"{multiple:g}" for multiple in times])
        axes.minorticks_off()
    goodput.legend(frameon=False)
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=10, help="duration of each step (default: 10)"
    )
    parser.add_argument(
        "--deadline-ms", type=int, default=250, help="deadline of requests (default: 250)"
    )
    parser.add_argument(
        "--times", type=float, nargs="+", default=TIMES, help="multiples of the capacity"
    )
    parser.add_argument("--out", type=Path, help="file for the plot: .svg or .png")
    options = parser.parse_args()
    results = []
    for scenario in SCENARIOS:
        results.append(run(scenario, options.deadline_ms, options.seconds, options.times))
        print(table(results[-1]) + "\n", flush=True)
    if options.out:
        plot(results, options.out)


if __name__ == "__main__":
    main()
