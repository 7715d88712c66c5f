"""Measure item tables on disk: ``python -m tests.bench.tables [--rows 1000000] [--features 64]``.

A Parquet file of random numbers is published by the command, then read as a server reads it: time
to publish and to open, time of lookups and reads, a delta, and the memory of three processes that
have the table open. A lookup is the median of many, each of other keys.
"""

import argparse
import multiprocessing
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from torch import Tensor, nn

from app.artifacts.inputs import DenseInput, IdInput, Input
from app.artifacts.publish import publish
from app.artifacts.store import Store
from app.artifacts.tables.listing import tables_of
from app.artifacts.tables.publish import publish_delta
from app.artifacts.tables.table import Table, open_table
from app.artifacts.tables.writer import TablePlan, TableWriter
from tests import REPOSITORY
from tests.support.builders import batch, description, scripted

TURNS = 400
CANDIDATES = 500
PROCESSES = 3
MODEL = "feed"


class Sum(nn.Module):
    """[B, 2]: the first feature of the candidate, twice; the network does not matter here."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        first = candidate["f0"][:, 0] + user["age"][row_to_request][:, 0]  # [B]
        return torch.stack([first, first], dim=1)


def prepare(folder: Path, rows: int, features: int) -> None:
    """Write a store with a model, and files with keys of both types."""
    inputs: list[Input] = [DenseInput(name="age", side="user")]
    inputs += [DenseInput(name=f"f{number}", side="candidate") for number in range(features)]
    inputs.append(IdInput(name="brand", side="candidate", vocabulary_size=100))
    model = description(name=MODEL, inputs=tuple(inputs))
    publish(Store(folder / "store"), model, scripted(Sum()), batch(tuple(inputs)))
    random = np.random.default_rng(0)
    columns: dict[str, Any]
    columns = {f"f{n}": random.random(rows, dtype=np.float32) for n in range(features)}
    columns["brand"] = random.integers(0, 100, rows)
    keys = random.permutation(3 * rows)[:rows]
    for name, key in (("int64", keys), ("string", [f"item:{key:09d}" for key in keys])):
        parquet.write_table(
            pa.table({"key": key, **columns}), folder / f"{name}.parquet", row_group_size=100_000
        )


def publish_file(folder: Path, name: str) -> str:
    """Publish a file by the command; return the time it took."""
    began = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["items", "publish", str(folder / f"{name}.parquet"), "--key", "key"]
    command.append("--force")  # the second file has another type of keys
    subprocess.run(
        [sys.executable, "-m", "app.cli.main", *command, "--store", str(folder / "store")],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{time.perf_counter() - began:.1f} s ({cpu_s:.1f} s of CPU time)"


def opened(folder: Path) -> Table:
    return open_table(tables_of(folder / "store" / MODEL, "items")[-1], MODEL)


def median_us(work: Callable[[int], object]) -> str:
    """Return the median time of a piece of work, which gets the number of its turn."""
    times = []
    for turn in range(TURNS):
        began = time.perf_counter()
        work(turn)
        times.append(time.perf_counter() - began)
    return f"{np.median(times) * 1e6:.0f} µs"


def memory_of(folder: Path, barrier: Barrier, answer: Connection) -> None:
    """Open the table, wait until all processes have, and send what its pages take (bytes)."""
    table = opened(folder)
    barrier.wait()
    found = {"Rss": 0, "Pss": 0, "Private_Dirty": 0}
    counts = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = f"/{MODEL}/items/" in line
        elif counts and (field := line.split(":")[0]) in found:
            found[field] += int(line.split()[1]) * 1024
    answer.send(found)
    barrier.wait()
    assert table.rows


def memory(folder: Path) -> str:
    """Return the memory of several processes that have the table open."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    pipes = [context.Pipe(duplex=False) for _ in range(PROCESSES)]
    processes = [
        context.Process(target=memory_of, args=(folder, barrier, sender)) for _, sender in pipes
    ]
    for process in processes:
        process.start()
    found = [receiver.recv() for receiver, _ in pipes]
    for process in processes:
        process.join()
    sums = {name: sum(figures[name] for figures in found) / 1e6 for name in found[0]}
    return (
        f"{sums['Pss']:.0f} MB for {PROCESSES} processes (each maps "
        f"{sums['Rss'] / PROCESSES:.0f} MB; private: {sums['Private_Dirty']:.0f} MB)"
    )


def delta(folder: Path, table: Table, rows: int) -> tuple[str, Table]:
    """Publish a delta, and return the time to follow it and the new view."""
    found = table.description
    keys, positions = next(table.batches(rows))
    records = table.take(positions)
    plan = TablePlan(
        model=folder / "store" / MODEL,
        kind="items",
        key=found.key,
        columns=found.columns,
        defaults=table.take(np.array([-1])),
    )

    def fill(writer: TableWriter) -> None:
        writer.add(keys, records)

    listed = publish_delta(plan, fill)
    began = time.perf_counter()
    newer = table.extended(listed)
    return f"{(time.perf_counter() - began) * 1e3:.1f} ms", newer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, options.rows, options.features)
        print(f"| {options.rows:,} items x {options.features} numbers | int64 keys | string keys |")
        print("| --- | --- | --- |")
        columns = [measured(folder, name, options.rows) for name in ("int64", "string")]
        for name in columns[0]:
            print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


def measured(folder: Path, name: str, rows: int) -> dict[str, str]:
    """Return what is measured with one type of keys."""
    found = {"publish": publish_file(folder, name)}
    memory_found = memory(folder)
    began = time.perf_counter()
    table = opened(folder)
    found["open: hash, check, map"] = f"{time.perf_counter() - began:.2f} s"
    found["size"] = f"{table.size / 1e6:.0f} MB"
    found["memory"] = memory_found
    random = np.random.default_rng(1)
    column = parquet.read_table(folder / f"{name}.parquet", columns=["key"])["key"].to_numpy()
    asked: list[Any]
    asked = [column[random.integers(0, rows, CANDIDATES)] for _ in range(TURNS)]
    if name == "string":
        # New strings, one after the other in memory, as the parser of a request makes them.
        asked = [[key.encode().decode() for key in keys] for keys in asked]
    found[f"find {CANDIDATES} keys"] = median_us(lambda turn: table.find(asked[turn]))
    positions = [table.find(keys) for keys in asked]
    assert all((places >= 0).all() for places in positions)
    found[f"take {CANDIDATES} rows"] = median_us(lambda turn: table.take(positions[turn]))
    found["follow a delta of 1,000 rows"], newer = delta(folder, table, 1000)
    found["find with the delta"] = median_us(lambda turn: newer.find(asked[turn]))
    return found


if __name__ == "__main__":
    main()
