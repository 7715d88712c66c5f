"""Does a server stay whole under a long, mixed load?

    python -m tests.soak [--requests 100000] [--connections 16] [--seed 0]

A real server, and callers of it: native JSON and V2 binary, of 1 to 2000 candidates; one in twenty
is bad, one in ten is in a great hurry, one in ten leaves, while its body is on its way or while it
waits; nine times a new version is published meanwhile. The model's answers tell whose they are and
which version gave them. It is asserted that

- every request is answered once, with its own rows and by one version, or with one clear error;
- the server counted what was sent, refused no version and failed nowhere inside (no 500);
- nothing waits and no lane works when all is over, and the last version is the one that is active;
- its resident memory grows by less than `--most-growth-mib` from the sixth tenth of the requests
  to the last tenth, on average (before that, pools and caches fill);
- SIGTERM ends it with exit code 0.

The exit code is 0 if all of that held.
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
from tests.support.server import Server, running_server

SWAPS = 9
_PATIENCE_S = 20.0  # for what the server does a moment after the last answer
_MIB = 1 << 20


def soak(requests: int, connections: int, seed: int, most_growth_mib: float) -> list[str]:
    """Run it and return what did not hold."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = Store(folder / "store")
        publish_echo(store)
        flags = ("--store-poll-s", "0.2", "--slow-request-ms", "60000")
        with running_server(store.folder, folder / "log", *flags) as server:
            books = Books(requests)
            memory = asyncio.run(_load(server, store, books, connections, seed))
            broken = [*books.faults]
            if books.wrong > len(books.faults):
                broken.append(f"and {books.wrong - len(books.faults)} more of that kind")
            broken += _at_the_end(server, store, books)
            growth = growth_mib(memory)
            print(f"memory grew by {growth:.1f} MiB over the second half", file=sys.stderr)
            if growth > most_growth_mib:
                broken.append(f"memory grew by {growth:.1f} MiB: {memory}")
            if code := server.terminate():
                broken.append(f"exit code {code}")
    return broken


async def _load(
    server: Server, store: Store, books: Books, connections: int, seed: int
) -> list[int]:
    """Send everything; returns the server's memory (bytes) at each hundredth."""
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
        f"{memory / _MIB:.0f} MiB, {swaps} swaps, {books.left} left, {books.wrong} wrong  "
    )
    print(line, end="", file=sys.stderr, flush=True)


def resident(pid: int) -> int:
    """Return the resident memory of a process (bytes)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def growth_mib(memory: Sequence[int]) -> float:
    """Return by how much the mean of the last tenth is above that of the sixth (MiB)."""
    tenth = max(1, len(memory) // 10)
    sixth, last = memory[5 * tenth : 6 * tenth], memory[-tenth:]
    return (sum(last) / len(last) - sum(sixth) / len(sixth)) / _MIB


def _at_the_end(server: Server, store: Store, books: Books) -> list[str]:
    """Return what the server still says that it should not; some of it takes a moment to settle."""
    patience = time.monotonic() + _PATIENCE_S
    while True:
        broken = [*_uncounted(server, books), *_left_over(server, store)]
        if not broken or time.monotonic() > patience:
            return broken
        time.sleep(0.1)


def _uncounted(server: Server, books: Books) -> list[str]:
    """Compare the server's counts with what was sent and seen."""
    text = httpx.get(f"{server.url}/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    counted: dict[int, int] = {}
    for sample in samples:
        if sample.name == "gatehouse_requests_total" and sample.labels["model"] == NAME:
            status = int(sample.labels["status"])
            counted[status] = counted.get(status, 0) + int(sample.value)
    broken = []
    if sum(counted.values()) != books.done:
        broken.append(f"{books.done} requests were sent, and {counted} counted")
    for status, seen in books.seen.items():
        if counted.get(status, 0) < seen:
            broken.append(f"{seen} answers had status {status}, and {counted} were counted")
    refused = sum(
        sample.value
        for sample in samples
        if sample.name == "gatehouse_model_swaps_total" and sample.labels["result"] == "refused"
    )
    if refused or 500 in counted:
        broken.append(f"{refused:.0f} versions were refused; {counted}")
    return broken


def _left_over(server: Server, store: Store) -> list[str]:
    """Look for rows that wait, lanes that work, and versions that should be gone."""
    engine = httpx.get(f"{server.url}/v1/engine").json()
    broken = []
    if engine["queued_rows"] or engine["idle_lanes"] != len(engine["lanes"]):
        broken.append(f"something is left in the engine: {engine}")
    active = f"{NAME}/{max(store.versions(NAME))}"
    if [queue["model"] for queue in engine["queues"]] != [active]:
        broken.append(f"only {active} should have a queue: {engine['queues']}")
    return broken


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--connections", type=int, default=16, help="at once (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--most-growth-mib", type=float, default=16, help="MiB (default: 16)")
    options = parser.parse_args()
    broken = soak(options.requests, options.connections, options.seed, options.most_growth_mib)
    for each in broken:
        print(f"BROKEN: {each}", file=sys.stderr)
    print("all held" if not broken else f"{len(broken)} did not hold", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
