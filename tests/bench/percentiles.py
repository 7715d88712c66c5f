"""Measure latency by request size, format and load, compared with the same model in process.

    python -m tests.bench.percentiles [--seconds 8] [--checkout PATH]

Requests have 1, 50 and 500 candidates of 100 numbers, as native JSON and as V2 binary tensors. They
are sent in a closed loop (wrk) with 1, 8 and 32 connections, then in an open loop
(`app.benchmarking.load`) at 70 % of the best rate of that size and format, with latencies counted
from when requests were due. The limit is the same model in this process with one thread per core,
measured for each size. Model and requests are those of `tests.bench.http`.

`--checkout` runs the server of another working tree, to compare a change with the code before it.
The other tree publishes the reference model itself. If it does not support V2, only JSON is
measured.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from app.artifacts.loader import load
from app.artifacts.program import Program
from app.artifacts.store import Store
from app.benchmarking.load import SENDS_PER_S, Plan, fire, http
from app.benchmarking.requests import Post
from app.engine.hardware import usable_cores
from tests import REPOSITORY
from tests.bench.dialects import v2_binary
from tests.bench.http import in_process, native, reference_artifact
from tests.bench.wrk import require_wrk, wrk
from tests.support.server import Server, python_of, standalone_server

SIZES = (1, 50, 500)
CONNECTIONS = (1, 8, 32)
OPEN_SHARE = 0.7
_PUBLISH = """
import sys, pathlib
from app.artifacts.store import Store
from tests.bench.http import reference_artifact
reference_artifact(Store(pathlib.Path(sys.argv[1])))
"""
_HEAD = (
    "| rows | form | load | requests/s | of in process | p50 | p99 | p99.9 | worst | not 200 |\n"
    "| ---: | --- | --- |" + " ---: |" * 7
)


@dataclass(frozen=True, slots=True)
class Form:
    """A format of requests."""

    name: str
    post: Callable[[int], Post]


FORMS = (Form("native JSON", native), Form("V2 binary", v2_binary))


@dataclass(frozen=True, slots=True)
class Bench:
    """A server, and what to measure."""

    server: Server
    folder: Path
    program: Program
    forms: Sequence[Form]
    seconds: int

    def measure(self, rows: int) -> None:
        """Print the rows of one request size."""
        limit, alone_ms = in_process(self.program, rows, self.seconds, usable_cores())
        print(f"| {rows} | | in process | {limit:,.0f} | 1.00 | {alone_ms:.2f} ms alone | | | | |")
        for form in self.forms:
            post = form.post(rows)
            wrk(self.server.url, post, 8, 1, self.folder)
            peak = 0.0
            for connections in CONNECTIONS:
                found = wrk(self.server.url, post, connections, self.seconds, self.folder)
                rate = found.rate
                peak = max(peak, rate)
                cells = [f"closed, {connections}", f"{rate:,.0f}", f"{rate / limit:.2f}"]
                cells += [f"{found.p50_ms:.2f} ms", f"{found.p99_ms:.2f} ms", "", "", ""]
                print(f"| {rows} | {form.name} | {' | '.join(cells)} |", flush=True)
            self._measure_open(rows, form, peak * OPEN_SHARE, limit)

    def _measure_open(self, rows: int, form: Form, rate: float, limit: float) -> None:
        post = form.post(rows)
        port = int(self.server.url.rsplit(":", 1)[1])
        request = http(post.path, post.body, post.headers)
        plan = Plan(port, [request], seconds=self.seconds, rate=rate, connections=900)
        report = fire(plan, min(usable_cores(), math.ceil(rate / SENDS_PER_S)))
        answered = report.rate_within()
        cells = [f"open, {rate:,.0f}/s", f"{answered:,.0f}", f"{answered / limit:.2f}"]
        cells += [f"{report.latency_ms(share):.2f} ms" for share in (0.5, 0.99, 0.999, 1.0)]
        print(f"| {rows} | {form.name} | {' | '.join(cells)} | {(report.status != 200).sum()} |")
        late_ms = report.lag_ms(0.99)
        if late_ms > report.latency_ms(0.99) / 2:
            print(f"{rows} rows: requests were sent {late_ms:.1f} ms late (p99)", file=sys.stderr)


def spoken(server: Server) -> list[Form]:
    """Return the formats that the server supports."""
    understood = []
    for form in FORMS:
        post = form.post(1)
        answer = httpx.post(server.url + post.path, content=post.body, headers=dict(post.headers))
        if answer.status_code == 200:
            understood.append(form)
        else:
            print(f"{form.name}: status {answer.status_code}, skipped", file=sys.stderr)
    return understood


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=8, help="duration of each row (default: 8)")
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="candidates per request")
    parser.add_argument(
        "--checkout", type=Path, default=REPOSITORY, help="working tree of the server"
    )
    options = parser.parse_args()
    require_wrk()
    checkout = options.checkout.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        program = load(reference_artifact(Store(folder / "own")), torch.device("cpu")).program
        torch.set_num_threads(1)
        publishing = [python_of(checkout), "-c", _PUBLISH, str(folder / "store")]
        subprocess.run(publishing, cwd=checkout, check=True)
        flags = ("--request-timeout-ms", "60000")  # measure slow requests instead of refusing them
        with standalone_server(
            folder / "store", folder / "log", *flags, checkout=checkout
        ) as server:
            bench = Bench(server, folder, program, spoken(server), options.seconds)
            print(f"{usable_cores()} cores, torch {torch.__version__}\n\n{_HEAD}", flush=True)
            for rows in options.rows:
                bench.measure(rows)


if __name__ == "__main__":
    main()
