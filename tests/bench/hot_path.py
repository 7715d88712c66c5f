"""CPU time per request and rates, beside a no-op server and the model alone: the goals, met or not.

    python -m tests.bench.hot_path [--rounds 3] [--seconds 3] [--checkout PATH]

Every cell is measured once a round, server after server, and the medians are shown: on a shared
machine rates swing by a factor of three, CPU time per request hardly. It is the user and system
time of all processes of a server, from /proc, divided by the requests that wrk counted. The model
and the requests are those of `tests.bench.http`. "ASGI door" is the same server with a header that
keeps requests from the direct door. With `--checkout`, another working tree is measured beside this
one; with `--mosec`, mosec with the same TorchScript file, if the package is installed in the
environment of that Python. Needs wrk.
"""

import argparse
import os
import re
import shutil
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
from app.artifacts.store import Store
from tests import REPOSITORY
from tests.bench.dialects import v2_binary
from tests.bench.http import Post, candidates, in_process, native, reference_artifact
from tests.support.server import clean_environment, free_port, python_of, running_server

_PUBLISH = """
import sys, pathlib
from app.artifacts.store import Store
from tests.bench.http import reference_artifact
reference_artifact(Store(pathlib.Path(sys.argv[1])))
"""
_WRK = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
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
        each = todo.pop()
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            for task in Path(f"/proc/{each}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def measure(subject: Subject, rows: int, connections: int, seconds: int, folder: Path) -> Sample:
    """Load a server with wrk."""
    post = subject.post(rows)
    body, script = folder / "body", folder / "post.lua"
    body.write_bytes(post.body)
    headers = {**post.headers, **subject.headers, "x-request-timeout-ms": "60000"}
    lines = "".join(f'wrk.headers["{k}"] = "{v}"\n' for k, v in headers.items())
    script.write_text(_WRK.format(body=body) + lines)
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    before = cpu_s(subject.pid)
    output = subprocess.run(
        [*wrk, f"{subject.url}{post.path}"], check=True, capture_output=True, text=True
    ).stdout
    used_s = cpu_s(subject.pid) - before
    if "Non-2xx" in output:
        raise SystemExit(f"{subject.name}: {output}")
    requests = int(_found(r"(\d+) requests in", output))
    return Sample(
        rate=float(_found(r"Requests/sec:\s+(\S+)", output)),
        p50_ms=_ms(_found(r"\n\s+50%\s+(\S+)", output)),
        p99_ms=_ms(_found(r"\n\s+99%\s+(\S+)", output)),
        cpu_us=used_s / requests * 1e6,
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]


def _ms(written: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(us|ms|s|m)", written).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}[unit]


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


def _servers(stack: ExitStack, folder: Path, checkout: Path | None) -> list[Subject]:
    store = folder / "store"
    ours = stack.enter_context(running_server(store, folder / "log"))
    pid = ours.process.pid
    subjects = [
        Subject("JSON", ours.url, pid, native),
        Subject("binary", ours.url, pid, v2_binary),
        Subject("JSON, ASGI door", ours.url, pid, native, {"origin": "http://bench"}),
    ]
    if checkout is not None:
        other_store = folder / "other"
        subprocess.run(
            [python_of(checkout), "-c", _PUBLISH, str(other_store)],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            check=True,
        )
        other = stack.enter_context(
            running_server(
                other_store,
                folder / "other.log",
                environment={"PYTHONPATH": str(checkout)},
                checkout=checkout,
            )
        )
        subjects += [
            Subject("other JSON", other.url, other.process.pid, native),
            Subject("other binary", other.url, other.process.pid, v2_binary),
        ]
    url, pid = stack.enter_context(noop_server(folder))
    return [*subjects, Subject("no-op ASGI", url, pid, native)]


def _medians(samples: Sequence[Sample]) -> Sample:
    return Sample(
        *(
            median([getattr(each, name) for each in samples])
            for name in ("rate", "p50_ms", "p99_ms", "cpu_us")
        )
    )


def main() -> None:
    """Measure, print the table, then the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of all servers (default: 3)")
    parser.add_argument("--seconds", type=int, default=3, help="of one measurement (default: 3)")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows of a request")
    parser.add_argument("--connections", type=int, nargs="*", default=(1, 32))
    parser.add_argument("--checkout", type=Path, help="another working tree, measured beside this")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        artifact = reference_artifact(Store(folder / "store"))
        program = load(artifact, torch.device("cpu")).program
        torch.set_num_threads(1)
        subjects = _servers(stack, folder, arguments.checkout)
        samples: dict[tuple[str, int, int], list[Sample]] = {}
        alone_us: dict[int, list[float]] = {}
        alone_rate: dict[int, list[float]] = {}
        for _ in range(arguments.rounds):
            for rows in arguments.sizes:
                alone_us.setdefault(rows, []).append(in_process_cpu_us(program, rows, 1))
                rate, _p50 = in_process(program, rows, 1, os.cpu_count() or 1)
                alone_rate.setdefault(rows, []).append(rate)
                for connections in arguments.connections:
                    for subject in subjects:
                        measure(subject, rows, connections, 1, folder)
                        sample = measure(subject, rows, connections, arguments.seconds, folder)
                        samples.setdefault((subject.name, rows, connections), []).append(sample)
        print(f"{os.cpu_count()} cores, torch {torch.__version__}, {REPOSITORY.name}\n")
        print("| rows | connections | server | requests/s | p50 ms | p99 ms | CPU µs a request |")
        print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
        for rows in arguments.sizes:
            us, rate = median(alone_us[rows]), median(alone_rate[rows])
            print(f"| {rows} | | model in process | {rate:,.0f} | | | {us:,.0f} |")
            for connections in arguments.connections:
                for subject in subjects:
                    m = _medians(samples[subject.name, rows, connections])
                    print(
                        f"| {rows} | {connections} | {subject.name} | {m.rate:,.0f} "
                        f"| {m.p50_ms:.2f} | {m.p99_ms:.2f} | {m.cpu_us:,.0f} |"
                    )


if __name__ == "__main__":
    main()
