"""How cost grows: with rows, connections, experts, tasks, models and items; the time to ready.

    python -m tests.bench.scaling [--parts rows experts models] [--seconds 2]

The model is the reference model of `tests.bench.http` or a variant of it; requests are V2 binary
tensors of 100 numbers a candidate. Rates come from wrk, CPU time from /proc. The figures of a part
are measured one after the other: on a shared machine, compare CPU times.
"""

import argparse
import os
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import orjson
import torch

from app.artifacts.inputs import DenseInput
from app.artifacts.loader import load
from app.artifacts.store import Store
from app.benchmarking.requests import Post
from tests.bench.dialects import v2_binary
from tests.bench.hot_path import cpu_s, in_process_cpu_us, settled
from tests.bench.http import COLUMNS, reference_artifact
from tests.bench.item_tables import publish_random
from tests.bench.wrk import require_wrk, wrk
from tests.support.server import Server, standalone_server

_PATIENT = {"x-request-timeout-ms": "60000"}


@dataclass(frozen=True, slots=True)
class Bench:
    """Where files go, and how long a measurement is (s)."""

    folder: Path
    seconds: float

    @contextmanager
    def server(
        self, name: str, publish: Callable[[Store], object]
    ) -> Iterator[tuple[Server, float]]:
        """Serve a store; yield the server and how long it took to be ready (s)."""
        store = self.folder / name
        publish(Store(store))
        began = time.perf_counter()
        flags = ("--default-model", "reference")
        with standalone_server(store, self.folder / f"{name}.log", *flags) as server:
            yield server, time.perf_counter() - began

    def load(
        self, server: Server, post: Post, connections: int, bodies: Sequence[bytes] = ()
    ) -> tuple[float, float, float, float]:
        """Return rate (1/s), p50 and p99 (ms) and CPU time a request (µs).

        With `bodies`, they are sent in turn.
        """
        wrk(server.url, post, connections, 1, self.folder, _PATIENT, bodies)
        before = settled(lambda: cpu_s(server.process.pid))
        found = wrk(server.url, post, connections, self.seconds, self.folder, _PATIENT, bodies)
        cpu_us = (cpu_s(server.process.pid) - before) / found.requests * 1e6
        return found.rate, found.p50_ms, found.p99_ms, cpu_us


def memory_mb(server: Server) -> float:
    """Return the memory of a server's process (MB); what it shares with others counts in part."""
    text = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text()
    return int(text.partition("Pss:")[2].split()[0]) / 1e3


def rows(bench: Bench) -> None:
    """Print the cost by rows of a request."""
    print("| rows | requests/s | candidates/s | p99 ms | CPU µs a request | a candidate |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    with bench.server("rows", reference_artifact) as (server, _):
        for count in (1, 10, 50, 100, 500, 1000, 2000):
            rate, _, p99_ms, cpu_us = bench.load(server, v2_binary(count), 8)
            print(
                f"| {count:,} | {rate:,.0f} | {rate * count:,.0f} | {p99_ms:.1f} | {cpu_us:,.0f} "
                f"| {cpu_us / count:.1f} |",
                flush=True,
            )


def connections(bench: Bench) -> None:
    """Print the cost by connections, 50 rows."""
    print("| connections | requests/s | p50 ms | p99 ms | CPU µs a request | memory |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    with bench.server("connections", reference_artifact) as (server, _):
        for count in (1, 8, 32, 128, 512):
            rate, p50_ms, p99_ms, cpu_us = bench.load(server, v2_binary(50), count)
            print(
                f"| {count} | {rate:,.0f} | {p50_ms:.1f} | {p99_ms:.1f} | {cpu_us:,.0f} "
                f"| {memory_mb(server):,.0f} MB |",
                flush=True,
            )


def experts(bench: Bench) -> None:
    """Print the cost by experts, 500 rows."""

    def publish(store: Store, count: int) -> object:
        return reference_artifact(store, num_experts=count)

    _variants(bench, "experts", (2, 4, 8, 16, 32), publish)


def tasks(bench: Bench) -> None:
    """Print the cost by tasks, 500 rows."""

    def publish(store: Store, count: int) -> object:
        return reference_artifact(store, tasks=[f"task_{k}" for k in range(count)])

    _variants(bench, "tasks", (1, 3, 10, 30), publish)


def _variants(
    bench: Bench, what: str, counts: Sequence[int], publish: Callable[[Store, int], object]
) -> None:
    print(f"| {what} | requests/s | CPU µs a request | the model alone | beside the model |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for count in counts:

        def publish_one(store: Store, count: int = count) -> object:
            return publish(store, count)

        with bench.server(f"{what}-{count}", publish_one) as (server, _):
            rate, _, _, cpu_us = bench.load(server, v2_binary(500), 8)
        (artifact,) = Store(bench.folder / f"{what}-{count}").artifacts()
        program = load(artifact, torch.device("cpu")).program
        alone_us = in_process_cpu_us(program, 500, 1)
        print(
            f"| {count} | {rate:,.0f} | {cpu_us:,.0f} | {alone_us:,.0f} "
            f"| {cpu_us - alone_us:,.0f} |",
            flush=True,
        )


def models(bench: Bench) -> None:
    """Print the time to ready, memory and cost by the number of models in the store."""
    print("| models | to ready | memory | requests/s | CPU µs a request | scrape of /metrics |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for count in (1, 4, 16, 64):

        def publish(store: Store, count: int = count) -> None:
            for number in range(count):
                reference_artifact(store, f"other-{number}" if number else "reference")

        with bench.server(f"models-{count}", publish) as (server, ready_s):
            rate, _, _, cpu_us = bench.load(server, v2_binary(50), 8)
            began = time.perf_counter()
            httpx.get(f"{server.url}/metrics")
            scrape_ms = (time.perf_counter() - began) * 1e3
            print(
                f"| {count} | {ready_s:.1f} s | {memory_mb(server):,.0f} MB | {rate:,.0f} "
                f"| {cpu_us:,.0f} | {scrape_ms:.0f} ms |",
                flush=True,
            )


def items(bench: Bench) -> None:
    """Print the cost of 500 keys by the number of items in the table; each has 100 numbers."""
    print("| items | files | to ready | p50 ms | CPU µs a request | memory |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    feature = DenseInput(name="x", side="candidate", dim=COLUMNS)
    random = np.random.default_rng(0)
    for count in (1_000, 10_000, 100_000, 1_000_000):
        files: list[Path] = []

        def publish(store: Store, count: int = count, files: list[Path] = files) -> None:
            reference_artifact(store)
            files += publish_random(store.folder, "reference", feature, count).folder.iterdir()

        with bench.server(f"items-{count}", publish) as (server, ready_s):
            bodies = [
                orjson.dumps({"candidates": random.choice(count, 500, replace=False).tolist()})
                for _ in range(64)
            ]
            post = Post("/v1/score", bodies[0], {"content-type": "application/json"})
            _, p50_ms, _, cpu_us = bench.load(server, post, 8, bodies)
            size_mb = sum(file.stat().st_size for file in files) / 1e6
            print(
                f"| {count:,} | {size_mb:,.1f} MB | {ready_s:.1f} s | {p50_ms:.1f} "
                f"| {cpu_us:,.0f} | {memory_mb(server):,.0f} MB |",
                flush=True,
            )


def start(bench: Bench) -> None:
    """Print the time from the start of the process to ready, cold and warm."""
    print("| start | to ready | CPU time | memory |")
    print("| --- | ---: | ---: | ---: |")
    publish: Callable[[Store], object] = reference_artifact
    for name in ("warm-up of the files", "cold", "warm", "warm"):
        if name == "cold":
            forget([Path(sysconfig.get_paths()["purelib"]), bench.folder / "start"])
        with bench.server("start", publish) as (server, ready_s):
            if name in ("cold", "warm"):
                print(
                    f"| {name} | {ready_s:.2f} s | {cpu_s(server.process.pid):.2f} s "
                    f"| {memory_mb(server):,.0f} MB |",
                    flush=True,
                )
        publish = lambda _: None  # noqa: E731  (the store stays)


def forget(folders: Sequence[Path]) -> None:
    """Drop files from the page cache; pages that another process maps stay (posix_fadvise(2))."""
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)


PARTS: Mapping[str, Callable[[Bench], None]] = {
    part.__name__: part for part in (rows, connections, experts, tasks, models, items, start)
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--seconds", type=float, default=2, help="of a measurement (default: 2)")
    options = parser.parse_args()
    require_wrk()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for part in options.parts:
            print(f"\n{part}\n", flush=True)
            PARTS[part](Bench(Path(temporary), options.seconds))


if __name__ == "__main__":
    main()
