"""The load that benches make: who is answered, who is not, and from when latency counts."""

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
    """A connection whose every read is one small request; `answer(path, transport)` answers it."""

    def __init__(self, answer, everyone) -> None:
        self._answer = answer
        self._everyone = everyone

    def connection_made(self, transport):
        self._transport = transport
        self._everyone.append(transport)

    def data_received(self, data):
        self._answer(data.split()[1].decode(), self._transport)


async def fired_at(answer, **changes) -> Report:
    """What comes of a plan where `answer(path, transport)` answers."""
    loop = asyncio.get_running_loop()
    everyone: list[asyncio.Transport] = []
    server = await loop.create_server(lambda: Served(answer, everyone), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        report = await carry_out(Plan(port, REQUESTS, **changes))
    for transport in everyone:
        transport.abort()
    await asyncio.sleep(0)  # what was aborted is closed when the loop comes round
    return report


async def test_an_open_loop_sends_at_its_rate_whatever_is_drawn():
    report = await fired_at(lambda _, transport: transport.write(OK), rate=500, seconds=0.4)
    assert report.statuses == {200: len(report.kind)}
    assert 120 < len(report.kind) < 280  # 200 are expected; this is five deviations
    assert set(report.kind.tolist()) == {0, 1}
    assert not report.told_when.any()


async def test_statuses_are_told_apart_by_kind():
    def answer(path, transport):
        transport.write(OK if path == "/first" else BUSY)

    report = await fired_at(answer, weights=[1, 3], rate=500, seconds=0.2)
    assert report.of([0]).statuses.keys() == {200}
    assert report.of([1]).statuses.keys() == {503}
    assert report.of([1]).told_when.all()
    assert len(report.of([1]).kind) > len(report.of([0]).kind)


async def test_latency_counts_from_when_a_request_was_due():
    """One connection, and its first answer takes 0.3 s: those behind it are late, and it shows."""
    held: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()

    def answer(_, transport):
        if held:
            transport.write(OK)
        else:
            held.append(transport)
            loop.call_later(0.3, transport.write, OK)

    report = await fired_at(answer, rate=200, seconds=0.1, connections=1)
    assert len(report.kind) > 5
    assert report.latency_s.min() > 0.15
    assert np.sort(report.late_s)[1] > 0.15


async def test_whoever_is_not_answered_is_counted():
    report = await fired_at(lambda _, __: None, rate=100, seconds=0.1, patience_s=0.1)
    assert report.statuses == {UNANSWERED: len(report.kind)}
    assert np.isnan(report.latency_ms(0.5))
    assert report.rate() == 0


async def test_a_connection_that_breaks_is_an_answer_that_did_not_come():
    def answer(path, transport):
        if path == "/first":
            transport.write(OK)
        else:
            transport.close()

    report = await fired_at(answer, rate=200, seconds=0.2, patience_s=0.5)
    assert report.of([0]).statuses.keys() == {200}
    assert report.of([1]).statuses.keys() == {UNANSWERED}


def test_a_closed_loop_runs_in_a_process_of_its_own():
    with responder() as port:
        report = fire(Plan(port, REQUESTS, seconds=0.2, connections=2))
    assert report.statuses == {200: len(report.kind)}
    assert len(report.kind) > 2
    assert report.rate(within_s=0) == 0 < report.rate()


def test_more_than_one_process_can_make_is_refused():
    with pytest.raises(ValueError, match="more than one process can make"):
        Plan(1, REQUESTS, rate=MOST_PER_S * 1.01)
