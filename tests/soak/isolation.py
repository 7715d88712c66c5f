"""Load versions of one model in a loop while another model answers requests.

    python -m tests.soak.isolation [--rounds 6] [--rate 100] [--rows 50] [--every 1]

Both models are the reference model (`tests.bench.http`). Requests come at Poisson times to a real
server; latency counts from when a request was due. Quiet phases and phases with loads alternate, so
that a noisy machine disturbs both. Prints p50 and p99 of both, their ratio, and the CPU time of the
server, all of which `--checkout` can compare with another working tree.

The exit code is 1 if the p99 with loads is over `--limit` times the quiet one.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

from app.artifacts.store import Store
from app.benchmarking.load import Plan, Report, fire, http
from tests import REPOSITORY
from tests.bench.http import native, reference_artifact
from tests.support.server import Server, standalone_server

OTHER = "other"
_PATIENCE_S = 60.0


class Loads:
    """Publishes versions of the other model, one when the one before is active."""

    def __init__(self, server: Server, store: Path, made: Path, *, every_s: float = 0.0) -> None:
        """Copy version 1 of the model in `made` into the store, at most once in `every_s` (s)."""
        self._server = server
        self._store = store
        self._made = made
        self._every_s = every_s
        self._is_over = threading.Event()
        self.took_s: list[float] = []
        self.version = 0

    def run(self) -> None:
        """Publish until it is over."""
        self._is_over.clear()
        with httpx.Client(base_url=self._server.url) as client:
            while not self._is_over.is_set():
                self.took_s.append(self._publish(client))
                self._is_over.wait(max(0.0, self._every_s - self.took_s[-1]))

    def end(self) -> None:
        """Let `run` return after the version that is being loaded."""
        self._is_over.set()

    def _publish(self, client: httpx.Client) -> float:
        self.version += 1
        hidden = self._store / OTHER / f".{self.version}"
        shutil.copytree(self._made, hidden)
        manifest = json.loads((hidden / "model.json").read_text())
        manifest |= {"name": OTHER, "version": self.version}
        (hidden / "model.json").write_text(json.dumps(manifest))
        hidden.rename(self._store / OTHER / str(self.version))
        began = time.monotonic()
        os.kill(self._server.process.pid, signal.SIGHUP)
        # The cheapest route that tells: /v1/models would take milliseconds of the event loop.
        while client.get(f"/v2/models/{OTHER}/versions/{self.version}/ready").status_code != 200:
            if time.monotonic() - began > _PATIENCE_S:
                raise TimeoutError(self._server.log.read_text()[-2000:])
            time.sleep(0.05)
        return time.monotonic() - began


def phases(
    server: Server, loads: Loads, rounds: int, seconds: float, rate: float, rows: int
) -> Iterator[tuple[str, Report, float]]:
    """Yield the kind, the report and the server's CPU time (s) of each phase."""
    post = native(rows)
    request = http("/v1/models/reference/score", post.body, post.headers)
    port = int(server.url.rsplit(":", 1)[1])
    for number in range(2 * rounds):
        is_quiet = number % 2 == 0
        thread = threading.Thread(target=loads.run)
        if not is_quiet:
            thread.start()
        plan = Plan(port, [request], seconds=seconds, rate=rate, connections=256, seed=number)
        before = _cpu_s(server.process.pid)
        report = fire(plan)
        cpu_s = _cpu_s(server.process.pid) - before
        if not is_quiet:
            loads.end()
            thread.join()
        yield "quiet" if is_quiet else "loads", report, cpu_s


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run the phases, print the table, and check the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6, help="(default: 6)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a phase (default: 4)")
    parser.add_argument("--rate", type=float, default=100.0, help="requests/s (default: 100)")
    parser.add_argument(
        "--every", type=float, default=0.0, help="seconds between loads (default: 0, in a row)"
    )
    parser.add_argument("--rows", type=int, default=50, help="candidates (default: 50)")
    parser.add_argument("--limit", type=float, default=1.5, help="of the ratio (default: 1.5)")
    parser.add_argument("--checkout", type=Path, default=REPOSITORY, help="run this tree's server")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artifact = reference_artifact(Store(folder / "store"))
        (folder / "store" / OTHER).mkdir()
        shutil.copytree(artifact.folder, folder / "made")
        flags = ("--slow-request-ms", "60000", "--log-sample", "0")
        with standalone_server(
            folder / "store", folder / "log", *flags, checkout=options.checkout
        ) as server:
            loads = Loads(server, folder / "store", folder / "made", every_s=options.every)
            with httpx.Client(base_url=server.url) as client:
                loads._publish(client)  # the first one is loaded on the lanes
            found: dict[str, list[Report]] = {"quiet": [], "loads": []}
            cpu_s = {"quiet": 0.0, "loads": 0.0}
            shape = (options.rounds, options.seconds, options.rate, options.rows)
            for kind, report, took_s in phases(server, loads, *shape):
                found[kind].append(report)
                cpu_s[kind] += took_s
    print(f"{len(loads.took_s)} loads, {np.mean(loads.took_s):.2f} s each")
    print(f"{'phase':8} {'requests':>9} {'not 200':>8} {'p50 ms':>8} {'p99 ms':>8} {'CPU s':>7}")
    p99_ms = {}
    for kind, reports in found.items():
        whole = np.concatenate([report.latency_s for report in reports]) * 1e3
        failed = sum(int((report.status != 200).sum()) for report in reports)
        p50, p99_ms[kind] = np.quantile(whole, (0.5, 0.99))
        print(
            f"{kind:8} {len(whole):9} {failed:8} {p50:8.2f} {p99_ms[kind]:8.2f} {cpu_s[kind]:7.1f}"
        )
    by_round = [
        loaded.latency_ms(0.99) / quiet.latency_ms(0.99)
        for quiet, loaded in zip(found["quiet"], found["loads"], strict=True)
    ]
    ratio = p99_ms["loads"] / p99_ms["quiet"]
    print(f"p99 with loads: {ratio:.2f} x; by round {', '.join(f'{r:.2f}' for r in by_round)}")
    return 1 if ratio > options.limit else 0


if __name__ == "__main__":
    sys.exit(main())
