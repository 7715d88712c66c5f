"""Objectives: what breaks one, what the generator is to blame for, and the search of a sweep."""

import pytest

from app.benchmarking.load import UNANSWERED, Plan, Report
from app.benchmarking.objective import Objective, highest, sweep


def report_of(
    rate, *, p99_ms=5.0, failed=0, status_of_failed=503, lag_ms=0.0, busiest=0.1, count=1000
) -> Report:
    """A report of `count` requests: one in fifty takes `p99_ms`, the others 1 ms."""
    rows = []
    for number in range(count):
        latency_ms = p99_ms if number % 50 == 0 else 1.0
        status = status_of_failed if number < failed else 200
        rows.append((0, status, latency_ms / 1e3, False, lag_ms / 1e3, number / rate, lag_ms / 1e3))
    return Report.of_rows(Plan(1, [b""], rate=rate, seconds=count / rate), rows, busiest)


def test_p99_and_errors_break_an_objective():
    objective = Objective(p99_ms=10, errors=0.01)
    assert objective.broken(report_of(100)) is None
    assert objective.broken(report_of(100, p99_ms=11)) == "p99 11.00 ms > 10 ms"
    assert objective.broken(report_of(100, failed=11)) == "1.10% failed > 1.00%"
    assert objective.broken(report_of(100, failed=10)) is None
    assert Objective().broken(report_of(100, failed=999)) is None
    assert Objective().broken(report_of(100, failed=1000)) == "no response has status 200"


def test_requests_without_a_response_break_an_objective_that_does_not_allow_failures():
    report = report_of(100, failed=3, status_of_failed=UNANSWERED)
    assert Objective(p99_ms=10).broken(report) == "3 without a response"
    assert Objective().broken(report) == "3 without a response"
    assert Objective(errors=0.01).broken(report) is None


def test_generator_is_not_to_blame_if_no_request_succeeded():
    refused = report_of(100, failed=1000, status_of_failed=422, lag_ms=1.3)
    assert Objective().unfit(refused) is None
    assert Objective().broken(refused) == "no response has status 200"


def test_result_is_unfit_when_the_generator_was_the_bottleneck():
    objective = Objective(p99_ms=10)
    assert objective.unfit(report_of(100, lag_ms=2.4)) is None
    assert objective.unfit(report_of(100, lag_ms=2.6)) == "generator lagged 2.60 ms"
    assert objective.unfit(report_of(100, busiest=0.96)) == "generator used 96% of a core"
    # Without an objective, the p99 that was measured counts: 5 ms.
    assert Objective().unfit(report_of(100, lag_ms=1.2)) is None
    assert Objective().unfit(report_of(100, lag_ms=1.3)) is not None


@pytest.mark.parametrize("capacity", [40, 105, 777, 12_345])
def test_sweep_finds_the_highest_rate_within_its_precision(capacity):
    measured = []

    def measure(rate):
        measured.append(rate)
        return report_of(rate, p99_ms=5 if rate <= capacity else 50)

    steps = sweep(measure, Objective(p99_ms=10), 25)
    best = highest(steps)
    assert best is not None
    assert capacity / 1.05 <= best.rate <= capacity
    assert measured[0] == 25
    assert len(measured) < 40


def test_sweep_forgives_one_disturbance():
    disturbed = {50.0, 100.0}

    def measure(rate):
        bad = rate > 150 or rate in disturbed
        disturbed.discard(rate)
        return report_of(rate, p99_ms=50 if bad else 5)

    best = highest(sweep(measure, Objective(p99_ms=10), 25))
    assert best is not None
    assert best.rate > 140


def test_sweep_ends_at_once_if_the_first_rate_breaks():
    steps = sweep(lambda rate: report_of(rate, p99_ms=50), Objective(p99_ms=10), 25)
    assert [step.rate for step in steps] == [25, 25]
    assert highest(steps) is None


def test_sweep_does_not_take_a_rate_that_the_generator_cannot_send():
    steps = sweep(lambda r: report_of(r, lag_ms=9 if r > 300 else 0), Objective(p99_ms=10), 25)
    best = highest(steps)
    assert best is not None
    assert best.rate <= 300
    assert steps[-1].unfit is not None or steps[-1].is_met
