"""What telemetry costs: CPU time per request with and without it, and the time of a scrape.

    python -m tests.bench.telemetry [--rounds 5] [--seconds 2] [--rows 1 50] [--checkout PATH]

Servers of one working tree run side by side and are measured in turn, once a round: without any
telemetry (no metrics, log, samples or monitor of the event loop: patched here, the service has no
such option), as it is, and with spans of 1 % and of all requests, exported to a receiver in this
process. `--checkout` adds another working tree as it is. CPU time is the user and system time of
the server's process, from /proc, divided by the requests that wrk counted.

Then a server with 7 000 series (`tests.support.series`) is scraped while wrk keeps it busy, and the
text format is written by this service and by prometheus_client. Needs wrk.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import httpx
import prometheus_client

from app.artifacts.store import Store
from app.cli.main import main as gatehouse_command
from app.scoring.response_sampler import ResponseSampler
from app.scoring.score import Scorer
from app.telemetry.event_loop import EventLoopMonitor
from app.telemetry.metrics import Metrics
from tests import REPOSITORY
from tests.bench.hot_path import Subject, cpu_s, measure, server_of
from tests.bench.http import native, reference_artifact
from tests.bench.wrk import require_wrk
from tests.support.otlp import collector
from tests.support.series import fill
from tests.support.server import Server, clean_environment, free_port, standalone_server, wait_for

NONE, AS_IS = "none", "as it is"
CONNECTIONS = 32
SCRAPES = 40


def main() -> None:
    """Measure and print two tables, or serve as one of the subjects."""
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of all servers (default: 5)")
    parser.add_argument("--seconds", type=int, default=2, help="of one measurement (default: 2)")
    parser.add_argument("--rows", type=int, nargs="*", default=(1, 50), help="of a request")
    parser.add_argument("--checkout", type=Path, help="another working tree, measured beside this")
    arguments = parser.parse_args()
    require_wrk()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference_artifact(Store(folder / "store"))
        print_costs(folder, arguments)
        print_scrapes(folder)


def serve(how: str, flags: Sequence[str]) -> None:
    """Run `gatehouse serve` without telemetry, or with many series."""

    def nothing(*_: object, **__: object) -> None:
        pass

    if how == NONE:
        Scorer._record = nothing  # type: ignore[method-assign]  # counts and logs a request
        ResponseSampler.sample = never_again  # type: ignore[method-assign, assignment]
        for name in ("batch", "shed", "cancelled", "unknown", "drain"):
            setattr(Metrics, name, nothing)
        for name in ("__init__", "close"):
            setattr(EventLoopMonitor, name, nothing)
    else:
        create = Metrics.__init__

        def create_filled(self: Metrics, *arguments: Any) -> None:
            create(self, *arguments)
            fill(self)

        Metrics.__init__ = create_filled  # type: ignore[method-assign, assignment]
        Metrics.keep_only = nothing  # type: ignore[method-assign]  # these models do not exist
    sys.exit(gatehouse_command(["serve", *flags]))


def never_again(self: ResponseSampler, *_: object) -> None:
    """Replace `ResponseSampler.sample`."""
    self.next_at = float("inf")


@contextmanager
def patched_server(how: str, store: Path, log: Path) -> Iterator[Server]:
    """Run a server of this module's `serve`."""
    port = free_port()
    flags = ["--store", str(store), "--port", str(port)]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.telemetry", "serve", how, *flags],
            stderr=stderr,
            cwd=REPOSITORY,
            env=clean_environment(),
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_for(server, "/readyz")
        yield server
    finally:
        process.kill()
        process.wait()


@contextmanager
def subjects(folder: Path, checkout: Path | None) -> Iterator[list[Subject]]:
    """Run every server that is measured."""
    with ExitStack() as stack:
        received = stack.enter_context(collector())

        def as_is(name: str, variables: Mapping[str, str] = MappingProxyType({})) -> Subject:
            log = folder / f"{name}.log".replace(" ", "-")
            running = standalone_server(folder / "store", log, environment=variables)
            server = stack.enter_context(running)
            return Subject(name, server.url, server.process.pid, native)

        def spans(share: str) -> dict[str, str]:
            return {
                "OTEL_EXPORTER_OTLP_ENDPOINT": received.url,
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": share,
                "NO_PROXY": "*",
            }

        bare = stack.enter_context(patched_server(NONE, folder / "store", folder / "none.log"))
        found = [
            Subject(NONE, bare.url, bare.process.pid, native),
            as_is(AS_IS),
            as_is("spans of 1 %", spans("0.01")),
            as_is("spans of all", spans("1")),
        ]
        if checkout is not None:
            other = stack.enter_context(server_of(checkout.absolute(), folder))
            found.append(Subject("other tree", other.url, other.process.pid, native))
        yield found


def print_costs(folder: Path, arguments: argparse.Namespace) -> None:
    """Print the CPU time per request of every server."""
    samples: dict[tuple[str, int], list[float]] = {}
    with subjects(folder, arguments.checkout) as servers:
        for server in servers:
            measure(server, 1, CONNECTIONS, 1, folder)  # warm up
        for _ in range(arguments.rounds):
            for rows in arguments.rows:
                for server in servers:
                    sample = measure(server, rows, CONNECTIONS, arguments.seconds, folder)
                    samples.setdefault((server.name, rows), []).append(sample.cpu_us)
    print("| rows | telemetry | CPU µs a request | more than without |")
    print("| ---: | --- | ---: | ---: |")
    for rows in arguments.rows:
        # Of one round, so that a busy minute of the machine counts for both.
        bare = samples[NONE, rows]
        for server in servers:
            own = samples[server.name, rows]
            more = median([a - b for a, b in zip(own, bare, strict=True)])
            shown = "" if server.name == NONE else f"{more:+.1f} µs, {more / median(bare):+.1%}"
            print(f"| {rows} | {server.name} | {median(own):.1f} | {shown} |")


def print_scrapes(folder: Path) -> None:
    """Print how long scrapes of a busy server take, and what writing the text costs."""
    prometheus_client.disable_created_metrics()  # as when serving
    metrics = Metrics()
    fill(metrics)
    ours = thread_ms(metrics.render)
    library = thread_ms(lambda: prometheus_client.generate_latest(metrics.registry))
    with patched_server("filled", folder / "store", folder / "filled.log") as server:
        subject = Subject("filled", server.url, server.process.pid, native)
        idle_ms, series = scrape(server.url)
        load = threading.Thread(target=measure, args=(subject, 50, 8, 12, folder))
        load.start()
        time.sleep(1)
        busy_ms, _ = scrape(server.url)
        load.join()
        before = cpu_s(server.process.pid)
        scrape(server.url)
        cpu_ms = (cpu_s(server.process.pid) - before) / SCRAPES * 1e3
    print(f"\n{series} series, {os.cpu_count()} cores")
    print("| scrape | median ms | p95 ms |")
    print("| --- | ---: | ---: |")
    for name, values in (("idle server", idle_ms), ("busy server", busy_ms)):
        ordered = sorted(values)
        print(f"| {name} | {median(ordered):.1f} | {ordered[int(0.95 * len(ordered))]:.1f} |")
    print(f"\nCPU time of a scrape: {cpu_ms:.1f} ms, of which {ours:.1f} ms write the text")
    print(f"(prometheus_client: {library:.1f} ms)")


def scrape(url: str) -> tuple[list[float], int]:
    """Return how long each of several scrapes took (ms), and the number of series."""
    took, text = [], ""
    with httpx.Client() as client:
        for _ in range(SCRAPES):
            began = time.perf_counter()
            text = client.get(f"{url}/metrics").text
            took.append((time.perf_counter() - began) * 1e3)
            time.sleep(0.1)
    return took, sum(not line.startswith("#") for line in text.splitlines())


def thread_ms(function: Any) -> float:
    """Return the CPU time of a call in this thread (ms), the median of ten."""
    took = []
    for _ in range(11):
        began = time.thread_time()
        function()
        took.append((time.thread_time() - began) * 1e3)
    return median(took[1:])


if __name__ == "__main__":
    main()
