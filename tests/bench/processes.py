"""Compare three ways to run three copies of the service on one host.

    python -m tests.bench.processes

- three servers, each with its own port;
- uvicorn's supervisor (`uvicorn --workers 3`) with the same application;
- `gatehouse serve --processes 3`.

Prints for each the private memory of a copy and of everything together, and what it takes to
replace a copy that is killed: the time until the new one serves, and its CPU time until then.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from fastapi import FastAPI

from app.artifacts.store import Store
from app.main import gatehouse
from app.settings import Settings
from tests import REPOSITORY
from tests.soak.model import publish_echo
from tests.support.server import clean_environment, free_port, standalone_server

COPIES = 3
KILLS = 3
_PATIENCE_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


def application() -> FastAPI:
    """Return the service for uvicorn, which starts and stops it by its lifespan."""

    @asynccontextmanager
    async def lifespan(outer: FastAPI) -> AsyncIterator[None]:
        async with gatehouse(Settings()) as parts:
            await parts.start()
            outer.mount("/", parts.app)
            yield

    return FastAPI(lifespan=lifespan)


@dataclass(frozen=True)
class Copies:
    """Copies that run.

    Attributes:
        pids: returns the processes of the copies.
        others: processes beside the copies.
        replace: waits until a copy that was killed is replaced.
    """

    pids: Callable[[], list[int]]
    others: list[int]
    replace: Callable[[int], None]


@contextmanager
def servers(store: Path, folder: Path) -> Iterator[Copies]:
    """Start a server for each copy."""
    with ExitStack() as stack:

        def start() -> int:
            log = folder / f"server-{time.monotonic_ns()}"
            return stack.enter_context(standalone_server(store, log, "--lanes", "1")).process.pid

        pids = [start() for _ in range(COPIES)]

        def replace(pid: int) -> None:
            pids[pids.index(pid)] = start()

        yield Copies(lambda: pids, [], replace)


@contextmanager
def supervised(store: Path, folder: Path, line: str, *command: str) -> Iterator[Copies]:
    """Start a supervisor; each copy that serves writes `line` to the log."""
    log = folder / f"log-{time.monotonic_ns()}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(free_port())],
            stderr=stream,
            stdout=stream,
            cwd=REPOSITORY,
            env=clean_environment() | {"GATEHOUSE_STORE": str(store), "GATEHOUSE_LANES": "1"},
        )
    serving = 0

    def wait(more: int) -> None:
        nonlocal serving
        serving += more
        patience = time.monotonic() + _PATIENCE_S
        while log.read_text().count(line) < serving:
            if time.monotonic() > patience or process.poll() is not None:
                raise TimeoutError(log.read_text())
            time.sleep(0.01)

    def pids() -> list[int]:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in children if "resource_tracker" not in command_of(pid)]
        return [int(pid) for pid in workers]

    try:
        wait(COPIES)
        yield Copies(pids, [process.pid], lambda _: wait(1))
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def command_of(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def private_mib(pid: int) -> float:
    """Return the memory of a process that it shares with no other (MiB)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def proportional_mib(pid: int) -> float:
    """Return the memory of a process, shared pages divided by those who share them (MiB)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def cpu_s(pid: int) -> float:
    """Return the user and system time of a process (s)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def measure(copies: Copies) -> list[str]:
    """Return the cells of a row of the table."""
    together = sum(map(proportional_mib, copies.pids() + copies.others))
    private = mean(map(private_mib, copies.pids()))
    times_s, cpus_s = [], []
    for _ in range(KILLS):
        before = set(copies.pids())
        began = time.monotonic()
        os.kill(min(before), signal.SIGKILL)
        copies.replace(min(before))
        times_s.append(time.monotonic() - began)
        [new] = set(copies.pids()) - before
        cpus_s.append(cpu_s(new))
    return [f"{private:.0f}", f"{together:.0f}", f"{mean(times_s):.2f}", f"{mean(cpus_s):.2f}"]


def main() -> int:
    """Print the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    serve = ("app", "serve", "--processes", str(COPIES))
    uvicorn = ("uvicorn", "--workers", str(COPIES), "--factory", f"{__spec__.name}:application")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        publish_echo(Store(folder / "store"))
        kinds = {
            "three servers": lambda: servers(folder / "store", folder),
            "`uvicorn --workers 3`": lambda: supervised(
                folder / "store", folder, "Application startup complete", *uvicorn
            ),
            "`--processes 3`": lambda: supervised(folder / "store", folder, "listening on", *serve),
        }
        print("| | private MiB, a copy | MiB, all | replaced after s | CPU s |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name, start in kinds.items():
            with start() as copies:
                print(f"| {name} | {' | '.join(measure(copies))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
