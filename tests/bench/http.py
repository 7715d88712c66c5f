"""Compare requests per second over HTTP with the same TorchScript file run in process.

    python -m tests.bench.http [--connections 8] [--seconds 5]

Both run on the same machine in turn, so their ratio is meaningful on a noisy machine. The model is
an MMoE of 8 experts 100-256-128-64, 3 linear gates and 3 towers 64-1, float32. Requests have 1, 50
or 500 candidates of 100 numbers, as JSON. Needs `wrk` (Debian package `wrk`).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import orjson
import torch

from app.artifacts.columns import ModelInputs
from app.artifacts.loader import load
from app.artifacts.manifest import DenseInput, Description, GateLevel, RequestCall, TaskOutput
from app.artifacts.program import Program, scores
from app.artifacts.publish import publish
from app.artifacts.store import Artifact, Store
from app.engine.hardware import usable_cores
from app.ranking.policy import Policy
from models.networks.build import build
from models.networks.config import DenseFeature, NetworkConfig, Task
from tests.support.server import running_server

COLUMNS = 100
TASKS = ("click", "like", "dwell")
_WRK = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
"""


def reference_artifact(store: Store) -> Artifact:
    """Publish the reference model. Its weights are random; only its cost matters."""
    network = build(
        NetworkConfig(
            architecture="mmoe",
            num_experts=8,
            expert_hidden_units=(256, 128, 64),
            tower_hidden_units=(),
        ),
        [DenseFeature(name="x", side="candidate", dim=COLUMNS)],
        [Task(name=name, kind="binary") for name in TASKS],
        seed=0,
    ).eval()
    description = Description(
        name="reference",
        architecture="mmoe",
        inputs=(DenseInput(name="x", side="candidate", dim=COLUMNS),),
        call=RequestCall(),
        tasks=tuple(
            TaskOutput(
                name=name,
                kind="binary",
                unit="probability",
                link="sigmoid",
                output={"column": k},
            )
            for k, name in enumerate(TASKS)
        ),
        ranking=Policy(weights=dict.fromkeys(TASKS, 1.0)),
        gates=(
            GateLevel(
                gates=TASKS,
                experts=tuple(f"expert.{number}" for number in range(1, 9)),
                sees=(tuple(range(8)),) * len(TASKS),
            ),
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(network)
        return publish(store, description, scripted, candidates([2, 5, 9]))


def candidates(sizes: Sequence[int]) -> ModelInputs:
    """Return requests with the given numbers of candidates."""
    rows = sum(sizes)
    x = np.random.default_rng(0).random((rows, COLUMNS), dtype=np.float32).round(6)
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


@dataclass(frozen=True)
class Post:
    """A POST request that is sent repeatedly."""

    path: str
    body: bytes
    headers: Mapping[str, str]


def native(rows: int) -> Post:
    """Return a request of the native API with the given number of candidates."""
    columns = {"x": candidates([rows]).candidate["x"]}
    body = orjson.dumps({"candidates": columns}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Post("/v1/score", body, {"content-type": "application/json"})


def over_http(url: str, folder: Path, post: Post, connections: int, seconds: float) -> list[str]:
    """Return requests per second, median and 99th percentile, as wrk prints them."""
    body = folder / "body"
    body.write_bytes(post.body)
    script = folder / "post.lua"
    headers = "".join(f'wrk.headers["{k}"] = "{v}"\n' for k, v in post.headers.items())
    script.write_text(_WRK.format(body=body) + headers)
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(script)]
    output = subprocess.run(
        [*wrk, f"{url}{post.path}"], check=True, capture_output=True, text=True
    ).stdout
    if "Non-2xx" in output:
        raise SystemExit(output)
    patterns = (r"Requests/sec:\s+(\S+)", r"\n\s+50%\s+(\S+)", r"\n\s+99%\s+(\S+)")
    return [re.search(pattern, output)[1] for pattern in patterns]  # type: ignore[index]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--connections", type=int, default=8, help="number of connections (default: 8)"
    )
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement (s)")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed")
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
        with running_server(folder / "store", folder / "log") as server:
            for rows in (1, 50, 500):
                over_http(server.url, folder, native(rows), arguments.connections, 1)
                rate, p50, p99 = over_http(
                    server.url, folder, native(rows), arguments.connections, arguments.seconds
                )
                limit, alone_ms = in_process(program, rows, arguments.seconds, cores)
                ratio = float(rate) / limit
                print(
                    f"| {rows} | {float(rate):,.0f} | {p50} | {p99} | {limit:,.0f} "
                    f"| {ratio:.2f} | {alone_ms:.2f} ms |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
