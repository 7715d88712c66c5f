"""Measure the gain of CUDA graphs and two streams on this GPU: ``python -m tests.bench.gpu``.

Prints for one network, run as a lane does it from collating to scores:

- the ratio of eager to replayed time for each bucket: the median over alternating turns;
- candidates per second in process, by number of lanes;
- the share of copy time that overlaps with kernels of another lane, from a profiler trace.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from app.artifacts.columns import ModelInputs
from app.artifacts.golden import Golden
from app.artifacts.loader import Model
from app.artifacts.manifest import DenseInput, FileDigest, Manifest, Output, TaskOutput
from app.artifacts.program import Program
from app.engine.batch import Chunk
from app.engine.gpu.buckets import Bucket, Buckets
from app.engine.gpu.cuda import CudaStream
from app.engine.gpu.graphs import Fallbacks, GraphExecutor
from app.engine.lanes import Executor, run
from app.engine.request import RequestFeatures
from app.ranking.policy import Policy
from app.telemetry.metrics import Metrics
from models.networks.build import build
from models.networks.config import DenseFeature, NetworkConfig, Task
from tests.bench.fused import frozen
from tests.support.fakes import chunk_of

USER, CANDIDATE = 50, 50
TASKS = ("click", "like", "follow")
NETWORK = NetworkConfig(architecture="mmoe", num_experts=8, expert_hidden_units=(256, 128, 64))
Span = tuple[float, float]


def served(device: torch.device) -> Model:
    """Build an MMoE of 8 experts 100-256-128-64, 3 gates and 3 towers in memory."""
    features = [
        DenseFeature(name="u", side="user", dim=USER),
        DenseFeature(name="c", side="candidate", dim=CANDIDATE),
    ]
    network = build(NETWORK, features, [Task(name=n, kind="binary") for n in TASKS], seed=0)
    manifest = Manifest.model_validate(
        {
            "name": "bench",
            "version": 1,
            "architecture": "mmoe",
            "created": "2026-01-01T00:00:00Z",
            "torch_version": torch.__version__,
            "inputs": (
                DenseInput(name="u", side="user", dim=USER),
                DenseInput(name="c", side="candidate", dim=CANDIDATE),
            ),
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
    sizes = [len(each) for each in np.array_split(np.arange(bucket.rows), bucket.requests)]
    return [
        chunk_of(
            RequestFeatures(
                {"u": random.normal(size=(1, USER)).astype(np.float32)},
                {"c": random.normal(size=(size, CANDIDATE)).astype(np.float32)},
                size,
                {},
            )
        )
        for size in sizes
    ]


def lane(device: torch.device, max_batch_rows: int) -> GraphExecutor:
    """Return the executor of a lane. Batches over `max_batch_rows` (may be 0) are not captured."""
    stream = CudaStream(device)
    return GraphExecutor(stream, max_batch_rows=max_batch_rows, fallbacks=Fallbacks(Metrics()))


def seconds(executor: Executor, model: Model, batch: Sequence[Chunk], calls: int = 20) -> float:
    """Return the mean time of one batch, from collating to scores (s)."""
    began = time.perf_counter()
    for _ in range(calls):
        result = executor(model, batch)
        if isinstance(result.scores, Exception):
            raise result.scores
    return (time.perf_counter() - began) / calls


def graphs_against_eager(model: Model, limit: int, turns: int) -> None:
    """Print eager and replayed times for each bucket."""
    print("Eager time / replayed time\n\n| rows | requests | eager | replayed | ratio |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    replayed = lane(model.program.device, limit)
    for bucket in reversed(list(Buckets(limit))):
        batch = chunks(bucket)
        for executor in (run, replayed):  # warm up, and capture
            seconds(executor, model, batch)
        times = [
            (seconds(run, model, batch), seconds(replayed, model, batch)) for _ in range(turns)
        ]
        slow, fast = (statistics.median(each) * 1e6 for each in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        print(
            f"| {bucket.rows} | {bucket.requests} | {slow:.0f} µs | {fast:.0f} µs | {ratio:.2f} |"
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
    for each in threads:
        each.start()
    time.sleep(window_s)
    stop.set()
    for each in threads:
        each.join()
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
    model = served(device)
    graphs_against_eager(model, options.rows, options.turns)
    print("\n| lanes | candidates/s |\n| ---: | ---: |")
    for lanes in (1, 2, 3):
        print(f"| {lanes} | {several(model, options.rows, lanes, options.seconds):,.0f} |")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        several(model, options.rows, 2, 0.2)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        copies, beside = overlap(trace)
    print(f"\nOf {copies * 1e3:.1f} ms of copies, {beside / copies:.0%} overlapped with a kernel.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
