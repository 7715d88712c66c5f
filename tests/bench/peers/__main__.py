"""Measure Gatehouse beside its peers on this machine, and write the tables of BENCHMARKS.md.

    python -m tests.bench.peers [--rounds 3] [--seconds 2] [--peers Triton mosec] [--write]

Every server runs the same TorchScript file (`tests.bench.http`), in its own environment under
`build/peers`, at the best setting of a small sweep (50 rows, 32 connections). A round starts all
servers of a form, compares their scores with those of the model in process, and loads one after the
other with wrk: 1, 50 and 500 rows at 1, 8 and 32 connections. From the second round on, those with
binary requests also get Poisson arrivals at 70 % of the lowest peak so far.

Results are kept in `build/peers/results.jsonl`: the command goes on where it was interrupted, and
`--rounds` counts those that are there; `--fresh` begins again. The tables have medians of the
rounds. CPU time is that of all processes of a server, from /proc.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from app.artifacts.loader import load, load_program
from app.artifacts.program import Program, scores
from app.artifacts.store import PROGRAM, Store
from app.benchmarking.load import Plan, fire, http
from app.engine.hardware import usable_cores
from tests import REPOSITORY
from tests.bench.hot_path import in_process_cpu_us, settled
from tests.bench.http import candidates, in_process, reference_artifact
from tests.bench.own_artifact import publish_own
from tests.bench.peers.environments import FOLDER, CannotInstall
from tests.bench.peers.peers import (
    PEERS,
    Peer,
    Running,
    Scores,
    Settings,
    check,
    items_file,
    running,
)
from tests.bench.peers.tables import (
    ALONE,
    CONNECTIONS,
    OURS,
    PLAIN,
    SIZES,
    TWO,
    Result,
    write,
)
from tests.bench.wrk import require_wrk, wrk

GROUPS = (("binary", "ids", "own"), ("json",))
"""Forms whose servers run at the same time."""
RESULTS = FOLDER / "results.jsonl"
CHOSEN = FOLDER / "chosen.json"
_SWEEP_AT = (50, 32)
_OPEN_SHARE = 0.7
_PATIENT = {"x-request-timeout-ms": "60000"}
_OPEN_PEERS = (OURS, TWO, "Triton", "mosec")  # of the open loop: those with binary requests


class _TimeIsOver(Exception):
    """The minutes that were given are over."""


@dataclass(frozen=True, slots=True)
class _Busy:
    """CPU times so far (s): of all cores, of this process and of its children that ended."""

    at: float
    cores_s: float
    own_s: float

    @classmethod
    def now(cls) -> "_Busy":
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        ticks = [int(field) for field in fields[:8]]
        idle = ticks[3] + ticks[4]
        busy_s = (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return cls(time.monotonic(), busy_s, sum(own[:4]))

    def others(self, server_s: float) -> float:
        """Return the share of the cores that others have used since, besides a server's time."""
        now = _Busy.now()
        used_s = now.cores_s - self.cores_s - (now.own_s - self.own_s) - server_s
        cores = os.cpu_count() or 1
        return max(0.0, used_s / (now.at - self.at) / cores)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement needs: the models, a folder for files, how long, and when to stop.

    Attributes:
        program: the reference model as Gatehouse runs it.
        plain: the same file, loaded and frozen as PyTorch does it.
        own: computes the scores of a request to our own artifact.
        file: the TorchScript file of the reference model.
        folder: for files; Gatehouse's store is in it.
        seconds: of a measurement.
        end: monotonic time when to stop (s).
    """

    program: Program
    plain: Program
    own: Callable[[int], Scores]
    file: Path
    folder: Path
    seconds: float
    end: float

    def in_time(self) -> None:
        """Check that time is left.

        Raises:
            _TimeIsOver: the results so far are kept.
        """
        if time.monotonic() > self.end:
            raise _TimeIsOver

    def expected(self, rows: int) -> Scores:
        """Return the scores of a request, computed in process."""
        raw = self.program.run(candidates([rows]))
        return scores(raw, self.program.description.tasks)

    def cell(self, server: Running, rows: int, connections: int, number: int) -> Result:
        """Load a server in a closed loop."""
        post = server.peer.forms[server.form].post(rows)
        wrk(server.url, post, connections, 1, self.folder, _PATIENT)
        before_s, busy = settled(server.cpu_s), _Busy.now()
        found = wrk(server.url, post, connections, self.seconds, self.folder, _PATIENT)
        used_s = server.cpu_s() - before_s
        return Result(
            *(number, server.peer.name, server.form, rows, connections),
            *(found.rate, found.p50_ms, found.p99_ms, used_s / found.requests * 1e6),
            others=busy.others(used_s),
        )

    def open_loop(self, server: Running, rows: int, rate: float, number: int) -> Result:
        """Load a server at a rate, by Poisson times."""
        post = server.peer.forms[server.form].post(rows)
        request = http(post.path, post.body, {**post.headers, **_PATIENT})
        port = int(server.url.rpartition(":")[2])
        plan = Plan(port, [request], rate=rate, seconds=2 * self.seconds, warm_up_s=1)
        before_s, busy = server.cpu_s(), _Busy.now()
        report = fire(plan)
        used_s = server.cpu_s() - before_s
        served = max(1.0, len(report.status) * (1 + plan.warm_up_s / plan.seconds))
        return Result(
            *(number, server.peer.name, server.form, rows, 0),
            *(report.rate_within(), report.latency_ms(0.5), report.latency_ms(0.99)),
            *(used_s / served * 1e6, rate, busy.others(used_s)),
        )


def kept() -> list[Result]:
    """Return the results of former runs."""
    if not RESULTS.is_file():
        return []
    return [Result(**json.loads(line)) for line in RESULTS.read_text().splitlines()]


def keep(result: Result) -> None:
    """Append a result to the file, and show it."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")
    where = f"{result.connections} connections" if result.connections else "open loop"
    print(
        f"round {result.round}: {result.peer} {result.form}, {result.rows} rows, {where}: "
        f"{result.rate:,.0f}/s, p50 {result.p50_ms:.2f} ms, p99 {result.p99_ms:.2f} ms, "
        f"{result.cpu_us:,.0f} µs",
        flush=True,
    )


def best_settings(bench: Bench, peer: Peer) -> Settings:
    """Return the setting with the highest rate, from a former run or from a sweep."""
    chosen = json.loads(CHOSEN.read_text()) if CHOSEN.is_file() else {}
    tried = chosen.setdefault(peer.name, {})
    form = next(iter(peer.forms))
    for settings in peer.sweep:
        name = json.dumps(settings)
        if name in tried or len(peer.sweep) == 1:
            continue
        with running(peer, form, settings, bench.file, bench.folder) as server:
            found = bench.cell(server, *_SWEEP_AT, 0)
        tried[name] = found.rate
        print(f"{peer.name} with {settings}: {found.rate:,.0f}/s", flush=True)
        CHOSEN.write_text(json.dumps(chosen, indent=1))
    if not tried:
        return peer.sweep[0]
    best: Settings = json.loads(max(tried, key=lambda name: tried[name]))
    return best


def measure_in_process(bench: Bench, number: int, done: Sequence[Result]) -> None:
    """Measure the model without a server: the rate of all cores, and the CPU time of one."""
    if any(result.peer == ALONE and result.round == number for result in done):
        return
    for rows in SIZES:
        for name, program in ((PLAIN, bench.plain), (ALONE, bench.program)):
            cpu_us = in_process_cpu_us(program, rows, 1)
            rate, p50_ms = in_process(program, rows, bench.seconds, usable_cores())
            keep(Result(number, name, "", rows, 1, rate, p50_ms, float("nan"), cpu_us))


def measure_group(bench: Bench, peers: Sequence[Peer], forms: Sequence[str], number: int) -> None:
    """Measure what a round lacks: cell after cell, and in each one server after the other.

    All servers run at once, so that what disturbs the machine for a while disturbs all of them;
    those that wait need hardly any CPU time.
    """
    done = kept()
    had = {
        (result.peer, result.form, result.rows, result.connections)
        for result in done
        if result.round == number
    }
    cells = [(rows, count) for rows in SIZES for count in CONNECTIONS]
    opened = open_rates(done, number)
    missing = [
        (peer, form)
        for form in forms
        for peer in peers
        if form in peer.forms and any((peer.name, form, *cell) not in had for cell in cells)
    ]
    to_open = [(peer, "binary") for peer in peers if peer.name in _OPEN_PEERS and opened]
    if "binary" not in forms or all(
        (p.name, f, rows, 0) in had for p, f in to_open for rows in opened
    ):
        to_open = []
    with ExitStack() as stack:
        servers: dict[tuple[str, str], Running] = {}
        for peer, form in [*missing, *to_open]:
            if (peer.name, form) not in servers:
                server = _started(bench, peer, form, stack)
                if server is not None:
                    servers[peer.name, form] = server
        for rows, connections in cells:
            for server in servers.values():
                bench.in_time()
                if (server.peer.name, server.form, rows, connections) not in had:
                    keep(bench.cell(server, rows, connections, number))
        for rows, rate in opened.items():
            for peer, form in to_open:
                bench.in_time()
                key = (peer.name, form)
                if key in servers and (*key, rows, 0) not in had:
                    keep(bench.open_loop(servers[key], rows, rate, number))


def _started(bench: Bench, peer: Peer, form: str, stack: ExitStack) -> Running | None:
    """Start a server and compare its scores; show and keep the reason if that fails."""
    failed = FOLDER / f"{peer.package or peer.name}.failed"
    try:
        bench.in_time()
        chosen = best_settings(bench, peer)
        server = stack.enter_context(running(peer, form, chosen, bench.file, bench.folder))
        check(server, {"reference": bench.expected, "own": bench.own}, SIZES)
    except (CannotInstall, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        failed.write_text(reason[:400])
        print(f"{peer.name}: {reason[:2000]}", file=sys.stderr, flush=True)
        return None
    failed.unlink(missing_ok=True)
    return server


def open_rates(done: Sequence[Result], number: int) -> Mapping[int, float]:
    """Return 70 % of the lowest peak in the rounds before, by rows; empty in the first round."""
    rates: dict[tuple[int, str], float] = {}
    for result in done:
        is_before = result.form == "binary" and result.connections and result.round < number
        if is_before and result.peer in _OPEN_PEERS:
            key = (result.rows, result.peer)
            rates[key] = max(rates.get(key, 0.0), result.rate)
    if len(rates) < len(SIZES) * len(_OPEN_PEERS):
        return {}
    return {rows: _OPEN_SHARE * min(rates[rows, peer] for peer in _OPEN_PEERS) for rows in SIZES}


def publish_items(folder: Path) -> None:
    """Publish the candidates of the largest request as an items table of the reference model."""
    file = items_file(folder, max(SIZES))
    store = ("--store", str(folder / "store"), "--model", "reference", "--key", "item_id")
    command = [sys.executable, "-m", "app", "items", "publish", str(file), *store]
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


def main() -> None:
    """Measure what is missing, then print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="in all (default: 3)")
    parser.add_argument("--seconds", type=float, default=2, help="of a measurement (default: 2)")
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="*", choices=names, default=[], metavar="NAME")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after that time")
    parser.add_argument("--fresh", action="store_true", help="forget results and sweeps")
    parser.add_argument(
        "--write", action="store_true", help="write into BENCHMARKS.md and the plot"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    require_wrk()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if arguments.fresh:
        RESULTS.unlink(missing_ok=True)
        CHOSEN.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artifact = reference_artifact(Store(folder / "store"))
        publish_items(folder)
        own = publish_own(folder / "store")
        cpu = torch.device("cpu")
        program = load(artifact, cpu).program
        torch.set_num_threads(1)
        file = (artifact.folder / PROGRAM).absolute()
        plain = load_program(file.read_bytes(), program.description, cpu)
        end = time.monotonic() + arguments.minutes * 60
        bench = Bench(program, plain, own, file, folder, arguments.seconds, end)
        peers = [peer for peer in PEERS if not arguments.peers or peer.name in arguments.peers]
        with suppress(_TimeIsOver):
            for number in range(1, arguments.rounds + 1):
                measure_in_process(bench, number, kept())
                for forms in GROUPS:
                    measure_group(bench, peers, forms, number)
    write(kept(), is_written=arguments.write)


if __name__ == "__main__":
    main()
