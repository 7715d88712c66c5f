"""Measure how Python's garbage collector affects the slowest requests, under four policies.

    python -m tests.bench.collector [--seconds 6]

Sends requests of one candidate to the complete service, 16 at a time and without a socket. Each
policy runs in its own process: Python's default; permanent objects frozen after warm-up; frozen and
a higher threshold, as in `gatehouse serve`; and the collector off, as the lower bound. Pauses are
those of the collector itself.
"""

import argparse
import asyncio
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import orjson
import uvloop

from app.artifacts.store import Store
from app.main import gatehouse
from app.settings import Settings
from tests.bench.http import COLUMNS, reference_artifact

CALLERS = 16


def frozen() -> None:
    """Exclude all objects that exist now from collection."""
    gc.collect()
    gc.freeze()


def frozen_and_rarer() -> None:
    """Also run the collector less often, as `app.server.process` does."""
    frozen()
    gc.set_threshold(10_000, 10, 10)


POLICIES: dict[str, Callable[[], None]] = {
    "Python's default": lambda: None,
    "frozen after warm-up": frozen,
    "frozen, threshold 10 000": frozen_and_rarer,
    "off": gc.disable,
}


async def measure(policy: str, store: Path, seconds: float) -> None:
    """Serve with one policy and print its row of the table."""
    pauses: list[float] = []
    began = [0.0]

    def on_gc(phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            began[0] = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - began[0])

    body = orjson.dumps({"candidates": {"x": [[0.1] * COLUMNS]}})
    latencies: list[float] = []
    async with gatehouse(Settings(store=store, log_sample=0, slow_request_ms=60_000)) as parts:
        await parts.deployment.refresh()
        POLICIES[policy]()
        transport = httpx.ASGITransport(parts.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gatehouse") as client:
            end = time.perf_counter() + seconds

            async def caller() -> None:
                while (sent := time.perf_counter()) < end:
                    (await client.post("/v1/score", content=body)).raise_for_status()
                    latencies.append(time.perf_counter() - sent)

            gc.callbacks.append(on_gc)
            await asyncio.gather(*(caller() for _ in range(CALLERS)))
            gc.callbacks.remove(on_gc)
    p50, p99, p999, worst = np.percentile(np.array(latencies) * 1e3, (50, 99, 99.9, 100))
    print(
        f"| {policy} | {len(pauses)} | {max(pauses, default=0) * 1e3:.1f} ms | {p50:.1f} ms "
        f"| {p99:.1f} ms | {p999:.1f} ms | {worst:.1f} ms |",
        flush=True,
    )


def main() -> None:
    """Measure one policy if --policy is given, else all of them, each in a child process."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.collector", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="for each policy (default 6)")
    parser.add_argument("--policy", choices=POLICIES, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.policy:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure(arguments.policy, arguments.store, arguments.seconds))
        return
    print("| collector | runs | longest pause | p50 | p99 | p99.9 | worst |")
    print("| --- | --: | --: | --: | --: | --: | --: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        reference_artifact(Store(Path(folder)))
        for policy in POLICIES:
            flags = ["--policy", policy, "--store", folder, "--seconds", str(arguments.seconds)]
            subprocess.run([sys.executable, "-m", "tests.bench.collector", *flags], check=True)


if __name__ == "__main__":
    main()
