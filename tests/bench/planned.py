"""Compare `gatehouse plan` with what `gatehouse bench` then measures on one replica.

    python -m tests.bench.planned [--rows 1 50 500] [--form v2-binary] [--duration 4s] [--rounds 3]

The replica has one core and one lane, and the load generator the other core, so that they do not
slow each other down. Both commands run in turn, on the reference model of `tests.bench.http`; rates
are medians of the rounds, and the ratio is shown for each round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from app.artifacts.store import Store
from tests import REPOSITORY
from tests.bench.http import reference_artifact
from tests.support.server import clean_environment, running_server

P99 = {1: "10ms", 50: "50ms", 500: "100ms"}


def command(*arguments: str) -> dict[str, object]:
    """Run a command of gatehouse on the second core; return the JSON that it prints."""
    run = ["taskset", "-c", "1", sys.executable, "-m", "app", *arguments, "--json"]
    completed = subprocess.run(
        run, stdout=subprocess.PIPE, cwd=REPOSITORY, env=clean_environment(), check=False
    )
    document: dict[str, object] = json.loads(completed.stdout)
    return document


def compare(url: str, rows: int, options: argparse.Namespace) -> Sequence[tuple[float, float]]:
    """Return the rate that was planned and the rate that was measured, of each round."""
    p99 = P99.get(rows, "100ms")
    request = (f"--rows={rows}", f"--form={options.form}", f"--p99={p99}")
    rates = []
    for _ in range(options.rounds):
        planned = command("plan", f"--url={url}", "--rate=1000", *request)
        bench = command("bench", url, "--sweep", f"--duration={options.duration}", *request)
        limit = planned["capacity"]["rate"]  # type: ignore[index]
        rates.append((float(limit), float(bench["highest_rate"] or "nan")))  # type: ignore[arg-type]
    return rates


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 50, 500))
    parser.add_argument("--form", default="v2-binary")
    parser.add_argument("--duration", default="4s", help="of each rate (default: 4s)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("needs two cores")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference_artifact(Store(folder / "store"))
        print("| rows | p99 | planned, requests/s | measured, requests/s | planned / measured |")
        print("| ---: | ---: | ---: | ---: | ---: |")
        with running_server(folder / "store", folder / "log", "--lanes", "1") as server:
            os.sched_setaffinity(server.process.pid, {0})
            for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {0})
            for rows in options.rows:
                rates = compare(server.url, rows, options)
                planned, measured = (median(each) for each in zip(*rates, strict=True))
                ratios = ", ".join(f"{a / b:.2f}" for a, b in rates)
                print(
                    f"| {rows} | {P99.get(rows, '100ms')} | {planned:,.0f} | {measured:,.0f} "
                    f"| {ratios} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
