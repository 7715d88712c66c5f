"""The hardware: how many lanes there are, and what they run beforehand."""

import pytest
import torch

from app.engine import hardware
from app.engine.buckets import Buckets
from app.engine.hardware import device_named, start_lanes, warm_up_rows
from app.telemetry.metrics import Metrics
from tests.app.builders import CPU


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


def test_a_cpu_runs_the_least_the_knee_and_the_most_and_a_gpu_every_bucket():
    assert warm_up_rows(CPU, min_piece_rows=64, max_batch_rows=512) == [1, 64, 512]
    assert warm_up_rows(CPU, min_piece_rows=1, max_batch_rows=1) == [1]
    rows = warm_up_rows(torch.device("cuda"), min_piece_rows=64, max_batch_rows=512)
    assert rows == sorted({bucket.rows for bucket in Buckets(512)}, reverse=True)
