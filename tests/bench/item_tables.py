"""Candidates sent as keys of an items table, beside the same candidates sent with their features.

    python -m tests.bench.item_tables [--rounds 3] [--seconds 3] [--rows 1000000] [--connections 8]

500 candidates of 100 numbers are scored as JSON and as binary V2, with every number or with keys
alone, by the reference model of `tests.bench.http` and by a model of the demo's width, which is
cheap to run. Servers and forms alternate, so that other load on the machine affects all alike. CPU
time is that of the server's processes (user and system, from /proc) by request; what the model
itself takes, measured in process in the same rounds, is subtracted for "beside the model". A
request by keys draws its keys at random from the whole table: 64 different bodies take turns.

Then a table of `--rows` items of 64 numbers: how long until a server is ready with it and without
it, how much memory three processes have of it in all (Pss), and how long it takes to look up 500 of
its keys. Needs wrk.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import orjson
import torch

from app.artifacts.inputs import DenseInput
from app.artifacts.loader import load
from app.artifacts.program import Program
from app.artifacts.store import Artifact, Store
from app.artifacts.tables.description import TableColumn, TableKey, record_dtype
from app.artifacts.tables.listing import ListedTable
from app.artifacts.tables.publish import publish_table
from app.artifacts.tables.table import open_table
from app.artifacts.tables.writer import TablePlan, TableWriter
from app.benchmarking.requests import Post
from app.engine.hardware import usable_cores
from tests.bench.hot_path import Sample, cpu_s, in_process_cpu_us, settled
from tests.bench.http import COLUMNS, candidates, reference_artifact
from tests.bench.wrk import require_wrk, wrk
from tests.support.server import Server, free_port, standalone_server

ROWS = 500
ITEMS = 100_000
BODIES = 64
WIDE = 64
_AT_ONCE = 50_000


@dataclass(frozen=True)
class Form:
    """A way to send 500 candidates: a path, headers, and bodies that take turns."""

    path: str
    headers: Mapping[str, str]
    bodies: Sequence[bytes]


def publish_random(
    store: Path, model: str, feature: DenseInput, rows: int, *, kind: str = "items"
) -> ListedTable:
    """Publish a table of random numbers; the keys are the integers from 0 to `rows`."""
    record = record_dtype([feature])
    random = np.random.default_rng(1)
    plan = TablePlan(
        model=store / model,
        kind=kind,  # type: ignore[arg-type]
        key=TableKey(name="item_id", type="int64"),
        columns=(TableColumn(feature=feature),),
        defaults=np.zeros(1, record),
    )

    def fill(writer: TableWriter) -> None:
        for start in range(0, rows, _AT_ONCE):
            count = min(_AT_ONCE, rows - start)
            records = np.zeros(count, record)
            records[feature.name] = random.random((count, feature.dim), dtype=np.float32)
            writer.add(np.arange(start, start + count), records)

    return publish_table(plan, fill)


def forms(model: str) -> dict[str, Form]:
    """Return the same candidates with their features, and others by their keys."""
    x = candidates([ROWS]).candidate["x"]
    native, infer = f"/v1/models/{model}/score", f"/v2/models/{model}/infer"
    full = orjson.dumps({"candidates": {"x": x}}, option=orjson.OPT_SERIALIZE_NUMPY)
    random = np.random.default_rng(2)
    drawn = [random.choice(ITEMS, ROWS, replace=False) for _ in range(BODIES)]
    keys = [orjson.dumps({"candidates": ids}, option=orjson.OPT_SERIALIZE_NUMPY) for ids in drawn]
    binary = [_binary("x", "FP32", x)]
    binary_keys = [_binary("item_id", "INT64", ids) for ids in drawn]
    json = {"content-type": "application/json"}
    return {
        "JSON, every number": Form(native, json, [full]),
        "JSON, keys": Form(native, json, keys),
        "binary, every number": Form(infer, binary[0][1], [binary[0][0]]),
        "binary, keys": Form(infer, binary_keys[0][1], [body for body, _ in binary_keys]),
    }


def _binary(name: str, datatype: str, values: np.ndarray) -> tuple[bytes, dict[str, str]]:
    shape = list(values.shape) if values.ndim > 1 else [len(values)]
    content = values.tobytes()
    parameters = {"binary_data_size": len(content)}
    tensor = {"name": name, "shape": shape, "datatype": datatype, "parameters": parameters}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    return head + content, headers


def measure(server: Server, form: Form, connections: int, seconds: int, folder: Path) -> Sample:
    """Load a server with wrk, in one form."""
    post = Post(form.path, form.bodies[0], form.headers)
    before = cpu_s(server.process.pid)
    headers = {"x-request-timeout-ms": "60000"}
    found = wrk(server.url, post, connections, seconds, folder, headers, form.bodies)
    used_s = settled(lambda: cpu_s(server.process.pid)) - before
    return Sample(found.rate, found.p50_ms, found.p99_ms, used_s / found.requests * 1e6)


@dataclass(frozen=True)
class Rates:
    """Medians by form, and the CPU time of the model alone (µs a request)."""

    model: str
    samples: Mapping[str, Sample]
    alone_us: float
    bytes: Mapping[str, int]

    def beside_us(self, form: str) -> float:
        """Return the CPU time of a request beside the model's own."""
        return self.samples[form].cpu_us - self.alone_us

    def print_all(self) -> None:
        """Print a row for each form."""
        for form, sample in self.samples.items():
            print(
                f"| {self.model} | {form} | {self.bytes[form]:,} | {sample.rate:,.0f} "
                f"| {sample.p50_ms:.2f} | {sample.p99_ms:.2f} | {sample.cpu_us:,.0f} "
                f"| {self.beside_us(form):,.0f} |"
            )

    def goals(self) -> Iterator[tuple[str, float, float]]:
        """Yield each goal: what, the ratio, and the most that it may be."""
        json, keys = "JSON, every number", "JSON, keys"
        binary = "binary, every number"
        yield f"{self.model}: body of keys / JSON", self.bytes[keys] / self.bytes[json], 1 / 50
        ratio = self.beside_us(keys) / self.beside_us(json)
        yield f"{self.model}: CPU beside the model, keys / JSON", ratio, 0.2
        ratio = self.beside_us("binary, keys") / self.beside_us(binary)
        yield f"{self.model}: CPU beside the model, binary keys / binary", ratio, 0.6
        ratio = self.samples[json].rate / self.samples[keys].rate
        yield f"{self.model}: rate of JSON / keys", ratio, 0.5 if self.model == "cheap" else 1.0
        ratio = self.samples[binary].rate / self.samples["binary, keys"].rate
        yield f"{self.model}: rate of binary / binary keys", ratio, 1.0


def compare(
    server: Server, programs: Mapping[str, Program], arguments: argparse.Namespace, folder: Path
) -> list[Rates]:
    """Measure every form of every model, round after round."""
    samples: dict[tuple[str, str], list[Sample]] = {}
    alone: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):
        seconds = arguments.seconds if number else 1  # the first round only warms up
        for model, program in programs.items():
            alone.setdefault(model, []).append(in_process_cpu_us(program, ROWS, 0.5))
            for name, form in forms(model).items():
                sample = measure(server, form, arguments.connections, seconds, folder)
                samples.setdefault((model, name), []).append(sample)
    found = []
    for model in programs:
        made = forms(model)
        medians = {
            name: Sample(
                *(
                    median([getattr(sample, of) for sample in samples[model, name][1:]])
                    for of in ("rate", "p50_ms", "p99_ms", "cpu_us")
                )
            )
            for name in made
        }
        sizes = {name: len(form.bodies[0]) for name, form in made.items()}
        found.append(Rates(model, medians, median(alone[model]), sizes))
    return found


def large_table(folder: Path, rows: int) -> Iterator[tuple[str, float, float]]:
    """Publish a large table, serve it with three processes, and yield the goals."""
    store = Store(folder / "large")
    artifact = wide_artifact(store)
    without = _start(store, folder)
    began = time.perf_counter()
    listed = publish_random(store.folder, artifact.model, _wide_feature(), rows)
    size = sum(file.stat().st_size for file in listed.folder.iterdir())
    print(
        f"\n{rows:,} items of {WIDE} numbers: {size / 2**20:,.0f} MiB, written in "
        f"{time.perf_counter() - began:.1f} s"
    )
    loaded = _start(store, folder)
    print(
        f"ready after {loaded[0]:.2f} s with the table, {without[0]:.2f} s without; "
        f"{loaded[1]:.2f} s and {without[1]:.2f} s of CPU time"
    )
    yield "ready with the table less ready without (s)", loaded[0] - without[0], 3.0
    yield "CPU time of that (s)", loaded[1] - without[1], 3.0
    pss = _memory(store, folder)
    yield "memory of the table in 3 processes (Pss) / its files", pss / size, 1.05
    table = open_table(listed, artifact.model)
    drawn = [np.random.default_rng(i).choice(rows, ROWS, replace=False) for i in range(200)]
    for keys in drawn:
        table.find(keys)
    began = time.process_time()
    for keys in drawn:
        table.find(keys)
    yield "lookup of 500 keys (us)", (time.process_time() - began) / len(drawn) * 1e6, 100.0
    began = time.process_time()
    for positions in drawn:
        table.take(positions)
    taken_us = (time.process_time() - began) / len(drawn) * 1e6
    print(f"500 rows of {WIDE} numbers are read in {taken_us:.0f} us")


def _wide_feature() -> DenseInput:
    return DenseInput(name="x", side="candidate", dim=WIDE)


def wide_artifact(store: Store) -> Artifact:
    """Publish a small model of 64 numbers."""
    return reference_artifact(store, "wide", num_experts=2, hidden_units=(64, 32), columns=WIDE)


def _start(store: Store, folder: Path) -> tuple[float, float]:
    """Return how long a server took to be ready, and its CPU time until then (s)."""
    began = time.perf_counter()
    with standalone_server(store.folder, folder / "large.log", "--lanes", "1") as server:
        return time.perf_counter() - began, cpu_s(server.process.pid)


def _memory(store: Store, folder: Path) -> int:
    """Return the memory (Pss, bytes) that three processes have of their tables."""
    flags = ("--processes", "3", "--lanes", "1", "--metrics-port", str(free_port()))
    with standalone_server(store.folder, folder / "large.log", *flags) as server:
        mapped = 0
        for _ in range(120):  # readiness is that of the first process
            shares = [_pss(pid) for pid in _family(server.process.pid)]
            mapped = sum(shares)
            if sum(share > 0 for share in shares) == 3:
                break
            time.sleep(0.5)
        return mapped


def _family(pid: int) -> list[int]:
    found, todo = [], [pid]
    while todo:
        process = todo.pop()
        found.append(process)
        for task in Path(f"/proc/{process}/task").iterdir():
            todo += map(int, (task / "children").read_text().split())
    return found


def _pss(pid: int) -> int:
    """Return the proportional share of a process in the mapped files of tables (bytes)."""
    total, is_table = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_table = "/items/" in line
        elif is_table and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


def main() -> None:
    """Measure, print the tables, then the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of all forms (default: 3)")
    parser.add_argument("--seconds", type=int, default=3, help="of one measurement (default: 3)")
    parser.add_argument("--connections", type=int, default=8, help="(default: 8)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large table")
    arguments = parser.parse_args()
    require_wrk()
    print(f"{usable_cores()} cores, torch {torch.__version__}, {arguments.connections} connections")
    goals: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = Store(folder / "store")
        artifacts = [
            reference_artifact(store),
            reference_artifact(store, "cheap", num_experts=2, hidden_units=(64, 32)),
        ]
        feature = DenseInput(name="x", side="candidate", dim=COLUMNS)
        for artifact in artifacts:
            publish_random(store.folder, artifact.model, feature, ITEMS)
        torch.set_num_threads(1)
        programs = {
            artifact.model: load(artifact, torch.device("cpu")).program for artifact in artifacts
        }
        with standalone_server(store.folder, folder / "log") as server:
            rates = compare(server, programs, arguments, folder)
        print(f"\n{ROWS} candidates of {COLUMNS} numbers\n")
        print("| model | form | bytes | requests/s | p50 ms | p99 ms | CPU µs | beside the model |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for measured in rates:
            measured.print_all()
            goals += measured.goals()
        goals += large_table(folder, arguments.rows)
    print("\n| goal | at most | measured | |")
    print("| --- | ---: | ---: | --- |")
    for what, found, most in goals:
        verdict = "met" if found <= most else "not met"
        print(f"| {what} | {most:.2f} | {found:.2f} | {verdict} |")


if __name__ == "__main__":
    main()
