"""Compare `gatehouse plan` with what `gatehouse bench` then measures on one replica.

    python -m tests.bench.planned [--rows 1 50 500] [--form v2-binary] [--duration 4s] [--rounds 3]

The replica has one core and one lane, and the load generator the other core, so that they do not
slow each other down. Both commands run in turn, on the reference model of `tests.bench.http`;
figures are medians of the rounds, and the ratio of the rates is shown for each round. On a machine
that does other work, the replica does not get its core; then compare CPU times only: what
the plan says that a request costs in full batches, and what it costs when wrk sends 32 at once.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from app.artifacts.store import Store
from tests import REPOSITORY
from tests.bench.dialects import v2_binary, v2_json
from tests.bench.hot_path import cpu_s, settled
from tests.bench.http import native, reference_artifact
from tests.bench.wrk import require_wrk, wrk
from tests.support.server import Server, clean_environment, standalone_server

FORMS = {"json": native, "v2-json": v2_json, "v2-binary": v2_binary}
P99 = {1: "10ms", 50: "50ms", 500: "100ms"}


def command(*arguments: str) -> dict[str, Any]:
    """Run a command of gatehouse on the second core; return the JSON that it prints."""
    run = ["taskset", "-c", "1", sys.executable, "-m", "app", *arguments, "--json"]
    completed = subprocess.run(
        run, stdout=subprocess.PIPE, cwd=REPOSITORY, env=clean_environment(), check=False
    )
    document: dict[str, Any] = json.loads(completed.stdout)
    return document


def compare(
    server: Server, rows: int, options: argparse.Namespace, folder: Path
) -> Sequence[tuple[float, float, float, float]]:
    """Return rate (1/s) and CPU time a request (µs), planned and measured, of each round."""
    url, pid = server.url, server.process.pid
    post = FORMS[options.form](rows)
    p99 = P99.get(rows, "100ms")
    request = (f"--rows={rows}", f"--form={options.form}", f"--p99={p99}")
    rates = []
    for _ in range(options.rounds):
        planned = command("plan", f"--url={url}", "--rate=1000", *request)
        best = None
        if not options.cpu_only:
            load = ("--sweep", f"--duration={options.duration}")
            best = command("bench", url, *load, *request)["highest_rate"]
        before_s = settled(lambda: cpu_s(pid))
        found = wrk(url, post, 32, 2, folder, {"x-request-timeout-ms": "60000"})
        cpu_us = (cpu_s(pid) - before_s) / found.requests * 1e6
        rates.append(
            (
                planned["capacity"]["rate"],
                math.nan if best is None else best,
                1e6 / planned["limits"]["cores"],
                cpu_us,
            )
        )
    return rates


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 50, 500))
    parser.add_argument("--form", choices=FORMS, default="v2-binary")
    parser.add_argument("--duration", default="4s", help="of each rate (default: 4s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-only", action="store_true", help="for a busy machine: no sweep")
    options = parser.parse_args()
    require_wrk()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("needs two cores")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference_artifact(Store(folder / "store"))
        print(
            "| rows | p99 | planned, 1/s | measured, 1/s | ratio | CPU planned | measured | ratio |"
        )
        print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        with standalone_server(folder / "store", folder / "log", "--lanes", "1") as server:
            os.sched_setaffinity(server.process.pid, {0})
            for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {0})
            for rows in options.rows:
                rates = compare(server, rows, options, folder)
                planned, measured, *cpu = (median(column) for column in zip(*rates, strict=True))
                ratios = ", ".join(f"{a / b:.2f}" for a, b, *_ in rates)
                print(
                    f"| {rows} | {P99.get(rows, '100ms')} | {planned:,.0f} | {measured:,.0f} "
                    f"| {ratios} | {cpu[0]:,.0f} µs | {cpu[1]:,.0f} µs | {cpu[0] / cpu[1]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
