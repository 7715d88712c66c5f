"""Compare requests per second over HTTP with the same TorchScript file run in process.

    python -m tests.bench.http [--connections 8] [--seconds 5]

Both run on the same machine in turn, so their ratio is meaningful on a noisy machine. The model is
an MMoE of 8 experts 100-256-128-64, 3 linear gates and 3 towers 64-1, float32. Requests have 1, 50
or 500 candidates of 100 numbers, as JSON. Needs `wrk` (Debian package `wrk`).
"""

import argparse
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import orjson
import torch

from app.artifacts.columns import ModelInputs
from app.artifacts.inputs import DenseInput
from app.artifacts.loader import load
from app.artifacts.manifest import (
    MOST_GATE_WEIGHTS,
    Description,
    GateLevel,
    RequestCall,
    TaskOutput,
)
from app.artifacts.program import Program, scores
from app.artifacts.publish import publish
from app.artifacts.store import Artifact, Store
from app.benchmarking.requests import Post
from app.engine.hardware import usable_cores
from app.ranking.policy import Policy
from models.networks.build import build
from models.networks.config import DenseFeature, NetworkConfig, Task
from tests.bench.wrk import require_wrk, wrk
from tests.support.server import standalone_server

COLUMNS = 100
TASKS = ("click", "like", "dwell")


def reference_artifact(
    store: Store,
    name: str = "reference",
    *,
    num_experts: int = 8,
    hidden_units: tuple[int, ...] = (256, 128, 64),
    columns: int = COLUMNS,
    tasks: Sequence[str] = TASKS,
) -> Artifact:
    """Publish the reference model, or one of other widths. Its weights are random."""
    network = build(
        NetworkConfig(
            architecture="mmoe",
            num_experts=num_experts,
            expert_hidden_units=hidden_units,
            tower_hidden_units=(),
        ),
        [DenseFeature(name="x", side="candidate", dim=columns)],
        [Task(name=task, kind="binary") for task in tasks],
        seed=0,
    ).eval()
    description = Description(
        name=name,
        architecture="mmoe",
        inputs=(DenseInput(name="x", side="candidate", dim=columns),),
        call=RequestCall(),
        tasks=tuple(
            TaskOutput(
                name=task,
                kind="binary",
                unit="probability",
                link="sigmoid",
                output={"column": k},
            )
            for k, task in enumerate(tasks)
        ),
        ranking=Policy(weights=dict.fromkeys(tasks, 1.0)),
        gates=(
            GateLevel(
                gates=tuple(tasks),
                experts=tuple(f"expert.{number}" for number in range(1, num_experts + 1)),
                sees=(tuple(range(num_experts)),) * len(tasks),
            ),
        )
        if num_experts * len(tasks) <= MOST_GATE_WEIGHTS
        else (),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(network)
        return publish(store, description, scripted, candidates([2, 5, 9], columns))


def candidates(sizes: Sequence[int], columns: int = COLUMNS) -> ModelInputs:
    """Return requests with the given numbers of candidates."""
    rows = sum(sizes)
    x = np.random.default_rng(0).random((rows, columns), dtype=np.float32).round(6)
    return ModelInputs({}, {"x": x}, np.repeat(np.arange(len(sizes)), sizes))


def in_process(program: Program, rows: int, seconds: float, threads: int) -> tuple[float, float]:
    """Return requests per second on all cores, and the median time of a single request (ms)."""
    batch = candidates([rows])
    alone_ms = []
    for _ in range(50):
        began = time.perf_counter()
        scores(program.run(batch), program.description.tasks)
        alone_ms.append((time.perf_counter() - began) * 1e3)
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def work(lane: int) -> None:
        torch.set_num_threads(1)
        while time.perf_counter() < end:
            scores(program.run(batch), program.description.tasks)
            counts[lane] += 1

    workers = [threading.Thread(target=work, args=(lane,)) for lane in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / seconds, median(alone_ms)


def native(rows: int) -> Post:
    """Return a request of the native API with the given number of candidates."""
    columns = {"x": candidates([rows]).candidate["x"]}
    body = orjson.dumps({"candidates": columns}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Post("/v1/score", body, {"content-type": "application/json"})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--connections", type=int, default=8, help="number of connections (default: 8)"
    )
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement (s)")
    arguments = parser.parse_args()
    require_wrk()
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artifact = reference_artifact(Store(folder / "store"))
        program = load(artifact, torch.device("cpu")).program
        torch.set_num_threads(1)
        print(f"{cores} cores, {arguments.connections} connections, torch {torch.__version__}\n")
        print(
            "| rows | HTTP req/s | p50 | p99 | in process req/s | HTTP / in process | one alone |"
        )
        print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        with standalone_server(folder / "store", folder / "log") as server:
            for rows in (1, 50, 500):
                post, connections = native(rows), arguments.connections
                wrk(server.url, post, connections, 1, folder)
                found = wrk(server.url, post, connections, arguments.seconds, folder)
                limit, alone_ms = in_process(program, rows, arguments.seconds, cores)
                ratio = found.rate / limit
                print(
                    f"| {rows} | {found.rate:,.0f} | {found.p50_ms:.2f} ms "
                    f"| {found.p99_ms:.2f} ms | {limit:,.0f} "
                    f"| {ratio:.2f} | {alone_ms:.2f} ms |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
