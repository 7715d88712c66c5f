"""The hardware: the device that models run on, its lanes, and their warm-up batches."""

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from app.engine.gpu.buckets import Buckets
from app.engine.gpu.cuda import CudaStream, memory_bytes
from app.engine.gpu.graphs import Fallbacks, GraphExecutor, Stream
from app.engine.gpu.tables import DeviceTables
from app.engine.lanes import Lane, Staging, run, use_threads
from app.telemetry.metrics import Metrics

_GPU_LANES = 2  # one copies while the other computes


def device_named(name: str) -> torch.device:
    """Return the device of this name; `auto` is a GPU if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def device_tables(device: torch.device, budget: int) -> DeviceTables | None:
    """Return the item tables of a GPU, none yet; None on a CPU, or if they may take no memory.

    Args:
        device: where models run.
        budget: most memory of all tables together (bytes).
    """
    if device.type == "cpu" or not budget:
        return None
    return DeviceTables(CudaStream(device), budget)


def start_lanes(
    device: torch.device,
    count: int | None,
    *,
    processes: int,
    max_batch_rows: int,
    metrics: Metrics,
    on_lost: Callable[[], None],
    tables: DeviceTables | None = None,
) -> list[Lane]:
    """Start the lanes of a device; call it on the event loop.

    Args:
        device: where they run batches.
        count: how many lanes. None means two on a GPU; on a CPU, one for each usable core of this
            process's share, at least one.
        processes: how many processes share the cores.
        max_batch_rows: on a GPU, the largest batch that has a CUDA graph.
        metrics: counts GPU memory and batches without CUDA graphs.
        on_lost: called when the device will never compute again.
        tables: item tables in the memory of a GPU.
    """
    loop = asyncio.get_running_loop()
    if device.type == "cpu":
        share = max(1, usable_cores() // processes)
        use_threads(1)  # by batches that run on the event loop
        return [
            Lane(
                f"lane-{i}",
                loop,
                executor=partial(run, collate_into=Staging().collate),
                runs_inline=True,
            )
            for i in range(count or share)
        ]
    reads = memory_bytes(device)
    if tables is not None:
        reads["tables"] = tables.bytes
    metrics.watch_device_memory(reads)
    fallbacks = Fallbacks(metrics)
    streams: list[Stream] = [CudaStream(device) for _ in range(count or _GPU_LANES)]
    return [
        Lane(
            f"lane-{i}",
            loop,
            executor=GraphExecutor(
                stream, max_batch_rows=max_batch_rows, fallbacks=fallbacks, tables=tables
            ),
            on_lost=on_lost,
        )
        for i, stream in enumerate(streams)
    ]


def warm_up_batches(
    device: torch.device, *, min_chunk_rows: int, max_batch_rows: int
) -> list[tuple[int, ...]]:
    """Return the warm-up batches of a model.

    A batch is given by the number of rows of each request in it. Each size runs as one request and
    as two, because a program may be specialised to either. On a GPU the sizes are those of all
    buckets, and each also runs as one request per row. The largest bucket comes first, so that the
    other graphs reuse its memory.
    """
    if device.type == "cpu":
        sizes = sorted({1, min_chunk_rows, max_batch_rows})
        return [batch for rows in sizes for batch in ((rows,), (1, max(1, rows - 1)))]
    sizes = Buckets(max_batch_rows).rows[::-1]
    return [batch for rows in sizes for batch in ((rows,), (1, max(1, rows - 1)), (1,) * rows)]


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, or its cgroup's quota if less."""
    cores = len(os.sched_getaffinity(0))
    quota = cgroup_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def cgroup_quota(proc: Path = Path("/proc/self")) -> float | None:
    """Return the CPU quota of a process in cores, or None where there is none.

    The quotas of all parent groups apply too: the lowest one counts. Cgroup v1, v2 or both may be
    mounted (cgroups(7), /proc/pid/cgroup and mountinfo).
    """
    quotas: list[float] = []
    for own, mount_point in _cpu_groups(proc):
        for group in (own, *own.parents):
            quota = _quota(group)
            if quota is not None:
                quotas.append(quota)
            if group == mount_point:
                break
    return min(quotas, default=None)


def _cpu_groups(proc: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folder of a process's cgroup and its mount point, for each hierarchy with CPU."""
    paths: dict[str, str] = {}  # path of the process's group, by file system type
    with suppress(OSError):
        for line in (proc / "cgroup").read_text("utf-8", "surrogateescape").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                paths["cgroup2"] = path
            elif "cpu" in controllers.split(","):
                paths["cgroup"] = path
        for line in (proc / "mountinfo").read_text("utf-8", "surrogateescape").splitlines():
            mount, _, system = line.partition(" - ")
            root, mount_point = map(_unescaped, mount.split()[3:5])
            kind, _, options = system.split()[:3]
            if kind not in paths or (kind == "cgroup" and "cpu" not in options.split(",")):
                continue
            # In a container, the mount may be its own group, under the host's path.
            relative = os.path.relpath(paths[kind], root)
            is_inside = not relative.startswith("..")
            yield Path(mount_point, relative if is_inside else "."), Path(mount_point)


def _unescaped(field: str) -> str:
    """Undo mountinfo's octal escapes of spaces and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _quota(group: Path) -> float | None:
    """Return the quota of one group (v2, else v1) in cores, or None."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (group / "cpu.max").read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota_us = int((group / "cpu.cfs_quota_us").read_text("ascii"))
        period_us = int((group / "cpu.cfs_period_us").read_text("ascii"))
        return quota_us / period_us if quota_us > 0 else None
    return None
