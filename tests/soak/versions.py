"""Change versions again and again under load, and check every response.

    python -m tests.soak.versions [--swaps 100] [--rollbacks 20] [--canaries 20]

Callers send requests to a real server without a pause. Meanwhile new versions are published, rolled
back, and tried as canaries. The model's scores identify the version. The soak checks that every
request succeeds, that each response comes from one version, and that memory does not grow. It
prints the latency before and during the changes, and how long each kind of change took.

The exit code is 0 if all checks pass.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import httpx
import numpy as np

from app.artifacts.store import Store
from app.cli.main import main as gatehouse
from tests.soak.__main__ import growth_mib, resident
from tests.soak.model import NAME, publish_echo
from tests.soak.under_load import callers, command, wait_for
from tests.support.server import Server, standalone_server

MOST_P99_RATIO = 3.0
_CANDIDATES = [float(position) for position in range(50)]
_QUIET_S = 3.0


@dataclass
class Calls:
    """What the callers saw.

    Attributes:
        phase: what is going on now.
        latencies: of the requests (s), by the phase in which they began.
        faults: what was wrong with responses.
        versions: those that answered.
        is_over: tells the callers to end.
    """

    phase: str = "quiet"
    latencies: dict[str, list[float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)
    is_over: threading.Event = field(default_factory=threading.Event)

    def run(self, url: str, caller: int) -> None:
        """Call until it is over."""
        body = {"user": {"u": float(caller)}, "candidates": {"c": _CANDIDATES}}
        sums = [caller + value for value in _CANDIDATES]
        with httpx.Client(base_url=url, timeout=30) as client:
            number = 0
            while not self.is_over.is_set():
                number += 1
                phase, began = self.phase, time.perf_counter()
                key = {"x-routing-key": f"{caller}-{number}"}
                response = client.post("/v1/score", json=body, headers=key)
                duration_s = time.perf_counter() - began
                self.latencies.setdefault(phase, []).append(duration_s)
                if fault := self._fault(response, sums):
                    self.faults.append(f"{phase}: {fault}")

    def _fault(self, response: httpx.Response, sums: list[float]) -> str:
        if response.status_code != 200:
            return f"status {response.status_code}: {response.text}"
        document = response.json()
        version, scores = document["version"], document["scores"]
        self.versions.add(version)
        if scores["version"] != [version] * len(sums) or scores["sum"] != sums:
            return f"mixed answer of version {version}: {scores}"
        return ""


def soak(
    swaps: int,
    rollbacks: int,
    canaries: int,
    *,
    most_growth_mib: float,
    most_p99_ratio: float = MOST_P99_RATIO,
) -> list[str]:
    """Run the soak, print the table and return the failed checks."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = Store(folder / "made")  # beforehand: making them takes time from the callers
        for _ in range(1 + swaps + canaries):
            publish_echo(made)
        store = Store(folder / "store")
        (store.folder / NAME).mkdir(parents=True)
        _publish_next(made, store)
        flags = ("--store-poll-s", "0.2", "--slow-request-ms", "60000")
        with standalone_server(store.folder, folder / "log", *flags) as server:
            calls = Calls()
            with callers(calls.run, server.url, calls.is_over):
                took, memory = _change(server, made, store, calls, swaps, rollbacks, canaries)
            failed = calls.faults[:20] + _table(calls, took, most_p99_ratio)
            growth = growth_mib(memory)
            print(f"memory grew by {growth:.1f} MiB over the second half of the changes")
            if growth > most_growth_mib:
                failed.append(f"memory grew by {growth:.1f} MiB: {memory}")
            if code := server.terminate():
                failed.append(f"exit code {code}")
    return failed


def _publish_next(made: Store, store: Store) -> int:
    """Move the next version into the store and return it."""
    version = made.versions(NAME)[0]
    (made.folder / NAME / str(version)).rename(store.folder / NAME / str(version))
    return version


def _change(
    server: Server,
    made: Store,
    store: Store,
    calls: Calls,
    swaps: int,
    rollbacks: int,
    canaries: int,
) -> tuple[dict[str, list[float]], list[int]]:
    """Make all changes; return how long each took (s) by kind, and the memory after each."""
    took: dict[str, list[float]] = {}
    memory: list[int] = []

    def change(kind: str, make: Callable[[], None]) -> None:
        calls.phase, began = kind, time.monotonic()
        make()
        took.setdefault(kind, []).append(time.monotonic() - began)
        memory.append(resident(server.process.pid))

    def swap() -> None:
        version = _publish_next(made, store)
        os.kill(server.process.pid, signal.SIGHUP)
        wait_for(server, lambda card: card["version"] == version)

    def roll_back() -> None:
        _command(server, store, "rollback")

    time.sleep(_QUIET_S)
    for _ in range(swaps):
        change("swap", swap)
    for _ in range(rollbacks):
        change("rollback", roll_back)
        calls.phase = "other"
        _command(server, store, "activate", "latest")
    for _ in range(canaries):
        calls.phase = "other"
        version = _publish_next(made, store)
        change("canary", lambda version=version: _try(server, store, version))  # type: ignore[misc]
    return took, memory


def _try(server: Server, store: Store, version: int) -> None:
    """Let a version be a canary until it is promoted, and make that permanent."""
    gates = ("--for", "1s", "--share", "0.5", "--error-ratio", "0.01")
    _command(server, store, "canary", str(version), *gates)
    wait_for(server, lambda card: card["traffic"]["canary"]["state"] == "promoted")
    _command(server, store, "activate", str(version))
    _command(server, store, "canary", "--end")


def _command(server: Server, store: Store, name: str, *arguments: str) -> None:
    nudge = ("--wait", server.url, "--hup", str(server.process.pid))
    with redirect_stdout(StringIO()):
        code = gatehouse([name, NAME, *arguments, "--store", str(store.folder), *nudge])
    if code:
        raise RuntimeError(f"gatehouse {name} {arguments}: exit code {code}")


def _table(calls: Calls, took: dict[str, list[float]], most_p99_ratio: float) -> list[str]:
    """Print latencies and durations by phase; return the failed checks."""
    failed = []
    print(f"{'phase':10} {'requests':>9} {'p50 ms':>8} {'p99 ms':>8}  {'changes':>7} {'mean s':>7}")
    quiet_s = float(np.quantile(calls.latencies["quiet"], 0.99))
    for phase, latencies in calls.latencies.items():
        p50_s, p99_s = np.quantile(latencies, [0.5, 0.99])
        seconds = took.get(phase, [])
        mean = f"{np.mean(seconds):7.3f}" if seconds else "       "
        print(
            f"{phase:10} {len(latencies):9} {p50_s * 1e3:8.2f} {p99_s * 1e3:8.2f}  "
            f"{len(seconds):7} {mean}"
        )
        if p99_s > most_p99_ratio * quiet_s:
            failed.append(f"{phase}: p99 {p99_s * 1e3:.1f} ms, quiet {quiet_s * 1e3:.1f} ms")
    print(f"{len(calls.faults)} faults, {len(calls.versions)} versions answered")
    return failed


if __name__ == "__main__":
    sys.exit(command(str(__doc__), {"swaps": 100, "rollbacks": 20, "canaries": 20}, soak))
