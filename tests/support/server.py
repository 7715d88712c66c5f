"""A real server process on a real socket."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx

from tests import REPOSITORY
from tests.support.forked import Forked, run_forked

START_S = 60.0  # enough for a slow machine
PATIENT = MappingProxyType({"GATEHOUSE_REQUEST_TIMEOUT_MS": "30000"})
"""The deadline of requests that do not set one, in all tests: longer than a slow machine needs."""


@dataclass
class Server:
    """`gatehouse serve` in a process."""

    process: subprocess.Popen[bytes] | Forked
    url: str
    log: Path

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_S)

    def children(self) -> list[int]:
        """Return the PIDs of its processes, if it has several."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]


def free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(
    store: Path,
    log: Path,
    *flags: str,
    ready: bool = True,
    ca: Path | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """Start a server for `store`, wait until it is ready (or alive), and kill it afterwards.

    With `ca`, the certificate that signs the server's, requests use HTTPS.
    """
    env = {**patient_environment(), **environment}

    def start(arguments: Sequence[str]) -> Forked:
        return Forked(arguments, stderr=log, cwd=REPOSITORY, env=env)

    with _running(start, store, log, *flags, ready=ready, ca=ca) as server:
        yield server


@contextmanager
def standalone_server(
    store: Path,
    log: Path,
    *flags: str,
    environment: Mapping[str, str] = MappingProxyType({}),
    checkout: Path = REPOSITORY,
) -> Iterator[Server]:
    """Start a server with a Python of its own, as users do, wait until it is ready, and kill it.

    What is measured runs so: a fork shares memory and imports with others, and keeps the limits of
    slow machines. The server runs the code of `checkout`, a working tree.
    """
    env = {**clean_environment(), **environment}

    def start(arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
        with log.open("wb") as stderr:
            return subprocess.Popen(
                [python_of(checkout), "-m", *arguments], stderr=stderr, cwd=checkout, env=env
            )

    with _running(start, store, log, *flags) as server:
        yield server


@contextmanager
def _running(
    start: "Callable[[Sequence[str]], subprocess.Popen[bytes] | Forked]",
    store: Path,
    log: Path,
    *flags: str,
    ready: bool = True,
    ca: Path | None = None,
) -> Iterator[Server]:
    port = free_port()
    arguments = ["app", "serve", "--store", str(store.absolute()), "--port", str(port), *flags]
    process = start(arguments)
    server = Server(process, f"http{'s' if ca else ''}://127.0.0.1:{port}", log)
    try:
        wait_for(server, "/readyz" if ready else "/livez", ca)
        yield server
    finally:
        process.kill()
        process.wait()


def python_of(checkout: Path) -> str:
    """Return the Python of a working tree's virtual environment if it has one, or this Python."""
    own = checkout / ".venv" / "bin" / "python"
    return str(own) if checkout != REPOSITORY and own.exists() else sys.executable


def failed_start(
    *flags: str, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run `gatehouse serve` for as long as it runs; return its exit code and output."""
    env = {**patient_environment(), **environment}
    return run_forked(["app", "serve", *flags], cwd=REPOSITORY, env=env, timeout=START_S)


def clean_environment() -> dict[str, str]:
    """Return the environment variables without settings of the service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GATEHOUSE_")}


def patient_environment() -> dict[str, str]:
    """Return the environment of servers in tests: without settings, except `PATIENT`."""
    return clean_environment() | PATIENT


def wait_for(server: Server, path: str, ca: Path | None = None) -> None:
    """Wait until a GET request for `path` returns 200."""
    verify = ssl.create_default_context(cafile=ca)
    patience = time.monotonic() + START_S
    while time.monotonic() < patience and server.process.poll() is None:
        try:
            if httpx.get(server.url + path, verify=verify).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the server did not answer {path}:\n{server.log.read_text()}")
