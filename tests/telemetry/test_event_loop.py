"""The lag of the event loop and the pauses of the garbage collector reach the metrics."""

import asyncio
import gc
import time

import pytest

from app.telemetry.event_loop import INTERVAL_S, EventLoopMonitor
from app.telemetry.metrics import Metrics


@pytest.fixture
async def metrics():
    metrics = Metrics()
    monitor = EventLoopMonitor(metrics)
    yield metrics
    monitor.close()


async def test_blocking_the_loop_is_measured_as_lag(metrics):
    time.sleep(INTERVAL_S + 0.05)  # noqa: ASYNC251  (the test blocks the loop on purpose)
    await asyncio.sleep(0.01)
    sample = metrics.registry.get_sample_value
    assert sample("gatehouse_event_loop_lag_seconds_count") >= 1  # more on a slow machine
    assert sample("gatehouse_event_loop_lag_seconds_sum") >= 0.05


async def test_cpu_time_of_the_loop_leaves_out_other_threads_and_waiting(metrics):
    def spent_s() -> float:
        value = metrics.registry.get_sample_value("gatehouse_event_loop_cpu_seconds_total")
        assert value is not None
        return float(value)

    def compute(cpu_s: float) -> None:
        began = time.thread_time()
        while time.thread_time() - began < cpu_s:
            pass

    assert 0 <= spent_s() < 0.05  # not what the thread did before there was a loop
    before = spent_s()
    await asyncio.to_thread(compute, 0.1)
    assert spent_s() - before < 0.05
    compute(0.1)
    assert 0.1 <= spent_s() - before < 0.2


async def test_each_collection_is_counted_by_generation(metrics):
    gc.collect()
    gc.collect(0)
    await asyncio.sleep(INTERVAL_S * 1.5)
    sample = metrics.registry.get_sample_value
    assert sample("gatehouse_gc_pause_seconds_count", {"generation": "2"}) >= 1
    assert sample("gatehouse_gc_pause_seconds_count", {"generation": "0"}) >= 1
    assert sample("gatehouse_gc_pause_seconds_sum", {"generation": "2"}) > 0


async def test_close_removes_the_callback_of_the_garbage_collector():
    before = list(gc.callbacks)
    EventLoopMonitor(Metrics()).close()
    assert gc.callbacks == before
