"""What Ray Serve costs: one replica behind it beside one plain process.

    python -m tests.bench.ray_serve [--rounds 3] [--seconds 2]

Each has one lane and the reference model of `tests.bench.http`, and they are measured in turn with
wrk. CPU is the user and system time of all processes per request: of Ray also its proxy, controller
and nodes. Ray is measured with its own proxy, and with HAProxy in its place (`HAPROXY`). Needs wrk,
haproxy and the extra `ray`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from app.artifacts.store import Store
from tests import REPOSITORY
from tests.bench.hot_path import Subject, measure
from tests.bench.http import native, reference_artifact
from tests.support.server import clean_environment, standalone_server

_SERVE = """
import sys, pathlib
from app.artifacts.store import Store
from tests.soak.ray_serve import fleet
with fleet(Store(pathlib.Path(sys.argv[1])), nodes=1) as running:
    running.deploy(1)
    print(running.url, flush=True)
    sys.stdin.read()
"""
SIZES, CONNECTIONS = (1, 50, 500), (1, 32)
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


@contextmanager
def ray_serve(store: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Serve with a Ray cluster below a process of its own; return the URL and its PID."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVE, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
        env=clean_environment() | dict(environment),
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        # Ray writes to standard output, too.
        url = next(line.strip() for line in process.stdout if line.startswith("http://"))
        yield url, process.pid
    finally:
        process.stdin.close()
        process.wait(60)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--seconds", type=int, default=2, help="of a measurement (default: 2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference_artifact(Store(folder / "store"))
        flags = ("--lanes", "1")
        with (
            standalone_server(folder / "store", folder / "log", *flags) as plain,
            ray_serve(folder / "store", {}) as (url, pid),
            ray_serve(folder / "store", HAPROXY) as (haproxy_url, haproxy_pid),
        ):
            subjects = [
                Subject("plain process", plain.url, plain.process.pid, native),
                Subject("Ray Serve", url, pid, native),
                Subject("Ray Serve, HAProxy", haproxy_url, haproxy_pid, native),
            ]
            print(
                "| rows | connections | server | requests/s | p50 ms | p99 ms | CPU µs a request |"
            )
            print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
            for rows in SIZES:
                for connections in CONNECTIONS:
                    samples = [
                        [
                            measure(subject, rows, connections, options.seconds, folder)
                            for subject in subjects
                        ]
                        for _ in range(options.rounds)
                    ]
                    for subject, found in zip(subjects, zip(*samples, strict=True), strict=True):
                        rate, p50, p99, cpu = (
                            median(getattr(sample, name) for sample in found)
                            for name in ("rate", "p50_ms", "p99_ms", "cpu_us")
                        )
                        print(
                            f"| {rows} | {connections} | {subject.name} | {rate:,.0f} "
                            f"| {p50:.2f} | {p99:.2f} | {cpu:,.0f} |",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
