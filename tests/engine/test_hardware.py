"""The hardware: how many lanes there are, and which batches they run at warm-up."""

from pathlib import Path

import pytest
import torch

from app.engine import hardware
from app.engine.gpu.buckets import Buckets
from app.engine.hardware import device_named, device_tables, start_lanes, warm_up_batches
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


def test_tables_stay_on_the_host_of_a_cpu_and_without_a_budget():
    assert device_tables(CPU, 10**9) is None
    assert device_tables(torch.device("cuda"), 0) is None


def test_warm_up_of_a_cpu_runs_three_sizes_as_one_request_and_as_two():
    batches = warm_up_batches(CPU, min_chunk_rows=64, max_batch_rows=512)
    assert batches == [(1,), (1, 1), (64,), (1, 63), (512,), (1, 511)]


def test_warm_up_of_a_gpu_runs_every_bucket_and_the_largest_first():
    batches = warm_up_batches(torch.device("cuda"), min_chunk_rows=64, max_batch_rows=500)
    buckets = Buckets(500)
    assert {buckets.fit(sum(sizes), len(sizes)) for sizes in batches} == set(buckets)
    rows = [sum(sizes) for sizes in batches]
    assert rows == sorted(rows, reverse=True)


def test_usable_cores_are_at_least_one_and_within_the_quota(monkeypatch):
    assert hardware.usable_cores() >= 1
    monkeypatch.setattr(hardware, "cgroup_quota", lambda: 0.5)
    assert hardware.usable_cores() == 1


class Machine:
    """A /proc/self and mounted cgroups, made of files."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.mount_point = folder / "proc", folder / "cg"
        self.proc.mkdir()

    def mount(self, *, v2: bool, root: str, path: str) -> None:
        """Mount a hierarchy that shows `root`; the process is in its group `path`."""
        point = str(self.mount_point).replace(" ", "\\040")
        kind = "cgroup2 cgroup2 rw" if v2 else "cgroup cgroup rw,cpu,cpuacct"
        cpuset = "cgroup cgroup rw,cpuset"
        (self.proc / "mountinfo").write_text(
            "23 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
            f"32 31 0:28 / /elsewhere rw - {cpuset}\n"
            f"33 31 0:29 {root} {point} rw,relatime shared:9 - {kind}\n"
        )
        own = f"0::{path}" if v2 else f"4:cpu,cpuacct:{path}\n0::/unmounted"
        (self.proc / "cgroup").write_text(f"9:cpuset:/other\n{own}\n")

    def limit(self, group: str, quota: str, *, v2: bool) -> None:
        folder = self.mount_point / group
        folder.mkdir(parents=True, exist_ok=True)
        if v2:
            (folder / "cpu.max").write_text(f"{quota.replace('-1', 'max')} 100000\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (folder / "cpu.cfs_period_us").write_text("100000\n")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("v2", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize(
    ("root", "path", "quotas", "cores"),
    [
        ("/", "/", {"": "150000"}, 1.5),  # a container with a namespace of its own
        ("/", "/a/b", {"": "-1", "a": "-1", "a/b": "200000"}, 2.0),  # systemd's CPUQuota=
        ("/", "/a/b", {"a": "100000", "a/b": "-1"}, 1.0),
        ("/", "/a/b", {"a": "100000", "a/b": "400000"}, 1.0),  # the least one counts
        ("/", "/a", {"a": "-1", "b": "100000"}, None),  # somebody else's
        ("/docker/1", "/docker/1", {"": "300000"}, 3.0),  # a container without a namespace
        ("/docker/1", "/docker/1/a", {"": "-1", "a": "50000"}, 0.5),
        ("/", "/../elsewhere", {"": "250000"}, 2.5),  # moved out of the namespace
        ("/", "/a", {}, None),
    ],
)
def test_a_cpu_quota_on_any_group_above_the_process_is_seen(machine, v2, root, path, quotas, cores):
    machine.mount(v2=v2, root=root, path=path)
    for group, quota in quotas.items():
        machine.limit(group, quota, v2=v2)
    assert hardware.cgroup_quota(machine.proc) == cores


def test_a_mount_point_with_a_space_is_found(tmp_path):
    (tmp_path / "a b").mkdir()
    machine = Machine(tmp_path / "a b")
    machine.mount(v2=True, root="/", path="/")
    machine.limit("", "100000", v2=True)
    assert hardware.cgroup_quota(machine.proc) == 1.0


@pytest.mark.parametrize("text", ["", "nonsense", "100000 0"])
def test_unreadable_quota_is_ignored(machine, text):
    machine.mount(v2=True, root="/", path="/")
    machine.mount_point.mkdir()
    (machine.mount_point / "cpu.max").write_text(text)
    assert hardware.cgroup_quota(machine.proc) is None


def test_a_machine_without_cgroups_has_no_quota(tmp_path):
    assert hardware.cgroup_quota(tmp_path) is None
