"""CPU time of the server per request, while traffic is not recorded, at 1 %, and all of it.

    python -m tests.bench.recording [--rounds 5] [--seconds 2] [--rows 50]

One server each; they are measured in turn, and the medians are shown. The CPU time is that of all
threads, the one that writes files included. Model and requests are those of `tests.bench.http`.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from app.artifacts.store import Store
from app.artifacts.traffic_log import TrafficLog
from app.benchmarking.load import Plan, fire, http
from tests.bench.hot_path import cpu_s
from tests.bench.http import native, reference_artifact
from tests.support.server import Server, standalone_server

SHARES = (None, 0.01, 1.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round (default: 2)")
    parser.add_argument("--rows", type=int, default=50, help="candidates (default: 50)")
    options = parser.parse_args()
    post = native(options.rows)
    request = http(post.path, post.body, post.headers)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        reference_artifact(Store(folder / "store"))
        servers: list[Server] = []
        for share in SHARES:
            log = folder / f"recorded-{share}"
            record = () if share is None else ("--record", str(log), "--record-share", str(share))
            flags = ("--lanes", "1", "--log-sample", "0", *record)
            started = standalone_server(folder / "store", folder / f"log-{share}", *flags)
            servers.append(stack.enter_context(started))
        found: dict[float | None, list[float]] = {share: [] for share in SHARES}
        for number in range(options.rounds + 1):
            for share, server in zip(SHARES, servers, strict=True):
                port = int(server.url.rsplit(":", 1)[1])
                before = cpu_s(server.process.pid)
                report = fire(Plan(port, [request], seconds=options.seconds, connections=8))
                if number:  # the first round warms up
                    used_s = cpu_s(server.process.pid) - before
                    found[share].append(used_s / len(report.status) * 1e6)
        for server in servers:
            server.terminate()
        print(f"| recorded | CPU µs per request of {options.rows} rows | requests kept |")
        print("| --- | --: | --: |")
        for share, cpu_us in found.items():
            kept = 0
            if share is not None:
                kept = len(list(TrafficLog(folder / f"recorded-{share}", "reference").requests()))
            name = "nothing" if share is None else f"{share:.0%}"
            print(f"| {name} | {median(cpu_us):,.0f} | {kept:,} |")


if __name__ == "__main__":
    main()
