"""Where small batches run: on lanes, or on the event loop. `python -m tests.bench.small_batches`.

Requests of few rows for the reference model, from wrk, to servers that differ in one rule:

- lanes: every batch runs on a lane;
- alone: a batch of at most `INLINE_S` that is alone runs on the event loop. This is what a server
  does.

The servers take turns, because rates of a shared machine change within minutes. CPU time is that of
the server by request, from /proc. Medians of the rounds. Needs wrk.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from app.artifacts.store import Store
from tests.bench.dialects import v2_binary
from tests.bench.hot_path import Sample, cpu_s, settled
from tests.bench.http import reference_artifact
from tests.bench.switch_interval import until_ready
from tests.bench.wrk import require_wrk, wrk
from tests.support.server import clean_environment, free_port

RULES = ("lanes", "alone")
_SERVE = """
import sys
from app.cli.main import main
from app.engine import batcher
rule, *arguments = sys.argv[1:]
if rule == "lanes":
    batcher.INLINE_S = 0.0
sys.exit(main(["serve", *arguments]))
"""


def measure(
    rule: str, store: Path, loads: Sequence[tuple[int, int]], seconds: int, folder: Path
) -> list[Sample]:
    """Start a server with a rule, and load it with `(rows, connections)` after each other."""
    port = free_port()
    options = ("--store", str(store), "--port", str(port))
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE, rule, *options],
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
    )
    url, samples = f"http://127.0.0.1:{port}", []
    try:
        until_ready(f"{url}/readyz")
        for rows, connections in loads:
            post = v2_binary(rows)
            wrk(url, post, connections, 1, folder)
            before = cpu_s(server.pid)
            load = wrk(url, post, connections, seconds, folder)
            used_s = settled(lambda: cpu_s(server.pid)) - before
            cpu_us = used_s / load.requests * 1e6
            samples.append(Sample(load.rate, load.p50_ms, load.p99_ms, cpu_us))
    finally:
        server.terminate()
        server.wait()
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--seconds", type=int, default=3, help="of a measurement (default: 3)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1], help="(default: 1)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    require_wrk()
    loads = [(rows, connections) for rows in options.rows for connections in options.connections]
    samples: dict[tuple[str, tuple[int, int]], list[Sample]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference_artifact(Store(folder / "store"))
        for number in range(options.rounds):
            for rule in RULES if number % 2 else reversed(RULES):
                measured = measure(rule, folder / "store", loads, options.seconds, folder)
                for load, sample in zip(loads, measured, strict=True):
                    samples.setdefault((rule, load), []).append(sample)
    print("| rows | connections | rule | requests/s | p50 ms | p99 ms | CPU µs |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for rows, connections in loads:
        for rule in RULES:
            of_rule = samples[rule, (rows, connections)]
            rate, p50, p99, cpu = (
                median(getattr(sample, name) for sample in of_rule)
                for name in ("rate", "p50_ms", "p99_ms", "cpu_us")
            )
            print(
                f"| {rows} | {connections} | {rule} | {rate:,.0f} | {p50:.2f} | {p99:.2f} "
                f"| {cpu:,.0f} |"
            )


if __name__ == "__main__":
    main()
