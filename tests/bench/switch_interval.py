"""What Python's switch interval does to the tail: ``python -m tests.bench.switch_interval``.

The reference model gets one candidate a request, at Poisson times. Servers with different intervals
take turns, because rates of a shared machine change within minutes.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from app.artifacts.store import Store
from app.benchmarking.load import Plan, Report, fire, http
from tests.bench.dialects import v2_binary
from tests.bench.http import reference_artifact
from tests.support.server import clean_environment, free_port

_SERVE = """
import sys
from app import main
from app.cli.main import main as gatehouse
main.SWITCH_INTERVAL_S = float(sys.argv[1])
sys.exit(gatehouse(["serve", *sys.argv[2:]]))
"""


def measure(store: Path, interval_s: float, rate: float, seconds: float) -> Report:
    """Start a server with an interval, and load it."""
    port = free_port()
    options = ("--store", str(store), "--port", str(port))
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(interval_s), *options],
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
    )
    try:
        until_ready(f"http://127.0.0.1:{port}/readyz")
        post = v2_binary(1)
        headers = {**post.headers, "x-request-timeout-ms": "60000"}
        request = http(post.path, post.body, headers)
        return fire(Plan(port, [request], rate=rate, seconds=seconds, warm_up_s=1))
    finally:
        server.terminate()
        server.wait()


def until_ready(url: str, patience_s: float = 60) -> None:
    """Wait until a server is ready.

    Raises:
        TimeoutError: it is not in time.
    """
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{url} is not ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=9000, help="requests/s (default: 9000)")
    parser.add_argument("--seconds", type=float, default=3, help="of a measurement (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--intervals", type=float, nargs="+", default=[0.005, 0.0005], help="(s)")
    options = parser.parse_args()
    print("| round | interval, ms | p50, ms | p99, ms |")
    print("| ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        reference_artifact(Store(store))
        for number in range(1, options.rounds + 1):
            for interval_s in options.intervals:
                found = measure(store, interval_s, options.rate, options.seconds)
                print(
                    f"| {number} | {interval_s * 1e3:g} | {found.latency_ms(0.5):.1f} "
                    f"| {found.latency_ms(0.99):.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
