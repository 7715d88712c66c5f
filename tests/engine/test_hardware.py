"""The hardware: how many lanes there are, and which batches they run at warm-up."""

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
async def test_processes_share_the_cores_unless_lanes_are_set(
    monkeypatch, cores, asked, processes, lanes
):
    monkeypatch.setattr(hardware, "usable_cores", lambda: cores)
    started = start_lanes(
        CPU, asked, processes=processes, max_batch_rows=64, metrics=Metrics(), on_lost=lambda: None
    )
    assert [lane.name for lane in started] == [f"lane-{i}" for i in range(lanes)]
    for lane in started:
        lane.stop()


def test_auto_is_a_gpu_if_there_is_one():
    assert device_named("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_named("cpu") == CPU


def test_warm_up_of_a_cpu_runs_three_sizes_as_one_request_and_as_two():
    batches = warm_up_batches(CPU, min_chunk_rows=64, max_batch_rows=512)
    assert batches == [(1,), (1, 1), (64,), (1, 63), (512,), (1, 511)]


def test_warm_up_of_a_gpu_runs_every_bucket_and_the_largest_first():
    batches = warm_up_batches(torch.device("cuda"), min_chunk_rows=64, max_batch_rows=500)
    buckets = Buckets(500)
    assert {buckets.fit(sum(each), len(each)) for each in batches} == set(buckets)
    rows = [sum(each) for each in batches]
    assert rows == sorted(rows, reverse=True)


def test_cores_are_limited_by_the_quota_and_at_least_one(monkeypatch):
    assert hardware.usable_cores() >= 1
    monkeypatch.setattr(hardware, "cgroup_quota", lambda _folder: 0.5)
    assert hardware.usable_cores() == 1


@pytest.mark.parametrize(("text", "quota"), [("200000 100000", 2.0), ("max 100000", None)])
def test_quota_of_a_cgroup_is_read(tmp_path, text, quota):
    (tmp_path / "cpu.max").write_text(text)
    assert hardware.cgroup_quota(tmp_path) == quota


def test_quota_of_a_cgroup_of_version_1_is_read(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert hardware.cgroup_quota(tmp_path) == 1.5


def test_without_a_cgroup_there_is_no_quota(tmp_path):
    assert hardware.cgroup_quota(tmp_path) is None
