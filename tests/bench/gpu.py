"""Measure the service on this GPU, in process and over HTTP: ``python -m tests.bench.gpu``.

Prints for the network of `tests.bench.http`:

- for each bucket, from collating to scores as a lane does it: a loop over experts and stacked
  experts, both eager, and stacked experts replayed from a CUDA graph in fp32 and in bf16; medians
  of alternating turns, and candidates per second;
- 500 candidates of an items table, from collating to scores: with their features, as keys gathered
  on the host, and as keys gathered on the GPU;
- candidates per second in process, by number of lanes;
- the share of copy time that overlaps with kernels of another lane, from a profiler trace;
- requests of 500 candidates over HTTP, binary, JSON and keys only, with the table on the host and
  on the GPU: rate, p50, p99, candidates per second.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import torch

from app.artifacts.columns import ModelInputs
from app.artifacts.golden import Golden
from app.artifacts.inputs import DenseInput
from app.artifacts.loader import Model
from app.artifacts.manifest import FileDigest, Manifest, Output, TaskOutput
from app.artifacts.program import Program
from app.artifacts.store import Store
from app.artifacts.tables.listing import ListedTable
from app.artifacts.tables.table import open_table
from app.benchmarking.load import Plan, fire, http
from app.benchmarking.requests import Post
from app.engine.batch import Chunk
from app.engine.gpu.buckets import Bucket, Buckets
from app.engine.gpu.cuda import CudaStream
from app.engine.gpu.graphs import Fallbacks, GraphExecutor, Stream
from app.engine.gpu.tables import DeviceTables
from app.engine.lanes import Executor, run
from app.engine.request import RequestFeatures, TableRows, TableUse
from app.ranking.policy import Policy
from app.telemetry.metrics import Metrics
from models.networks.build import build
from models.networks.config import DenseFeature, NetworkConfig, Task
from tests.bench.dialects import v2_binary
from tests.bench.fused import LoopOfColumns, frozen
from tests.bench.http import COLUMNS, native, reference_artifact
from tests.bench.item_tables import publish_random
from tests.models.loop import loop_of
from tests.support.fakes import chunk_of
from tests.support.server import standalone_server
from tests.support.streams import CpuStream

TASKS = ("click", "like", "follow")
NETWORK = NetworkConfig(architecture="mmoe", num_experts=8, expert_hidden_units=(256, 128, 64))
Span = tuple[float, float]


def served(
    device: torch.device, dtype: torch.dtype = torch.float32, *, loop: bool = False
) -> Model:
    """Build an MMoE of 8 experts 100-256-128-64, 3 gates and 3 towers in memory.

    Args:
        device: where it runs.
        dtype: of the weights.
        loop: run one expert after the other instead of all of them stacked.
    """
    features = [DenseFeature(name="x", side="candidate", dim=COLUMNS)]
    tasks = [Task(name=name, kind="binary") for name in TASKS]
    network: torch.nn.Module = build(NETWORK, features, tasks, seed=0).to(dtype)
    if loop:
        network = LoopOfColumns(loop_of(NETWORK, network.body, COLUMNS, len(TASKS)))
    manifest = Manifest.model_validate(
        {
            "name": "bench",
            "version": 1,
            "architecture": "mmoe",
            "created": "2026-01-01T00:00:00Z",
            "torch_version": torch.__version__,
            "inputs": (DenseInput(name="x", side="candidate", dim=COLUMNS),),
            "tasks": tuple(
                TaskOutput(
                    name=name, kind="binary", unit="", link="sigmoid", output=Output(column=k)
                )
                for k, name in enumerate(TASKS)
            ),
            "ranking": Policy(weights={"click": 1.0}),
            "files": dict.fromkeys(
                ("model.ts", "golden.safetensors"), FileDigest(sha256="0" * 64, size=0)
            ),
        }
    )
    program = Program(frozen(network, str(device)), manifest, device)
    (chunk,) = chunks(Bucket(1, 1))
    golden = ModelInputs(chunk.features.user, chunk.features.candidate, np.zeros(1, np.int64))
    return Model(manifest, program, Golden.record(program, golden))


def chunks(bucket: Bucket) -> list[Chunk]:
    """Return a batch that fills a bucket, with the rows divided among the requests."""
    random = np.random.default_rng(0)
    sizes = [len(rows) for rows in np.array_split(np.arange(bucket.rows), bucket.requests)]
    return [
        chunk_of(
            RequestFeatures(
                {},
                {"x": random.normal(size=(size, COLUMNS)).astype(np.float32)},
                size,
                {},
            )
        )
        for size in sizes
    ]


def lane(
    device: torch.device, max_batch_rows: int, tables: DeviceTables | None = None
) -> GraphExecutor:
    """Return the executor of a lane. Batches over `max_batch_rows` (may be 0) are not captured."""
    return GraphExecutor(
        stream_of(device),
        max_batch_rows=max_batch_rows,
        fallbacks=Fallbacks(Metrics()),
        tables=tables,
    )


def seconds(executor: Executor, model: Model, batch: Sequence[Chunk], calls: int = 20) -> float:
    """Return the mean time of one batch, from collating to scores (s)."""
    began = time.perf_counter()
    for _ in range(calls):
        result = executor(model, batch)
        if isinstance(result.scores, Exception):
            raise result.scores
    return (time.perf_counter() - began) / calls


def by_bucket(device: torch.device, limit: int, turns: int) -> None:
    """Print the time of a batch in four forms, for each bucket."""
    stacked, half = served(device), served(device, torch.bfloat16)
    forms: list[tuple[Model, Executor]] = [
        (served(device, loop=True), run),
        (stacked, run),
        (stacked, lane(device, limit)),
        (half, lane(device, limit)),
    ]
    print(
        "| rows | requests | loop | stacked | graph | graph, bf16 | loop / graph | candidates/s |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for bucket in reversed(list(Buckets(limit))):
        batch = chunks(bucket)
        for model, executor in forms:  # warm up, and capture
            seconds(executor, model, batch)
        times = [
            [seconds(executor, model, batch) for model, executor in forms] for _ in range(turns)
        ]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        gain = statistics.median(row[0] / row[2] for row in times)
        cells = " | ".join(f"{median_s * 1e6:.0f} µs" for median_s in medians)
        print(
            f"| {bucket.rows} | {bucket.requests} | {cells} | {gain:.2f} "
            f"| {bucket.rows / medians[2]:,.0f} |"
        )


def by_keys(
    device: torch.device, folder: Path, limit: int, turns: int, items: int = 1_000_000
) -> None:
    """Print the time of a batch of one request, by how its candidates are named and gathered."""
    model, rows = served(device), min(500, limit)
    listed = publish_random(
        folder, "bench", DenseInput(name="x", side="candidate", dim=COLUMNS), items
    )
    table = open_table(listed, "bench")
    positions = np.random.default_rng(0).permutation(items)[:rows]
    names = frozenset(table.columns)
    used = TableUse(None, TableRows(table, positions, names), {}, {}, None, rows)
    keys = [chunk_of(RequestFeatures({}, {}, rows, {}, used), model=model)]
    x = table.gather("x", positions)
    full = [chunk_of(RequestFeatures({}, {"x": x}, rows, {}), model=model)]
    tables = DeviceTables(stream_of(device), 2 * listed_size(listed))
    tables.place(table)
    forms = {
        "features": (lane(device, limit), full),
        "keys, gathered on the host": (lane(device, limit), keys),
        "keys, gathered on the GPU": (lane(device, limit, tables), keys),
    }
    for executor, batch in forms.values():  # warm up, and capture
        seconds(executor, model, batch)
    assert tables.shared(model, keys) is not None
    print(f"| {rows} candidates of {items:,} items | batch | collate | copy in | compute |")
    print("| --- | ---: | ---: | ---: | ---: |")
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in forms}
    for _ in range(turns):
        for name, (executor, batch) in forms.items():
            took = seconds(executor, model, batch)
            timing = executor(model, batch).timing
            found[name].append((took, timing.collate_s, timing.copy_in_s, timing.compute_s))
    for name, times in found.items():
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        cells = " | ".join(f"{median_s * 1e6:.0f} µs" for median_s in medians)
        print(f"| {name} | {cells} |")


def listed_size(listed: ListedTable) -> int:
    """Return how many bytes the files of a table have."""
    return sum(file.stat().st_size for file in listed.folder.iterdir())


def stream_of(device: torch.device) -> Stream:
    """Return a stream of the device; on a CPU a stand-in."""
    return CpuStream() if device.type == "cpu" else CudaStream(device)


def over_http(device: str, window_s: float, rows: int = 500, items: int = 1_000_000) -> None:
    """Print rate and latency over HTTP: a closed loop of 32 connections, then an open loop."""
    print("| form | load | requests/s | candidates/s | p50 ms | p99 ms |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = reference_artifact(Store(folder / "store")).model
        feature = DenseInput(name="x", side="candidate", dim=COLUMNS)
        publish_random(folder / "store", model, feature, items)
        options = ("--device", device, "--request-timeout-ms", "60000", "--gpu-table-bytes")
        keys = np.random.default_rng(0).permutation(items)[:rows]
        body = orjson.dumps({"candidates": keys}, option=orjson.OPT_SERIALIZE_NUMPY)
        by_key = Post("/v1/score", body, {"content-type": "application/json"})
        with (
            standalone_server(folder / "store", folder / "log", *options, "0") as server,
            standalone_server(
                folder / "store", folder / "gpu.log", *options, "4000000000"
            ) as other,
        ):
            for name, post, url in (
                ("binary", v2_binary(rows), server.url),
                ("JSON", native(rows), server.url),
                ("keys, table on the host", by_key, server.url),
                ("keys, table on the GPU", by_key, other.url),
            ):
                port = int(url.rpartition(":")[2])
                request = http(post.path, post.body, post.headers)
                plan = Plan(
                    port, [request], connections=32, seconds=window_s, warm_up_s=0.2 * window_s
                )
                closed = fire(plan, 2)
                rate = 0.7 * closed.rate_within()
                opened = fire(replace(plan, rate=rate, connections=512), 2)
                for load, report in (("closed, 32", closed), (f"open, {rate:,.0f}/s", opened)):
                    answered = report.rate_within()
                    print(
                        f"| {name} | {load} | {answered:,.0f} | {answered * rows:,.0f} "
                        f"| {report.latency_ms(0.5):.2f} | {report.latency_ms(0.99):.2f} |",
                        flush=True,
                    )


def several(model: Model, limit: int, lanes: int, window_s: float) -> float:
    """Return candidates per second with the given number of lanes and the largest bucket."""
    batch = chunks(Bucket(limit, max(1, limit // 500)))
    executors = [lane(model.program.device, limit) for _ in range(lanes)]
    for executor in executors:
        seconds(executor, model, batch)
    counts, stop = [0] * lanes, threading.Event()

    def work(i: int) -> None:
        while not stop.is_set():
            executors[i](model, batch)
            counts[i] += limit

    threads = [threading.Thread(target=work, args=(i,)) for i in range(lanes)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(window_s)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def overlap(trace: Path) -> tuple[float, float]:
    """Read a profiler trace; return the time of copies and its overlap with kernels (s)."""
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("ph") == "X"]

    def spans(category: str) -> list[Span]:
        found = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == category]
        return merged(sorted(found))

    copies, kernels = spans("gpu_memcpy"), spans("kernel")
    beside = sum(
        max(0.0, min(end, stop) - max(begin, start))
        for begin, end in copies
        for start, stop in kernels
    )
    return sum(end - begin for begin, end in copies) / 1e6, beside / 1e6


def merged(spans: Sequence[Span]) -> list[Span]:
    """Merge overlapping spans. The spans must be sorted."""
    whole: list[Span] = []
    for begin, end in spans:
        if whole and begin <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(whole[-1][1], end))
        else:
            whole.append((begin, end))
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--rows", type=int, default=512, help="maximum rows of a batch")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="duration of each throughput measurement (s)"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("this benchmark needs a GPU: CUDA is not available", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}\n")
    by_bucket(device, options.rows, options.turns)
    print()
    with tempfile.TemporaryDirectory() as folder:
        by_keys(device, Path(folder), options.rows, options.turns)
    model = served(device)
    print("\n| lanes | candidates/s |\n| ---: | ---: |")
    for lanes in (1, 2, 3):
        print(f"| {lanes} | {several(model, options.rows, lanes, options.seconds):,.0f} |")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        several(model, options.rows, 2, 0.2)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        copies, beside = overlap(trace)
    print(
        f"\nOf {copies * 1e3:.1f} ms of copies, {beside / copies:.0%} overlapped with a kernel.\n"
    )
    over_http("cuda", options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
