"""Send a long, mixed load to a server and check every response.

    python -m tests.soak [--requests 100000] [--connections 16] [--seed 0]

Clients send native JSON and V2 binary requests with 1 to 2000 candidates to a real server. One in
twenty is invalid, one in ten has a very short deadline, and one in ten disconnects while it sends
its body or waits. Nine times, a new version is published. The model's scores identify the request
and the version. The soak checks that

- every request gets one response, with its own rows scored by one version, or one expected error;
- the server's request counts match, it refused no version, and no response has status 500;
- at the end no rows are queued, all lanes are idle, and the last version is active;
- the mean resident memory grows by less than `--most-growth-mib` from the sixth tenth of the
  requests to the last tenth (before that, pools and caches fill);
- SIGTERM ends the server with exit code 0.

The exit code is 0 if all checks pass.
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch
from prometheus_client.parser import text_string_to_metric_families

from app.artifacts.store import Store
from tests.soak.client import Books, call
from tests.soak.model import NAME, publish_echo
from tests.support.server import Server, standalone_server

SWAPS = 9
_PATIENCE_S = 20.0  # time for the server to settle after the last response
_MIB = 1 << 20


def soak(requests: int, connections: int, seed: int, most_growth_mib: float) -> list[str]:
    """Run the soak and return the failed checks."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = Store(folder / "store")
        publish_echo(store)
        flags = ("--store-poll-s", "0.2", "--slow-request-ms", "60000")
        with standalone_server(store.folder, folder / "log", *flags) as server:
            books = Books(requests)
            memory = asyncio.run(_load(server, store, books, connections, seed))
            failed = [*books.faults]
            if books.wrong > len(books.faults):
                failed.append(f"{books.wrong - len(books.faults)} more wrong responses")
            failed += _at_the_end(server, store, books)
            growth = growth_mib(memory)
            print(f"memory grew by {growth:.1f} MiB over the second half", file=sys.stderr)
            if growth > most_growth_mib:
                failed.append(f"memory grew by {growth:.1f} MiB: {memory}")
            if code := server.terminate():
                failed.append(f"exit code {code}")
    return failed


async def _load(
    server: Server, store: Store, books: Books, connections: int, seed: int
) -> list[int]:
    """Send all requests; return the server's memory (bytes) after each hundredth of them."""
    port = int(server.url.rsplit(":", 1)[1])
    callers = [asyncio.create_task(call(port, seed, books)) for _ in range(connections)]
    memory: list[int] = []
    swaps = 0
    began = time.monotonic()
    while books.done < books.total and not all(task.done() for task in callers):
        await asyncio.sleep(0.02)
        while len(memory) * books.total <= books.done * 100:
            memory.append(resident(server.process.pid))
            _progress(books, memory[-1], time.monotonic() - began, swaps)
        if swaps < SWAPS and books.done * (SWAPS + 1) >= (swaps + 1) * books.total:
            swaps += 1
            await asyncio.to_thread(publish_echo, store)
    await asyncio.gather(*callers)
    print(file=sys.stderr)
    return memory


def _progress(books: Books, memory: int, seconds: float, swaps: int) -> None:
    line = (
        f"\r{books.done:,} of {books.total:,}, {books.done / seconds:,.0f}/s, "
        f"{memory / _MIB:.0f} MiB, {swaps} new versions, {books.left} disconnected, "
        f"{books.wrong} wrong  "
    )
    print(line, end="", file=sys.stderr, flush=True)


def resident(pid: int) -> int:
    """Return the resident memory of a process (bytes)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def growth_mib(memory: Sequence[int]) -> float:
    """Return the mean of the last tenth minus the mean of the sixth tenth (MiB)."""
    tenth = max(1, len(memory) // 10)
    sixth, last = memory[5 * tenth : 6 * tenth], memory[-tenth:]
    return (sum(last) / len(last) - sum(sixth) / len(sixth)) / _MIB


def _at_the_end(server: Server, store: Store, books: Books) -> list[str]:
    """Return failed checks of the server's final state. Retry for a while, until it has settled."""
    patience = time.monotonic() + _PATIENCE_S
    while True:
        failed = [*_uncounted(server, books), *_left_over(server, store)]
        if not failed or time.monotonic() > patience:
            return failed
        time.sleep(0.1)


def _uncounted(server: Server, books: Books) -> list[str]:
    """Compare the server's request counts with the requests that were sent and answered."""
    text = httpx.get(f"{server.url}/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    counted: dict[int, int] = {}
    for sample in samples:
        if sample.name == "gatehouse_requests_total" and sample.labels["model"] == NAME:
            status = int(sample.labels["status"])
            counted[status] = counted.get(status, 0) + int(sample.value)
    failed = []
    if sum(counted.values()) != books.done:
        failed.append(f"{books.done} requests were sent, but {counted} were counted")
    for status, seen in books.seen.items():
        if counted.get(status, 0) < seen:
            failed.append(f"{seen} responses had status {status}, but {counted} were counted")
    refused = sum(
        sample.value
        for sample in samples
        if sample.name == "gatehouse_model_swaps_total" and sample.labels["result"] == "refused"
    )
    if refused or 500 in counted:
        failed.append(f"{refused:.0f} versions were refused; {counted}")
    return failed


def _left_over(server: Server, store: Store) -> list[str]:
    """Look for queued rows, busy lanes and versions that should be gone."""
    engine = httpx.get(f"{server.url}/v1/engine").json()
    failed = []
    if engine["queued_rows"] or engine["idle_lanes"] != len(engine["lanes"]):
        failed.append(f"the engine is not idle: {engine}")
    active = f"{NAME}/{max(store.versions(NAME))}"
    models = [queue["model"] for queue in engine["queues"]]
    if active not in models or len(models) > 2:  # one previous version is kept; some are skipped
        failed.append(f"queues other than those of {active} and one more: {engine['queues']}")
    return failed


def main() -> int:
    """Run the soak with the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--requests", type=int, default=100_000, help="number of requests (default: 100000)"
    )
    parser.add_argument(
        "--connections", type=int, default=16, help="number of connections (default: 16)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--most-growth-mib",
        type=float,
        default=16,
        help="maximum memory growth in MiB (default: 16)",
    )
    options = parser.parse_args()
    failed = soak(options.requests, options.connections, options.seed, options.most_growth_mib)
    for failure in failed:
        print(f"FAILED: {failure}", file=sys.stderr)
    summary = f"{len(failed)} checks failed" if failed else "all checks passed"
    print(summary, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
