"""The load generator of the benchmarks: counts of responses, and latency from the due time."""

import asyncio
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from app.benchmarking import sender
from app.benchmarking.load import UNANSWERED, CannotConnect, Plan, Progress, Report, fire, http
from app.benchmarking.sender import carry_out
from tests.bench.load_limit import responder

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
        plan = Plan(port, REQUESTS, **changes)
        rows, refusal = await carry_out(plan)
        report = Report.of_rows(plan, rows, refusal=refusal)
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
    assert report.rate_within() == 0


async def test_request_on_a_broken_connection_counts_as_unanswered():
    def answer(path, transport):
        if path == "/first":
            transport.write(OK)
        else:
            transport.close()

    report = await report_of(answer, rate=200, seconds=0.2, patience_s=30)
    assert report.of([0]).statuses.keys() == {200}
    assert report.of([1]).statuses.keys() == {UNANSWERED}


def test_closed_loop_runs_in_a_child_process():
    with responder() as port:
        report = fire(Plan(port, REQUESTS, seconds=0.2, connections=2))
    assert report.statuses == {200: len(report.kind)}
    assert len(report.kind) > 2
    assert report.rate_within(0) == 0 < report.rate_within()


async def test_rate_is_the_one_that_was_asked_for_and_the_warm_up_is_not_counted():
    def answer(_, transport):
        transport.write(OK)

    report = await report_of(answer, rate=500, seconds=0.2, warm_up_s=0.2)
    assert len(report.kind) == 100
    assert report.sent_rate == report.answered_rate == 500
    assert 0 <= report.due_s.min() <= report.due_s.max() <= 0.2
    assert (np.diff(report.due_s) >= 0).all()


async def test_response_in_chunks_is_read_to_its_end():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    loop = asyncio.get_running_loop()

    def answer(_, transport):
        transport.write(head + b"5\r\n0\r\n\r\n\r\n")  # a chunk that looks like the end
        loop.call_later(0.05, transport.write, b"1;x=y\r\na\r\n0\r\n\r\n")

    report = await report_of(answer, rate=50, seconds=0.2)
    assert report.statuses == {200: 10}
    assert report.latency_s.min() > 0.045


def refusing(status, body):
    head = b"HTTP/1.1 %d Refused\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
    return head + body


@pytest.mark.parametrize(
    ("response", "shown"),
    [
        (refusing(429, b'{"detail": "queue full", "title": "Overloaded"}'), "429: queue full"),
        (refusing(404, b'{"error": "no such model"}'), "404: no such model"),
        (refusing(502, b"<html>Bad gateway</html>"), "502"),
        (refusing(500, b"[]"), "500"),
    ],
)
async def test_first_refusal_is_kept_with_its_reason(response, shown):
    sent = iter([OK, response])

    def answer(_, transport):
        transport.write(next(sent, BUSY))

    report = await report_of(answer, seconds=0.1, connections=1)
    assert report.statuses.keys() >= {200, 503}
    assert str(report.refusal) == shown


async def test_refusals_of_the_warm_up_are_not_kept():
    sent = iter([BUSY])
    report = await report_of(
        lambda _, transport: transport.write(next(sent, OK)), rate=100, seconds=0.1, warm_up_s=0.1
    )
    assert next(sent, None) is None
    assert report.refusal is None


@pytest.mark.slow
async def test_refusal_comes_from_the_processes_of_the_generator():
    response = refusing(429, b'{"detail": "queue full"}')
    transports: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Served(lambda _, transport: transport.write(response), transports), "127.0.0.1", 0
    )
    async with server:
        plan = Plan(server.sockets[0].getsockname()[1], REQUESTS, seconds=0.2, rate=50)
        report = await asyncio.to_thread(fire, plan, 2)
    assert report.statuses == {429: 10}
    assert str(report.refusal) == "429: queue full"


async def test_connection_that_the_server_closes_after_a_response_is_not_used_again():
    def answer(_, transport):
        transport.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        transport.close()

    report = await report_of(answer, rate=100, seconds=0.3, connections=2)
    assert report.statuses == {200: 30}


def test_lag_is_that_of_the_generator_and_not_of_its_connections():
    rows = [(0, 200, 0.3, False, 0.25, 0.0, 0.001), (0, 200, 0.1, False, np.nan, 1.0, 0.002)]
    report = Report.of_rows(Plan(1, REQUESTS, rate=1, seconds=2), rows)
    assert report.lag_ms(1) == pytest.approx(2)
    assert report.sent_rate == 0.5  # one was never sent
    assert report.late(0.2) == 1


def test_plan_survives_its_way_to_another_process():
    plan = Plan(7, [b"one\n", b"", b"three"], (1, 2, 3), rate=5.5, host="h", tls=True, seed=3)
    again = Plan.from_bytes(plan.to_bytes())
    assert again == replace(plan, weights=[1, 2, 3], requests=[b"one\n", b"", b"three"])


@pytest.mark.parametrize("is_there", [True, False])
def test_process_of_the_generator_writes_progress_and_rows(is_there):
    """As `fire` reads them, here in this process."""
    written = io.BytesIO()
    with responder() as port:
        plan = Plan(port if is_there else 1, REQUESTS, rate=100, seconds=1.2)
        sender.run(plan, written)
    first, _, rest = written.getvalue().partition(b"\n")
    if not is_there:
        assert "cannot_connect" in json.loads(first)
        return
    answered = []
    while "progress" in (head := json.loads(first)):
        answered.append(head["progress"]["answered"])
        first, _, rest = rest.partition(b"\n")
    assert 0 < answered[-1] <= 120
    assert head["rows"] == 120
    assert head["refusal"] is None
    assert len(rest) == 120 * 7 * 8


async def test_server_that_goes_away_fails_the_requests_that_are_due():
    transports: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    answered = 0

    def answer(_: str, transport: asyncio.Transport) -> None:
        nonlocal answered
        answered += 1
        transport.write(OK)
        if answered == 20:
            server.close()
            for open_transport in transports:
                open_transport.abort()

    server = await loop.create_server(lambda: Served(answer, transports), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    plan = Plan(port, REQUESTS, rate=200, seconds=0.3, patience_s=1)
    rows, refusal = await carry_out(plan)
    report = Report.of_rows(plan, rows)
    assert refusal is None  # nobody has refused them
    assert sum(report.statuses.values()) == 60
    assert 0 < report.statuses[200] <= 20
    assert report.statuses[UNANSWERED] >= 40
    assert np.isnan(report.late_s).any()  # those without a connection were never sent


@pytest.mark.slow
def test_several_processes_share_the_rate():
    seen: list[Progress] = []
    with responder() as port:
        plan = Plan(port, REQUESTS, seconds=0.8, rate=200)
        report = fire(plan, 2, on_progress=seen.append)
    assert report.statuses == {200: 160}
    assert seen[-1].sent <= 160
    assert {len(np.unique(report.due_s))} == {160}  # the processes drew different times


@pytest.mark.slow
def test_long_report_is_read_as_a_whole(monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    with responder() as port:
        report = fire(Plan(port, REQUESTS, seconds=1.0, connections=8))
    assert len(report.kind) * 7 * 8 > 1 << 17  # more than a pipe holds
    assert report.statuses == {200: len(report.kind)}


@pytest.mark.slow
def test_server_that_does_not_listen_is_named():
    with pytest.raises(CannotConnect, match=r"cannot connect to 127\.0\.0\.1:1: .*[Rr]efused"):
        fire(Plan(1, REQUESTS, seconds=0.1, rate=10))
