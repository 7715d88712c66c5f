"""Measure how much load one process can generate: ``python -m tests.bench.load_limit``.

The target is a minimal responder in another process, so any shortfall is caused by the generator.
`app.benchmarking.load.SENDS_PER_S` is taken from this table.
"""

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import uvloop

from app.benchmarking.load import SENDS_PER_S, Plan, fire, http
from tests import REPOSITORY

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class _Answering(asyncio.Protocol):
    """Answer every read as if it were one request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        self._write(_ANSWER)


def answer_all() -> None:
    """Listen on a free port, print it, and answer until killed."""
    uvloop.run(_answer_all())


async def _answer_all() -> None:
    server = await asyncio.get_running_loop().create_server(_Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def responder() -> Iterator[int]:
    """Run the responder in a child process and yield its port."""
    code = "from tests.bench.load_limit import answer_all; answer_all()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="duration of each row (default: 5)"
    )
    options = parser.parse_args()
    print("| loop | offered | answered, 1/s | lag p50 | p99 | latency p50 | p99 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    request = http("/", bytes(400), {"content-type": "application/octet-stream"})
    with responder() as port:
        plan = Plan(port, [request], seconds=options.seconds, connections=32)
        open_loop = replace(plan, connections=1024)
        rates = [SENDS_PER_S * share for share in (0.25, 0.5, 1.0, 2.0)]
        for load in (plan, *(replace(open_loop, rate=rate) for rate in rates)):
            report = fire(load)
            loop, offered = ("closed", "") if load.rate is None else ("open", f"{load.rate:,.0f}")
            print(
                f"| {loop} | {offered} | {report.rate_within():,.0f} "
                f"| {report.lag_ms(0.5):.2f} ms | {report.lag_ms(0.99):.2f} ms "
                f"| {report.latency_ms(0.5):.2f} ms | {report.latency_ms(0.99):.2f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
