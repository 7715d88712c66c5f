"""The simulated replica against queueing theory and against hand-made cases."""

from dataclasses import replace

import numpy as np
import pytest

from app.benchmarking.replica import (
    Replica,
    _Simulation,
    capacity,
    fleet,
    forecast,
    longest_inline_s,
)
from app.engine import inline

FREE = 1e-9  # costs nothing
ONE_BY_ONE = Replica(
    rows=1, front_s=FREE, batch_s=1e-3, row_s=FREE, lanes=1, cores=99, max_batch_rows=1,
    min_chunk_rows=1,
)  # fmt: skip
REPLICA = Replica(rows=50, front_s=3e-4, batch_s=2e-4, row_s=1e-5, lanes=2, cores=2)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_lane_without_batches_waits_as_long_as_theory_says(load):
    """M/D/1: the mean wait is ρ s / (2 (1 - ρ)) (Pollaczek and Khinchine)."""
    latencies_s, busy = _Simulation(ONE_BY_ONE, load * 1000, seed=1).run()
    theory_s = load * 1e-3 / (2 * (1 - load))
    assert latencies_s.mean() - 1e-3 == pytest.approx(theory_s, rel=0.15)
    assert busy == pytest.approx(load, rel=0.05)


def test_lone_request_takes_its_costs():
    lone = forecast(REPLICA, 0.1)
    assert lone.p50_s == pytest.approx(3e-4 + 2e-4 + 50 * 1e-5, rel=1e-6)


def test_large_request_is_shared_by_idle_lanes():
    replica = Replica(rows=500, front_s=FREE, batch_s=2e-4, row_s=1e-5, lanes=2, cores=2)
    assert forecast(replica, 0.1).p50_s == pytest.approx(2e-4 + 250 * 1e-5, rel=1e-6)
    one_core = Replica(rows=500, front_s=FREE, batch_s=2e-4, row_s=1e-5, lanes=2, cores=1)
    assert forecast(one_core, 0.1).p50_s == pytest.approx(2 * (2e-4 + 250 * 1e-5), rel=1e-6)


def test_lone_request_waits_for_others_as_long_as_the_setting_says():
    patient = replace(REPLICA, max_wait_s=2e-3)
    lone_s = forecast(REPLICA, 0.1).p50_s
    assert forecast(patient, 0.1).p50_s == pytest.approx(lone_s + 2e-3, rel=1e-6)


def test_full_batch_does_not_wait():
    full = replace(REPLICA, max_batch_rows=50, min_chunk_rows=50, lanes=1)
    patient = replace(full, max_wait_s=2e-3)
    assert forecast(patient, 100) == forecast(full, 100)


def test_waiting_for_more_rows_makes_batches_larger_and_lanes_less_busy():
    patient = replace(REPLICA, rows=10, max_wait_s=5e-3)
    eager = replace(patient, max_wait_s=0.0)
    assert forecast(patient, 1000).lane_share < 0.8 * forecast(eager, 1000).lane_share


def test_short_batches_are_those_of_the_server():
    for requests in range(1, 100):
        assert longest_inline_s(requests) == inline.longest_inline_s(requests)


def test_short_batch_runs_on_the_event_loop():
    short = Replica(rows=1, front_s=5e-5, batch_s=1e-4, row_s=1e-5, lanes=2, cores=9)
    found = forecast(short, 5000)
    on_lanes = forecast(replace(short, runs_inline=False), 5000)
    assert found.p50_s < 1e-3
    # Requests queue behind the batch on the loop; on a lane they would not.
    assert found.p99_s > on_lanes.p99_s
    assert forecast(short, 0.1).p50_s == pytest.approx(1.6e-4, rel=1e-6)


def test_batches_grow_with_the_load_up_to_their_limit():
    """One row at a time a lane does 1/(a + b), in batches of 64 rows far more."""
    replica = Replica(rows=1, front_s=FREE, batch_s=1e-3, row_s=1e-5, lanes=1, cores=9)
    found = capacity(replica, 0.02)
    assert found is not None
    assert found.rate > 20 / (1e-3 + 1e-5)
    assert found.rate <= replica.limits["lanes"]


@pytest.mark.no_cover
def test_capacity_is_below_every_limit_and_meets_the_objective():
    found = capacity(REPLICA, 0.05)
    assert found is not None
    assert found.p99_s <= 0.05
    assert 0.8 * min(REPLICA.limits.values()) < found.rate <= min(REPLICA.limits.values())
    assert forecast(REPLICA, found.rate * 1.2).p99_s > 0.05
    tight = capacity(REPLICA, 0.003)
    assert tight is not None
    assert tight.rate < found.rate


@pytest.mark.no_cover
def test_slowest_part_is_the_limit():
    assert min(REPLICA.limits, key=lambda part: REPLICA.limits[part]) == "cores"
    gpu = Replica(rows=50, front_s=3e-4, batch_s=2e-4, row_s=1e-7, lanes=2, cores=2, is_gpu=True)
    assert gpu.limits.keys() == {"event loop", "lanes"}
    found = capacity(gpu, 0.05)
    assert found is not None
    assert found.front_share > 0.9


def test_objective_below_a_lone_request_cannot_be_met():
    assert capacity(REPLICA, 0.0009) is None
    assert fleet(REPLICA, 1000, 0.0009, 0.3) is None


@pytest.mark.no_cover
def test_replicas_leave_the_headroom():
    plan = fleet(REPLICA, 10_000, 0.05, 0.3)
    assert plan is not None
    assert plan.planned.rate * plan.replicas == pytest.approx(10_000)
    assert plan.planned.rate <= 0.7 * plan.limit.rate
    assert 10_000 / (plan.replicas - 1) > 0.7 * plan.limit.rate  # one less is too few
    assert np.isfinite(plan.planned.p99_s)
    assert plan.planned.p99_s < plan.limit.p99_s
