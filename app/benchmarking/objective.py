"""The objective of a benchmark: whether a rate meets it, and the highest rate that does."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from app.benchmarking.load import UNANSWERED, Report

_LAG_SHARE = 0.25
"""A lag (p99) above this part of the latency that is judged makes the result useless."""
_LEAST_LAG_MS = 0.5
"""A lag below this is never held against a result."""
_BUSIEST = 0.95
"""A process of the generator that uses more of a core is at its limit."""
_LARGEST_STEP = 2.0


@dataclass(frozen=True, slots=True)
class Objective:
    """What a rate must meet.

    Attributes:
        p99_ms: the most that the 99th percentile of the latency may be; None is any.
        errors: the largest share of requests that may fail; None is any.
    """

    p99_ms: float | None = None
    errors: float | None = None

    def broken(self, report: Report) -> str | None:
        """Return what the objective lacks in a report, or None if it is met.

        A report without a single good response meets no objective, not even an empty one. Nor does
        one with unanswered requests, unless the objective says how many may fail.
        """
        if 200 not in report.statuses:
            return "no response has status 200"
        unanswered = report.statuses.get(UNANSWERED, 0)
        if unanswered and self.errors is None:
            return f"{unanswered:,} without a response"
        if self.errors is not None and report.error_ratio > self.errors:
            return f"{report.error_ratio:.2%} failed > {self.errors:.2%}"
        p99_ms = report.latency_ms(0.99)
        if self.p99_ms is not None and not p99_ms <= self.p99_ms:
            return f"p99 {p99_ms:.2f} ms > {self.p99_ms:g} ms"
        return None

    def unfit(self, report: Report) -> str | None:
        """Return why a report says nothing about the server: the generator was the bottleneck.

        Its lag is part of every latency, so a p99 that is mostly lag is not the server's. None if
        the generator kept up.
        """
        if report.rate is None or 200 not in report.statuses:
            return None
        if report.busiest > _BUSIEST:
            return f"generator used {report.busiest:.0%} of a core"
        lag_ms = report.lag_ms(0.99)
        judged_ms = report.latency_ms(0.99) if self.p99_ms is None else self.p99_ms
        if lag_ms > max(_LEAST_LAG_MS, _LAG_SHARE * judged_ms):
            return f"generator lagged {lag_ms:.2f} ms"
        return None


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one rate of a sweep."""

    rate: float
    report: Report
    broken: str | None
    unfit: str | None

    @property
    def is_met(self) -> bool:
        """Whether the rate meets the objective, by a generator that kept up."""
        return self.broken is None and self.unfit is None


def sweep(
    measure: Callable[[float], Report],
    objective: Objective,
    start: float,
    *,
    precision: float = 1.05,
    on_step: Callable[[Step], None] = lambda _: None,
) -> list[Step]:
    """Double the rate until the objective breaks, then halve the interval in between.

    A rate counts as broken when it breaks twice, so that one disturbance does not end the search.
    The sweep ends where the generator cannot keep up twice, too.

    Args:
        measure: sends requests at a rate (1/s).
        objective: what a rate must meet.
        start: the first rate.
        precision: the search ends when the lowest rate that breaks is at most so many times the
            highest that does not.
        on_step: called after every measurement.

    Returns:
        Every measurement, in order; `highest` takes the best of them.
    """
    steps: list[Step] = []

    def is_met(rate: float) -> bool:
        for _ in range(2):
            report = measure(rate)
            step = Step(rate, report, objective.broken(report), objective.unfit(report))
            steps.append(step)
            on_step(step)
            if step.is_met:
                return True
        return False

    low, high = 0.0, start
    while is_met(high):
        low, high = high, high * _LARGEST_STEP
    if low == 0:
        return steps
    while high / low > precision:
        middle = math.sqrt(low * high)
        if is_met(middle):
            low = middle
        else:
            high = middle
    return steps


def highest(steps: list[Step]) -> Step | None:
    """Return the step with the highest rate that met the objective, or None."""
    return max((step for step in steps if step.is_met), key=lambda step: step.rate, default=None)
