"""The hardware: how many lanes there are, and what they run beforehand."""

import pytest
import torch

from app.engine import hardware
from app.engine.gpu.buckets import Buckets
from app.engine.hardware import device_named, start_lanes, warm_up_batches
from app.telemetry.metrics import Metrics
from tests.support.builders import CPU


@pytest.mark.parametrize(
    ("cores", "asked", "processes", "lanes"),
    [(4, None, 1, 4), (4, None, 2, 2), (5, None, 2, 2), (1, None, 8, 1), (4, 3, 2, 3)],
)
async def test_processes_share_the_cores_unless_told(monkeypatch, cores, asked, processes, lanes):
    monkeypatch.setattr(hardware, "usable_cores", lambda: cores)
    started = start_lanes(
        CPU, asked, processes=processes, max_batch_rows=64, metrics=Metrics(), on_lost=lambda: None
    )
    assert [lane.name for lane in started] == [f"lane-{i}" for i in range(lanes)]
    for lane in started:
        lane.stop()


def test_auto_is_a_gpu_where_there_is_one():
    assert device_named("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_named("cpu") == CPU


def test_a_cpu_runs_the_least_the_knee_and_the_most_as_one_request_and_as_two():
    batches = warm_up_batches(CPU, min_chunk_rows=64, max_batch_rows=512)
    assert batches == [(1,), (1, 1), (64,), (1, 63), (512,), (1, 511)]


def test_a_gpu_runs_every_bucket_the_largest_first():
    batches = warm_up_batches(torch.device("cuda"), min_chunk_rows=64, max_batch_rows=500)
    buckets = Buckets(500)
    assert {buckets.fit(sum(each), len(each)) for each in batches} == set(buckets)
    rows = [sum(each) for each in batches]
    assert rows == sorted(rows, reverse=True)
