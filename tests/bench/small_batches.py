"""Where small batches run: on lanes, or on the event loop. `python -m tests.bench.small_batches`.

Requests of few rows for the reference model, from wrk and at Poisson times, to servers that differ
in one rule:

- lanes: every batch runs on a lane;
- served: short batches run on the event loop (`app/engine/inline.py`), as a server does it;
- with `--checkout`, another working tree, as its server does it.

The servers take turns, because rates of a shared machine change within minutes. CPU time is that of
the server by request, from /proc. Medians of the rounds. Needs wrk.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

from app.artifacts.store import Store
from app.benchmarking.load import Plan, fire, http
from tests import REPOSITORY
from tests.bench.dialects import v2_binary
from tests.bench.hot_path import Sample, cpu_s, settled
from tests.bench.http import reference_artifact
from tests.bench.switch_interval import until_ready
from tests.bench.wrk import require_wrk, wrk
from tests.support.server import clean_environment, free_port

LANES, SERVED = "lanes", "served"
_SERVE = """
import sys
from app.cli.main import main
from app.engine import batcher
rule, *arguments = sys.argv[1:]
if rule == "lanes":
    batcher.longest_inline_s = lambda requests: 0.0
sys.exit(main(["serve", *arguments]))
"""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of so many rows: over connections without a pause, or at a rate (1/s)."""

    rows: int
    connections: int = 0
    rate: float = 0.0

    @property
    def title(self) -> str:
        """What the table calls it."""
        return f"{self.connections} connections" if self.connections else f"{self.rate:g}/s"


@dataclass(frozen=True, slots=True)
class Rule:
    """A name, and the working tree whose server has it."""

    name: str
    tree: Path = REPOSITORY


def measure(
    rule: Rule, store: Path, loads: Sequence[Load], seconds: int, folder: Path
) -> list[Sample]:
    """Start a server with a rule, and load it in one way after the other."""
    port = free_port()
    options = ("--store", str(store), "--port", str(port))
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE, rule.name, *options],
        stderr=subprocess.DEVNULL,
        env={**clean_environment(), "PYTHONPATH": str(rule.tree)},
        cwd=rule.tree,
    )
    try:
        until_ready(f"http://127.0.0.1:{port}/readyz")
        return [_measured(server.pid, port, load, seconds, folder) for load in loads]
    finally:
        server.terminate()
        server.wait()


def _measured(pid: int, port: int, load: Load, seconds: int, folder: Path) -> Sample:
    post = v2_binary(load.rows)
    if load.connections:
        url = f"http://127.0.0.1:{port}"
        wrk(url, post, load.connections, 1, folder)
        before = cpu_s(pid)
        found = wrk(url, post, load.connections, seconds, folder)
        used_s = settled(lambda: cpu_s(pid)) - before
        return Sample(found.rate, found.p50_ms, found.p99_ms, used_s / found.requests * 1e6)
    headers = {**post.headers, "x-request-timeout-ms": "60000"}
    request = http(post.path, post.body, headers)
    before = cpu_s(pid)
    report = fire(Plan(port, [request], rate=load.rate, seconds=seconds, warm_up_s=1))
    used_s = settled(lambda: cpu_s(pid)) - before
    return Sample(
        load.rate,
        report.latency_ms(0.5),
        report.latency_ms(0.99),
        used_s / (load.rate * (seconds + 1)) * 1e6,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--seconds", type=int, default=3, help="of a measurement (default: 3)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1], help="(default: 1)")
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument(
        "--rates", type=float, nargs="*", default=[2000, 5000, 9500], help="at Poisson times (1/s)"
    )
    parser.add_argument("--checkout", type=Path, help="a working tree to compare with")
    options = parser.parse_args()
    require_wrk()
    loads = [Load(rows, connections=n) for rows in options.rows for n in options.connections]
    loads += [Load(rows, rate=rate) for rows in options.rows for rate in options.rates]
    rules = [Rule(LANES), Rule(SERVED)]
    if options.checkout is not None:
        rules.insert(0, Rule("of the checkout", options.checkout.resolve()))
    samples: dict[tuple[Rule, Load], list[Sample]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference_artifact(Store(folder / "store"))
        for number in range(options.rounds):
            for rule in rules if number % 2 else reversed(rules):
                measured = measure(rule, folder / "store", loads, options.seconds, folder)
                for load, sample in zip(loads, measured, strict=True):
                    samples.setdefault((rule, load), []).append(sample)
    print("| rows | load | batches | requests/s | p50 ms | p99 ms | CPU µs |")
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for load in loads:
        for rule in rules:
            of_rule = [astuple(sample) for sample in samples[rule, load]]
            rate, p50, p99, cpu = map(median, zip(*of_rule, strict=True))
            print(
                f"| {load.rows} | {load.title} | {rule.name} | {rate:,.0f} | {p50:.2f} "
                f"| {p99:.2f} | {cpu:,.0f} |"
            )


if __name__ == "__main__":
    main()
