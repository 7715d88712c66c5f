"""CPU time per request and rates, beside a no-op server and the model alone: the goals, met or not.

    python -m tests.bench.hot_path [--rounds 3] [--seconds 3] [--checkout PATH] [--mosec PYTHON]

Every cell is measured once a round, server after server, and the medians are shown: on a shared
machine rates swing by a factor of three, CPU time per request hardly. It is the user and system
time of all processes of a server, from /proc, divided by the requests that wrk counted. The model
and the requests are those of `tests.bench.http`. "Through ASGI" is the same server with a header
that keeps requests from the direct path. With `--checkout`, another working tree is measured beside
this one; with `--mosec`, mosec with the same TorchScript file, run by that Python, as
`tests.bench.peers` runs it. Needs wrk.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import torch

from app.artifacts.loader import load
from app.artifacts.program import Program, scores
from app.artifacts.store import PROGRAM, Artifact, Store
from app.benchmarking.requests import Post
from app.engine.hardware import usable_cores
from tests.bench.dialects import v2_binary
from tests.bench.http import candidates, in_process, native, reference_artifact
from tests.bench.wrk import require_wrk, wrk
from tests.support.server import Server, clean_environment, free_port, python_of, standalone_server

_PUBLISH = """
import sys, pathlib
from app.artifacts.store import PROGRAM, Artifact, Store
from app.engine.hardware import usable_cores
from tests.bench.http import reference_artifact
reference_artifact(Store(pathlib.Path(sys.argv[1])))
"""
NOOP = """
async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})
"""
SIZES = (1, 50, 500)


@dataclass(frozen=True)
class Subject:
    """A server that is measured: its address, its main process, and the requests it takes."""

    name: str
    url: str
    pid: int
    post: Callable[[int], Post]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One measurement: requests per second, percentiles (ms), CPU time per request (µs)."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def cpu_s(pid: int) -> float:
    """Return the CPU time (s) of a process, its children and theirs."""
    total, todo = 0.0, [pid]
    while todo:
        process = todo.pop()
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            for task in Path(f"/proc/{process}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def settled(read_cpu_s: Callable[[], float]) -> float:
    """Return a server's CPU time (s) once it is idle.

    When wrk ends, each of its connections leaves a request behind, which the server may still
    compute. Its CPU time must not count for the next measurement.
    """
    before_s, end = read_cpu_s(), time.monotonic() + 5
    while time.monotonic() < end:
        time.sleep(0.1)
        now_s = read_cpu_s()
        if now_s - before_s < 0.02:
            return now_s
        before_s = now_s
    return before_s


def measure(subject: Subject, rows: int, connections: int, seconds: int, folder: Path) -> Sample:
    """Load a server with wrk."""
    headers = {**subject.headers, "x-request-timeout-ms": "60000"}
    before = settled(lambda: cpu_s(subject.pid))
    found = wrk(subject.url, subject.post(rows), connections, seconds, folder, headers)
    cpu_us = (cpu_s(subject.pid) - before) / found.requests * 1e6
    return Sample(found.rate, found.p50_ms, found.p99_ms, cpu_us)


@contextmanager
def noop_server(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a no-op ASGI application under uvicorn; yield its URL and pid."""
    (folder / "noop.py").write_text(NOOP)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "noop:app", "--port", str(port), "--loop", "uvloop"]
    options = [
        "--http",
        "httptools",
        "--no-access-log",
        "--log-level",
        "error",
        "--lifespan",
        "off",
    ]
    process = subprocess.Popen([*command, *options], cwd=folder, env=clean_environment())
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_open(url)
        yield url, process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def mosec_server(python: Path, program: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Run mosec with the same TorchScript file; yield its URL and pid."""
    port = free_port()
    script = Path(__file__).parent / "peers" / "servers" / "mosec_server.py"
    with (folder / "mosec.log").open("wb") as log:
        process = subprocess.Popen(
            [python.absolute(), script, "--port", str(port), "--timeout", "60000"],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "MODEL": str(program)},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_open(url)
        _wait_for_workers(url)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def _wait_for_workers(url: str) -> None:
    post = mosec(1)
    for _ in range(300):
        if httpx.post(url + post.path, content=post.body, timeout=60).status_code == 200:
            return
        time.sleep(0.2)
    raise SystemExit("mosec does not answer")


def mosec(rows: int) -> Post:
    """Return the request as its numbers alone."""
    return Post("/inference", candidates([rows]).candidate["x"].tobytes(), {})


def wait_until_open(url: str, seconds: float = 60) -> None:
    """Wait until a server accepts connections."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nothing answers at {url}")


def in_process_cpu_us(program: Program, rows: int, seconds: float) -> float:
    """Return the CPU time of one request in process, on one thread (µs)."""
    batch = candidates([rows])
    end = time.perf_counter() + seconds
    began, count = time.process_time(), 0
    while time.perf_counter() < end:
        scores(program.run(batch), program.description.tasks)
        count += 1
    return (time.process_time() - began) / count * 1e6


@contextmanager
def _subjects(
    folder: Path, artifact: Artifact, checkout: Path | None, mosec_python: Path | None
) -> Iterator[list[Subject]]:
    """Run every server, and yield what is measured."""
    with ExitStack() as stack:
        ours = stack.enter_context(standalone_server(folder / "store", folder / "log"))
        pid = ours.process.pid
        subjects = [
            Subject("JSON", ours.url, pid, native),
            Subject("binary", ours.url, pid, v2_binary),
            Subject("JSON, through ASGI", ours.url, pid, native, {"origin": "http://bench"}),
        ]
        if checkout is not None:
            other = stack.enter_context(server_of(checkout, folder))
            subjects += [
                Subject("other JSON", other.url, other.process.pid, native),
                Subject("other binary", other.url, other.process.pid, v2_binary),
            ]
        if mosec_python is not None:
            program = artifact.folder.absolute() / PROGRAM
            url, pid = stack.enter_context(mosec_server(mosec_python, program, folder))
            subjects.append(Subject("mosec", url, pid, mosec))
        url, pid = stack.enter_context(noop_server(folder))
        yield [*subjects, Subject("no-op ASGI", url, pid, native)]


@contextmanager
def server_of(checkout: Path, folder: Path) -> Iterator[Server]:
    """Run the server of another working tree, which publishes the reference model itself."""
    environment = {"PYTHONPATH": str(checkout)}
    store = folder / "other"
    subprocess.run(
        [python_of(checkout), "-c", _PUBLISH, str(store)],
        cwd=checkout,
        env={**os.environ, **environment},
        check=True,
    )
    log = folder / "other.log"
    with standalone_server(store, log, environment=environment, checkout=checkout) as server:
        yield server


def _medians(samples: Sequence[Sample]) -> Sample:
    return Sample(
        *(
            median([getattr(sample, name) for sample in samples])
            for name in ("rate", "p50_ms", "p99_ms", "cpu_us")
        )
    )


@dataclass(frozen=True)
class Results:
    """Medians: of every server, rows and connections, and of the model alone by rows."""

    servers: Mapping[tuple[str, int, int], Sample]
    alone_rate: Mapping[int, float]
    alone_us: Mapping[int, float]

    def print_all(self) -> None:
        """Print every measurement."""
        print("| rows | connections | server | requests/s | p50 ms | p99 ms | CPU µs a request |")
        print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
        for rows, rate in self.alone_rate.items():
            us = self.alone_us[rows]
            print(f"| {rows} | | model in process | {rate:,.0f} | | | {us:,.0f} |")
            for (name, of_rows, connections), m in self.servers.items():
                if of_rows == rows:
                    print(
                        f"| {rows} | {connections} | {name} | {m.rate:,.0f} "
                        f"| {m.p50_ms:.2f} | {m.p99_ms:.2f} | {m.cpu_us:,.0f} |"
                    )

    def goals(self) -> Iterator[tuple[str, float, float]]:
        """Yield each goal that was measured: what, the ratio, and the most that it may be."""
        at = self.servers.get
        json_1, lonely, binary_50 = at(("JSON", 1, 32)), at(("JSON", 1, 1)), at(("binary", 50, 32))
        if json_1 and (noop := at(("no-op ASGI", 1, 32))):
            yield "1 row, JSON: CPU / no-op ASGI application", json_1.cpu_us / noop.cpu_us, 2.2
        if lonely and (other := at(("other JSON", 1, 1))):
            yield "1 row, JSON, 1 connection: p50 / other tree", lonely.p50_ms / other.p50_ms, 0.5
        if binary_50 and (peer := at(("mosec", 50, 32))):
            yield "50 rows, binary: CPU / mosec", binary_50.cpu_us / peer.cpu_us, 1.0
            yield "50 rows, mosec's rate / binary", peer.rate / binary_50.rate, 1.0
        for name, most in (("binary", 1.05), ("JSON", 1.2)):
            if large := at((name, 500, 32)):
                yield (
                    f"500 rows, {name}: CPU / model alone",
                    large.cpu_us / self.alone_us[500],
                    most,
                )
                rate = self.alone_rate[500] / large.rate
                yield f"500 rows, rate of the model alone / {name}", rate, 1 / 0.92


def _measure_all(
    subjects: Sequence[Subject], program: Program, arguments: argparse.Namespace, folder: Path
) -> Results:
    samples: dict[tuple[str, int, int], list[Sample]] = {}
    alone_us: dict[int, list[float]] = {}
    alone_rate: dict[int, list[float]] = {}
    for _ in range(arguments.rounds):
        for rows in arguments.sizes:
            alone_us.setdefault(rows, []).append(in_process_cpu_us(program, rows, 1))
            rate, _p50 = in_process(program, rows, 1, usable_cores())
            alone_rate.setdefault(rows, []).append(rate)
            for connections in arguments.connections:
                for subject in subjects:
                    measure(subject, rows, connections, 1, folder)
                    sample = measure(subject, rows, connections, arguments.seconds, folder)
                    samples.setdefault((subject.name, rows, connections), []).append(sample)
    return Results(
        {of: _medians(found) for of, found in samples.items()},
        {rows: median(rates) for rows, rates in alone_rate.items()},
        {rows: median(times) for rows, times in alone_us.items()},
    )


def main() -> None:
    """Measure, print the table, then the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of all servers (default: 3)")
    parser.add_argument("--seconds", type=int, default=3, help="of one measurement (default: 3)")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows of a request")
    parser.add_argument("--connections", type=int, nargs="*", default=(1, 32))
    parser.add_argument("--checkout", type=Path, help="another working tree, measured beside this")
    parser.add_argument("--mosec", type=Path, help="the Python of an environment that has mosec")
    arguments = parser.parse_args()
    require_wrk()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artifact = reference_artifact(Store(folder / "store"))
        program = load(artifact, torch.device("cpu")).program
        torch.set_num_threads(1)
        with _subjects(folder, artifact, arguments.checkout, arguments.mosec) as subjects:
            results = _measure_all(subjects, program, arguments, folder)
    print(f"{usable_cores()} cores, torch {torch.__version__}\n")
    results.print_all()
    print("\n| goal (32 connections unless said) | at most | measured | |")
    print("| --- | ---: | ---: | --- |")
    for what, ratio, most in results.goals():
        print(f"| {what} | {most:.2f} | {ratio:.2f} | {'met' if ratio <= most else 'not met'} |")


if __name__ == "__main__":
    main()
