"""The load generator of the benchmarks: counts of responses, and latency from the due time."""

import asyncio

import numpy as np
import pytest

from tests.bench.load import MOST_PER_S, UNANSWERED, Plan, Report, fire, http
from tests.bench.load_limit import responder
from tests.bench.shooter import carry_out

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
REQUESTS = [http("/first", b"body", {}), http("/second", b"", {})]


class Served(asyncio.Protocol):
    """A server connection that calls `answer(path, transport)` for each read, a small request."""

    def __init__(self, answer, transports) -> None:
        self._answer = answer
        self._transports = transports

    def connection_made(self, transport):
        self._transport = transport
        self._transports.append(transport)

    def data_received(self, data):
        self._answer(data.split()[1].decode(), self._transport)


async def report_of(answer, **changes) -> Report:
    """Run a plan against a server that calls `answer(path, transport)`; return the report."""
    loop = asyncio.get_running_loop()
    transports: list[asyncio.Transport] = []
    server = await loop.create_server(lambda: Served(answer, transports), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        report = await carry_out(Plan(port, REQUESTS, **changes))
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0)  # aborted transports are closed in the next iteration of the loop
    return report


async def test_open_loop_sends_all_kinds_of_requests_at_its_rate():
    report = await report_of(lambda _, transport: transport.write(OK), rate=500, seconds=0.4)
    assert report.statuses == {200: len(report.kind)}
    assert 120 < len(report.kind) < 280  # 200 are expected; this is five deviations
    assert set(report.kind.tolist()) == {0, 1}
    assert not report.told_when.any()


async def test_report_separates_statuses_by_kind_of_request():
    def answer(path, transport):
        transport.write(OK if path == "/first" else BUSY)

    report = await report_of(answer, weights=[1, 3], rate=500, seconds=0.2)
    assert report.of([0]).statuses.keys() == {200}
    assert report.of([1]).statuses.keys() == {503}
    assert report.of([1]).told_when.all()
    assert len(report.of([1]).kind) > len(report.of([0]).kind)


async def test_latency_counts_from_the_time_when_a_request_was_due():
    """One connection, whose first response takes 0.3 s: all requests behind it are late."""
    held: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()

    def answer(_, transport):
        if held:
            transport.write(OK)
        else:
            held.append(transport)
            loop.call_later(0.3, transport.write, OK)

    report = await report_of(answer, rate=200, seconds=0.1, connections=1)
    assert len(report.kind) > 5
    assert report.latency_s.min() > 0.15
    assert np.sort(report.late_s)[1] > 0.15


async def test_unanswered_requests_are_counted():
    report = await report_of(lambda _, __: None, rate=100, seconds=0.1, patience_s=0.1)
    assert report.statuses == {UNANSWERED: len(report.kind)}
    assert np.isnan(report.latency_ms(0.5))
    assert report.rate() == 0


async def test_request_on_a_broken_connection_counts_as_unanswered():
    def answer(path, transport):
        if path == "/first":
            transport.write(OK)
        else:
            transport.close()

    report = await report_of(answer, rate=200, seconds=0.2, patience_s=0.5)
    assert report.of([0]).statuses.keys() == {200}
    assert report.of([1]).statuses.keys() == {UNANSWERED}


def test_closed_loop_runs_in_a_child_process():
    with responder() as port:
        report = fire(Plan(port, REQUESTS, seconds=0.2, connections=2))
    assert report.statuses == {200: len(report.kind)}
    assert len(report.kind) > 2
    assert report.rate(within_s=0) == 0 < report.rate()


def test_rate_above_the_limit_of_one_process_is_refused():
    with pytest.raises(ValueError, match="one process can send at most"):
        Plan(1, REQUESTS, rate=MOST_PER_S * 1.01)
