"""Connections in this event loop: order, limits, half-closed and slow clients."""

import asyncio
import logging
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.main import Gatehouse
from app.server import connection
from app.server.connection import (
    LARGEST_HEAD,
    MOST_PIPELINED,
    PROBE_AFTER_S,
    Connection,
)
from app.server.head_rules import MOST_HEADERS
from tests.support.doors import (
    GATE,
    SCORE,
    Gate,
    Listener,
    listening,
    native,
    service_of_sums,
)
from tests.support.waiting import PATIENCE_S, until

LIVE = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


class Raw:
    """A client that writes bytes and reads responses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))
        await self.writer.drain()

    async def response(self) -> Response:
        """The next response; interim ones are skipped."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                head = await self.reader.readuntil(b"\r\n\r\n")
                status = int(head.split()[1])
                if status >= 200:
                    break
            fields = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2]]
            headers = {name.lower(): value for name, value in fields}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Response(status, headers, body)

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        received = b""
        async with asyncio.timeout(PATIENCE_S):
            try:
                while part := await self.reader.read(1 << 16):
                    received += part
            except ConnectionResetError:  # the server closed on bytes that it did not read
                pass
        return received

    async def close(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        """Close with a TCP reset."""
        tcp = self.writer.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Server:
    """A served service and its clients."""

    parts: Gatehouse
    gate: Gate
    listener: Listener
    asgi_paths: list[str]
    _clients: list[Raw] = field(default_factory=list)

    async def connect(self, **options: Any) -> Raw:
        streams = await asyncio.open_connection("127.0.0.1", self.listener.port, **options)
        self._clients.append(Raw(*streams))
        return self._clients[-1]

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    def value(self, name: str, **labels: str) -> float:
        return self.parts.metrics.registry.get_sample_value(f"gatehouse_{name}", labels) or 0.0


@asynccontextmanager
async def serving(store, *, keep_alive_s: float = 5.0, **settings: Any) -> AsyncIterator[Server]:
    async with service_of_sums(store, **settings) as (parts, gate):
        paths: list[str] = []

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            paths.append(scope["path"])
            await parts.app(scope, receive, send)

        async with listening(parts, counted, keep_alive_s=keep_alive_s) as listener:
            server = Server(parts, gate, listener, paths)
            try:
                yield server
            finally:
                gate.open()
                await server.close()


@pytest.fixture
async def server(tmp_path):
    async with serving(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
async def shared(tmp_path_factory):
    """A server for all tests that only look at their own connections."""
    async with serving(tmp_path_factory.mktemp("shared")) as server:
        yield server


def post(body: bytes, path: str = SCORE, *headers: bytes, version: bytes = b"1.1") -> bytes:
    """A plain call, which takes the direct door."""
    lines = [b"POST %b HTTP/%b" % (path.encode(), version), b"host: x", *headers]
    return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body])


def post_chunked(body: bytes, path: str = SCORE, *headers: bytes) -> bytes:
    """The same call with a chunked body, which takes the way through the ASGI application."""
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"host: x", *headers]
    return b"\r\n".join(
        [*lines, b"transfer-encoding: chunked", b"", b"%x" % len(body), body, b"0", b"", b""]
    )


def own_scores(response: Response) -> list[float]:
    assert response.status == 200, response
    scores: list[float] = orjson.loads(response.body)["scores"]["own"]
    return scores


# Pipelined requests


def mixed(number: int) -> bytes:
    """One of three kinds of request; the score calls can be told apart by their scores."""
    body = native([float(number)])
    return (post(body), LIVE, post_chunked(body))[number % 3]


def check_order(number: int, response: Response) -> None:
    if number % 3 == 1:
        assert response.body == b"alive\n"
    else:
        assert own_scores(response) == [number]


@pytest.mark.parametrize("count", [2, MOST_PIPELINED, 17, 18, 300])
async def test_pipelined_requests_of_all_kinds_are_answered_in_order(shared, count):
    client = await shared.connect()
    await client.send(*map(mixed, range(count)))
    for number in range(count):
        check_order(number, await client.response())


@pytest.mark.parametrize("count", [17, 18, 1000])
async def test_pipelined_requests_without_a_body_are_answered_in_order(shared, count):
    client = await shared.connect()
    await client.send(LIVE * count)
    for _ in range(count):
        assert (await client.response()).body == b"alive\n"


@pytest.mark.no_cover
@pytest.mark.parametrize("size", [100, 2_000, *range(17_000, 32_000, 1_500)])
async def test_requests_behind_an_upgrade_request_are_all_answered_in_order(shared, size):
    client = await shared.connect()
    fields = [b"x%d:%b" % (number, b"v" * 340) for number in range(size // 350)]
    lines = [b"GET /livez HTTP/1.1", b"host: x", b"connection: upgrade", b"upgrade: h2c", *fields]
    await client.send(LIVE + b"\r\n".join([*lines, b"", b""]), *map(mixed, range(150)))
    for _ in range(2):
        assert (await client.response()).body == b"alive\n"
    for number in range(150):
        check_order(number, await client.response())


@pytest.mark.parametrize("count", [17, 18, 100])
async def test_pipelined_direct_calls_are_answered_in_order(shared, count):
    client = await shared.connect()
    await client.send(*(post(native([float(number)])) for number in range(count)))
    for number in range(count):
        assert own_scores(await client.response()) == [number]


async def test_pipelined_requests_behind_a_slow_one_wait_for_it(server):
    client = await server.connect()
    await client.send(post(native([1.0] * 5), GATE), *map(mixed, range(60)))
    await server.gate.is_entered()
    await asyncio.sleep(0.05)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), 0.05)
    server.gate.open()
    assert len(own_scores(await client.response())) == 5
    for number in range(60):
        check_order(number, await client.response())


async def test_reading_pauses_while_requests_are_pipelined(server):
    client = await server.connect()
    await client.send(post(native([1.0]), GATE), LIVE)
    await server.gate.is_entered()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.send(LIVE * 1_000_000), 1.0)  # 32 MB
    server.gate.open()
    assert own_scores(await client.response()) == [1]
    for _ in range(100):
        assert (await client.response()).body == b"alive\n"


async def test_connection_close_ends_a_pipeline(shared):
    client = await shared.connect()
    await client.send(post(native(), SCORE, b"connection: close"), LIVE)
    assert (await client.response()).headers["connection"] == "close"
    assert await client.rest() == b""


async def test_connection_of_http_1_0_is_closed_after_its_response(server):
    client = await server.connect()
    await client.send(post(native(), version=b"1.0"))
    assert (await client.response()).headers["connection"] == "close"
    assert await client.rest() == b""
    assert server.asgi_paths == []


# Requests that cannot be parsed, behind others

BAD_HEADS = [
    b"GARBAGE\r\n\r\n",
    b"GET /livez HTTP/2.0\r\nhost: x\r\n\r\n",
    b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\n",
    b"POST /v1/score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
]


@pytest.mark.parametrize("bad", BAD_HEADS)
@pytest.mark.parametrize("make", [post, post_chunked])
async def test_requests_before_a_malformed_one_are_answered(server, make, bad):
    client = await server.connect()
    await client.send(make(native([1.0]), GATE), *map(mixed, range(6)), bad)
    await server.gate.is_entered()
    await client.send(LIVE * 100)  # is never read as a request
    server.gate.open()
    assert own_scores(await client.response()) == [1]
    for number in range(6):
        check_order(number, await client.response())
    assert (await client.response()).status in (400, 505)
    assert await client.rest() == b""


@pytest.mark.parametrize("make", [post, post_chunked])
async def test_request_before_an_incomplete_head_is_answered(server, monkeypatch, make):
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.1)
    client = await server.connect()
    await client.send(make(native([1.0]), GATE), b"GET /livez HTT")
    await server.gate.is_entered()
    await asyncio.sleep(0.2)
    server.gate.open()
    assert own_scores(await client.response()) == [1]
    assert (await client.response()).status == 408
    assert await client.rest() == b""


async def test_request_before_a_half_closed_body_is_answered(server):
    client = await server.connect()
    await client.send(post(native([1.0]), GATE), post_chunked(native())[:-20])
    await server.gate.is_entered()
    client.writer.write_eof()
    await asyncio.sleep(0.02)
    server.gate.open()
    assert own_scores(await client.response()) == [1]
    assert await client.rest() == b""


# Half-closed connections


@pytest.mark.parametrize("request_", [post(native()), post_chunked(native()), LIVE])
async def test_half_closed_connection_gets_its_response(shared, request_):
    client = await shared.connect()
    await client.send(request_)
    client.writer.write_eof()
    assert (await client.response()).status == 200
    assert await client.rest() == b""


@pytest.mark.parametrize("make", [post, post_chunked])
async def test_connection_that_is_half_closed_during_the_batch_gets_its_response(server, make):
    client = await server.connect()
    await client.send(make(native([1.0, 2.0]), GATE))
    await server.gate.is_entered()
    client.writer.write_eof()
    assert await client.reader.readexactly(len(CONTINUE)) == CONTINUE
    server.gate.open()
    assert own_scores(await client.response()) == [1, 2]
    assert await client.rest() == b""


async def test_half_closed_connection_that_is_answered_soon_gets_no_interim_response(
    server, monkeypatch
):
    monkeypatch.setattr(connection, "PROBE_AFTER_S", PATIENCE_S)  # "soon" on any machine
    client = await server.connect()
    await client.send(post(native()))
    client.writer.write_eof()
    assert (await client.rest()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_interim_response_does_not_break_a_response_that_is_being_written(tmp_path):
    async with serving(tmp_path, max_candidates=4096) as server:
        client = await server.connect(limit=4096)
        large = post_chunked(native([1 / 3] * 4096, ranking={"explain": True}))
        await client.send(large * 10)
        client.writer.write_eof()
        await asyncio.sleep(10 * PROBE_AFTER_S)  # until the server cannot write more
        responses = [await client.response() for _ in range(10)]
        assert [len(own_scores(response)) for response in responses] == [4096] * 10


async def test_pipelined_requests_of_a_half_closed_connection_are_answered(shared):
    client = await shared.connect()
    await client.send(*map(mixed, range(12)))
    client.writer.write_eof()
    for number in range(12):
        check_order(number, await client.response())
    assert await client.rest() == b""


async def test_half_closed_client_of_http_1_0_gets_no_interim_response(server):
    client = await server.connect()
    await client.send(post(native([1.0]), GATE, version=b"1.0"))
    await server.gate.is_entered()
    client.writer.write_eof()
    await asyncio.sleep(PROBE_AFTER_S + 0.05)
    server.gate.open()
    assert (await client.rest()).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("make", [post, post_chunked])
async def test_client_that_closes_is_dropped_before_its_batch(server, make, caplog):
    """A client that closes looks half-closed until it refuses an interim response."""
    first, second = await server.connect(), await server.connect()
    await first.send(post(native([1.0] * 5), GATE))
    await server.gate.is_entered()
    await second.send(make(native([1.0] * 7), GATE))
    await until(lambda: server.parts.service.batcher.queues.rows == 7)
    gone = server.listener.closing_of(second.writer)
    second.writer.close()
    await second.writer.wait_closed()
    await gone()
    server.gate.open()
    assert len(own_scores(await first.response())) == 5
    await until(lambda: server.value("cancelled_total", stage="queue") == 1)
    assert server.gate.batches == [5]
    await until(lambda: len(server.listener.state.connections) == 1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("make", [post, post_chunked])
async def test_client_that_resets_is_dropped_before_its_batch(server, make, caplog):
    first, second = await server.connect(), await server.connect()
    await first.send(post(native([1.0] * 5), GATE))
    await server.gate.is_entered()
    await second.send(make(native([1.0] * 7), GATE))
    await until(lambda: server.parts.service.batcher.queues.rows == 7)
    gone = server.listener.closing_of(second.writer)
    second.reset()
    await gone()
    server.gate.open()
    assert len(own_scores(await first.response())) == 5
    await until(lambda: server.value("cancelled_total", stage="queue") == 1)
    assert server.gate.batches == [5]
    await until(lambda: len(server.listener.state.connections) == 1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_pipelined_requests_of_a_client_that_resets_are_all_dropped(server, caplog):
    first, second = await server.connect(), await server.connect()
    await first.send(post(native([1.0] * 5), GATE))
    await server.gate.is_entered()
    await second.send(post(native([1.0] * 7), GATE), post(native([1.0] * 6), GATE), LIVE)
    await until(lambda: server.parts.service.batcher.queues.rows == 7)
    gone = server.listener.closing_of(second.writer)
    second.reset()
    await gone()
    server.gate.open()
    assert len(own_scores(await first.response())) == 5
    await until(lambda: len(server.listener.state.connections) == 1)
    assert (await (await one_more(server)).response()).status == 200
    assert server.gate.batches == [5]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def one_more(server: Server) -> Raw:
    client = await server.connect()
    await client.send(LIVE)
    return client


# Bodies at the direct door


@pytest.fixture
async def hasty(tmp_path):
    """A server that waits 100 ms for a body."""
    async with serving(tmp_path, body_timeout_ms=100) as server:
        yield server


@pytest.fixture
async def patient(tmp_path):
    """A server that waits 500 ms for a body."""
    async with serving(tmp_path, body_timeout_ms=500) as server:
        yield server


def split(request_: bytes) -> tuple[bytes, bytes, bytes]:
    """A head, and the two halves of the body."""
    head, _, body = request_.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", body[:10], body[10:]


async def test_body_in_slow_parts_is_a_direct_call(patient):
    client = await patient.connect()
    for _ in range(6):  # each has the whole time: all together take longer
        for part in split(post(native([1.0, 2.0]))):
            await client.send(part)
            await asyncio.sleep(0.03)
        assert own_scores(await client.response()) == [1, 2]
    assert patient.asgi_paths == []


async def test_head_in_slow_parts_is_a_direct_call(server):
    client = await server.connect()
    request_ = post(native([1.0, 2.0]))
    for start in range(0, len(request_), 7):
        await client.send(request_[start : start + 7])
        await asyncio.sleep(0.001)
    assert own_scores(await client.response()) == [1, 2]
    assert server.asgi_paths == []


async def test_body_that_stops_is_408_and_the_connection_stays_open(hasty):
    client = await hasty.connect()
    head, first, second = split(post(native()))
    for _ in range(2):
        await client.send(head, first)
        refused = await client.response()
        assert refused.status == 408
        assert orjson.loads(refused.body)["type"] == "/problems/request-timeout"
        assert orjson.loads(refused.body)["detail"] == "the body took longer than 0.1 s"
        await client.send(second, post(native([4.0])))
        assert own_scores(await client.response()) == [4]
    labels = {"route": "/v1/models/{model}/score", "model": "sums", "status": "408"}
    assert hasty.value("requests_total", **labels) == 2
    assert hasty.asgi_paths == []


async def test_body_that_misses_its_deadline_is_504(hasty):
    client = await hasty.connect()
    head, first, _ = split(post(native(), SCORE, b"x-request-timeout-ms: 20"))
    await client.send(head, first)
    refused = await client.response()
    assert refused.status == 504
    assert orjson.loads(refused.body)["type"] == "/problems/deadline-exceeded"
    assert hasty.asgi_paths == []


async def test_client_that_disconnects_in_its_body_is_counted(server):
    client = await server.connect()
    head, first, _ = split(post(native()))
    await client.send(head, first)
    await asyncio.sleep(0.02)
    await client.close()
    await until(lambda: server.value("cancelled_total", stage="body") == 1)
    labels = {"route": "/v1/models/{model}/score", "model": "sums", "status": "499"}
    assert server.value("requests_total", **labels) == 1


@pytest.mark.parametrize("make", [post, post_chunked])
async def test_client_that_half_closes_in_its_body_is_disconnected(server, make):
    client = await server.connect()
    head, first, _ = split(make(native()))
    await client.send(head, first)
    client.writer.write_eof()
    assert await client.rest() == b""
    await until(lambda: server.value("cancelled_total", stage="body") == 1)


LARGE = 200_000


async def announce(server: Server, length: int = LARGE) -> Raw:
    """Send a head and a part of a body."""
    client = await server.connect()
    head, first, _ = split(post(b" " * length))
    await client.send(head, first)
    return client


@pytest.fixture
async def frugal(tmp_path):
    """A server whose budget has room for one large body."""
    settings = {"max_bodies_bytes": 300_000, "max_body_bytes": 250_000, "body_timeout_ms": 30_000}
    async with serving(tmp_path, **settings) as server:
        yield server


async def test_large_body_is_counted_until_it_is_submitted(frugal):
    budget = frugal.parts.bodies.budget
    client = await announce(frugal)
    await until(lambda: budget.held == LARGE)
    await client.send(native().ljust(LARGE - 10))
    await client.response()
    assert budget.held == 0
    assert frugal.asgi_paths == []


@pytest.mark.parametrize("end", ["disconnect", "stop"])
async def test_large_body_that_does_not_arrive_gives_its_bytes_back(frugal, end):
    budget = frugal.parts.bodies.budget
    if end == "stop":
        frugal.parts.bodies.timeout_s = 0.3
    client = await announce(frugal)
    await until(lambda: budget.held == LARGE)
    if end == "disconnect":
        await client.close()
    else:
        assert (await client.response()).status == 408
    await until(lambda: budget.held == 0)


async def test_large_body_is_refused_while_another_has_the_bytes(frugal):
    budget = frugal.parts.bodies.budget
    await announce(frugal)
    await until(lambda: budget.held == LARGE)
    second = await announce(frugal)
    refused = await second.response()
    assert refused.status == 429
    assert refused.headers["retry-after"] == "1"
    assert frugal.value("shed_total", reason="bodies") == 1
    small = await frugal.connect()
    await small.send(post(native()))
    assert (await small.response()).status == 200
    assert budget.held == LARGE


@pytest.mark.parametrize(("length", "held"), [(64 << 10, 0), ((64 << 10) + 1, (64 << 10) + 1)])
async def test_bodies_over_64_kib_are_counted(frugal, length, held):
    await announce(frugal, length)
    if held:
        await until(lambda: frugal.parts.bodies.budget.held == held)
    await asyncio.sleep(0.02)
    assert frugal.parts.bodies.budget.held == held


# Trailers, chunks and transfer codings


CHUNKED = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n" % SCORE.encode()


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


async def test_trailer_fields_are_ignored(shared):
    client = await shared.connect()
    trailers = b"x-request-priority: urgent\r\nx-request-timeout-ms: soon\r\nhost: y\r\n"
    await client.send(CHUNKED, b"\r\n", chunk(native()), b"0\r\n", trailers, b"\r\n")
    assert (await client.response()).status == 200


async def test_trailer_fields_are_not_counted_as_headers(shared):
    client = await shared.connect()
    trailers = b"a: b\r\n" * (2 * MOST_HEADERS)
    await client.send(CHUNKED, b"\r\n", chunk(native()), b"0\r\n", trailers, b"\r\n", LIVE)
    assert (await client.response()).status == 200
    assert (await client.response()).status == 200


async def test_key_in_a_trailer_is_ignored(tmp_path):
    key = "a-key-with-more-than-20-letters"
    async with serving(tmp_path, keys=f"anna:{key}") as server:
        client = await server.connect()
        trailer = b"authorization: Bearer %b\r\n" % key.encode()
        await client.send(CHUNKED, b"\r\n", chunk(native()), b"0\r\n", trailer, b"\r\n")
        assert (await client.response()).status == 401


@pytest.mark.parametrize(
    "endless",
    [b"a" * 1000, b"a: b\r\n" * 200],
    ids=["field", "fields"],
)
@pytest.mark.parametrize("start", [b"0\r\nx: ", b"1;x="], ids=["trailer", "chunk-extension"])
async def test_trailers_and_chunk_extensions_are_bounded(shared, start, endless):
    if start == b"1;x=":
        endless = endless.replace(b"\r\n", b"").replace(b": ", b"")
    client = await shared.connect()
    await client.send(CHUNKED, b"\r\n", start)
    sent = 0
    while not client.reader.at_eof() and sent < 100 * LARGEST_HEAD:
        try:
            await client.send(endless)
        except ConnectionError:
            break
        sent += len(endless)
        await asyncio.sleep(0)
    assert sent < 20 * LARGEST_HEAD
    received = await client.rest()
    assert received == b"" or received.startswith(b"HTTP/1.1 431 ")
    assert (await (await one_more(shared)).response()).status == 200


async def test_trailers_over_the_limit_are_431(server):
    client = await server.connect()
    await client.send(CHUNKED, b"\r\n", chunk(native()), b"0\r\n")
    await client.send(b"x: " + b"a" * (2 * LARGEST_HEAD))
    received = await client.rest()
    assert received.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in received
    assert server.value("requests_total", route="none", model="", status="431") == 1


@pytest.mark.parametrize(
    "size", [b"zz", b"-1", b"0x5", b"", b" 5", b"5 5", b"f" * 17, b"fffffffffffffffff"], ids=str
)
async def test_malformed_chunk_size_is_400(shared, size):
    client = await shared.connect()
    await client.send(CHUNKED, b"\r\n", size, b"\r\n{}\r\n0\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
    assert (await (await one_more(shared)).response()).status == 200


@pytest.mark.parametrize(
    "coding", [b"gzip", b"identity", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"x"]
)
async def test_other_transfer_codings_are_not_implemented(shared, coding):
    client = await shared.connect()
    await client.send(
        b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: %b\r\n\r\n0\r\n\r\n"
        % (SCORE.encode(), coding)
    )
    received = await client.rest()
    assert received.startswith((b"HTTP/1.1 501 ", b"HTTP/1.1 400 "))
    assert received.count(b"HTTP/1.1") == 1
    if coding in (b"gzip", b"gzip, chunked", b"identity"):
        assert received.startswith(b"HTTP/1.1 501 ")


async def test_chunked_coding_is_read_in_any_case(shared):
    client = await shared.connect()
    await client.send(CHUNKED.replace(b": chunked", b":  Chunked "), b"\r\n", chunk(native()))
    await client.send(b"0\r\n\r\n")
    assert (await client.response()).status == 200


# The Host header


@pytest.mark.parametrize("request_", [LIVE, post(native())], ids=["asgi", "direct"])
@pytest.mark.parametrize("hosts", [b"", b"host: x\r\nhost: x\r\n", b"Host: a\r\nhost: b\r\n"])
async def test_missing_or_second_host_is_400(server, request_, hosts):
    client = await server.connect()
    await client.send(request_.replace(b"host: x\r\n", hosts))
    received = await client.rest()
    assert received.startswith(b"HTTP/1.1 400 ")
    assert server.value("requests_total", route="none", model="", status="400") == 1


async def test_http_1_0_needs_no_host(shared):
    client = await shared.connect()
    await client.send(b"GET /livez HTTP/1.0\r\n\r\n")
    assert (await client.response()).status == 200


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"a@b", b"a?b", b"a\\b"])
async def test_host_with_characters_of_no_host_is_400(shared, host):
    client = await shared.connect()
    await client.send(LIVE.replace(b"host: x", b"host: " + host))
    assert (await client.response()).status == 400


@pytest.mark.parametrize(
    "host", [b"", b"x:80", b"[::1]:8000", b"10.0.0.1", b"a_b.svc.cluster.local", b"xn--bcher-kva.x"]
)
async def test_host_is_a_name_or_an_address(shared, host):
    client = await shared.connect()
    await client.send(LIVE.replace(b"host: x", b"host: " + host))
    assert (await client.response()).status == 200


# Other versions and forms of HTTP


@pytest.mark.parametrize("version", ["0.9", "2.0"])
@pytest.mark.parametrize("request_", [LIVE, post(native())], ids=["asgi", "direct"])
async def test_other_versions_of_http_are_505(shared, version, request_):
    client = await shared.connect()
    await client.send(request_.replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
    assert (await client.rest()).startswith(b"HTTP/1.1 505 ")


async def test_request_line_without_a_version_is_505(shared):
    client = await shared.connect()
    await client.send(b"GET /livez\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 505 ")


async def test_chunked_body_of_http_1_0_is_400(shared):
    client = await shared.connect()
    request = post_chunked(native(), SCORE, b"connection: keep-alive")
    await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"), LIVE)
    received = await client.rest()
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "lengths",
    [
        [b"content-length: 3", b"content-length: 3"],
        [b"content-length: 3", b"content-length: 4"],
        [b"content-length: 3, 3"],
        [b"content-length: 3", b"transfer-encoding: chunked"],
        [b"transfer-encoding: chunked", b"content-length: 3"],
        [b"content-length: +3"],
        [b"content-length: -3"],
        [b"content-length: 0x3"],
        [b"content-length: 3\x00"],
        [b"content-length: 3_0"],
        [b"content-length:"],
        [b"content-length: 99999999999999999999"],
        [b"transfer-encoding : chunked"],
        [b"transfer-encoding:\r\n chunked"],
        [b"x: a\r\n b"],
        [b"x: a\x00b"],
        [b"x\x00: a"],
        [b"x: a\rb"],
    ],
)
@pytest.mark.parametrize("path", [SCORE, "/livez"])
async def test_ambiguous_framing_is_400_and_the_connection_ends(shared, path, lengths):
    client = await shared.connect()
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"host: x", *lengths, b"", b"0\r\n\r\n"]
    await client.send(b"\r\n".join(lines), LIVE)
    received = await client.rest()
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("path", ["/v1/models/%73ums/score", "/v2/models/sums/%69nfer"])
async def test_percent_encoded_paths_are_decoded(shared, path):
    client = await shared.connect()
    await client.send(post(b"{}", path))
    assert (await client.response()).status == 422  # the model is found


async def test_offer_to_upgrade_keeps_the_other_connection_options(shared):
    client = await shared.connect()
    offer = b"connection: Upgrade, close, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMA"
    await client.send(post(native(), SCORE, *offer))
    assert (await client.response()).headers["connection"] == "close"
    assert await client.rest() == b""


async def test_offer_to_upgrade_of_http_1_0_is_answered_as_http_1_0(shared):
    client = await shared.connect()
    offer = b"connection: upgrade", b"upgrade: h2c"
    await client.send(post(native(), SCORE, *offer, version=b"1.0"))
    assert (await client.response()).headers["connection"] == "close"
    assert await client.rest() == b""


# Expect: 100-continue


async def test_connection_goes_on_after_an_expected_body(shared):
    client = await shared.connect()
    body = native([1.0])
    for _ in range(3):
        await client.send(post(body, SCORE, b"expect: 100-continue")[: -len(body)])
        assert await client.reader.readexactly(len(CONTINUE)) == CONTINUE
        await client.send(body)
        assert own_scores(await client.response()) == [1]


@pytest.mark.parametrize(
    ("path", "header"), [(SCORE, b"content-type: text/plain"), ("/nowhere", b"x: y")]
)
async def test_refused_expectation_closes_the_connection(shared, path, header):
    client = await shared.connect()
    await client.send(post(b"", path, header, b"expect: 100-continue").replace(b": 0", b": 20"))
    response = await client.response()
    assert response.status in (404, 415)
    assert response.headers["connection"] == "close"
    assert await client.rest() == b""


async def test_client_of_http_1_0_gets_no_interim_response(shared):
    client = await shared.connect()
    await client.send(post(native(), SCORE, b"expect: 100-continue", version=b"1.0"))
    assert (await client.rest()).startswith(b"HTTP/1.1 200 ")


# Clients that do not read


async def test_client_that_does_not_read_is_disconnected(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "WRITE_TIMEOUT_S", 0.2)
    async with serving(tmp_path, max_candidates=4096) as server:
        tcp = socket.socket()
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tcp.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(tcp, ("127.0.0.1", server.listener.port))
        large = post(native([1 / 3] * 4096, ranking={"explain": True}))
        # A task writes, as the server stops reading, too.
        writing = asyncio.ensure_future(loop.sock_sendall(tcp, large * 100))
        await until(lambda: len(server.listener.state.connections) == 1)
        await until(lambda: not server.listener.state.connections)
        await asyncio.gather(writing, return_exceptions=True)
        tcp.close()
        assert (await (await one_more(server)).response()).status == 200


async def test_client_that_reads_slowly_gets_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "WRITE_TIMEOUT_S", 5.0)
    async with serving(tmp_path, max_candidates=4096) as server:
        client = await server.connect(limit=4096)
        large = post(native([1 / 3] * 4096), SCORE)
        writing = asyncio.ensure_future(client.send(large * 20))
        for _ in range(20):
            await asyncio.sleep(0.02)
            assert len(own_scores(await client.response())) == 4096
        await writing


# Timers and the end


async def test_idle_connection_is_closed(tmp_path):
    async with serving(tmp_path, keep_alive_s=0.8) as server:
        silent, used = await server.connect(), await server.connect()
        await used.send(post(native()))
        assert (await used.response()).status == 200
        assert await silent.rest() == b""
        assert await used.rest() == b""


async def test_connection_is_kept_while_its_request_is_computed(tmp_path):
    async with serving(tmp_path, keep_alive_s=0.5) as server:
        client = await server.connect()
        await client.send(post(native([1.0]), GATE))
        await server.gate.is_entered()
        await asyncio.sleep(0.8)
        server.gate.open()
        assert own_scores(await client.response()) == [1]


async def test_used_connection_is_kept_for_the_whole_idle_time(tmp_path):
    async with serving(tmp_path, keep_alive_s=1.2) as server:
        client = await server.connect()
        for _ in range(3):
            await asyncio.sleep(0.5)
            await client.send(post(native()))
            assert (await client.response()).status == 200


async def test_incomplete_head_is_408(server, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.1)
    client = await server.connect()
    await client.send(b"POST /v1/score HTT")
    assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("make", [post, post_chunked])
async def test_shutdown_waits_for_the_response(server, make):
    client, idle = await server.connect(), await server.connect()
    await client.send(make(native([1.0]), GATE))
    await server.gate.is_entered()
    for client_connection in list(server.listener.state.connections):
        cast(Connection, client_connection).shutdown()
    assert await idle.rest() == b""
    server.gate.open()
    assert own_scores(await client.response()) == [1]
    assert await client.rest() == b""


async def test_call_that_the_server_gives_up_is_answered_and_counted_once(server):
    client = await server.connect()
    await client.send(post(native([1.0]), GATE))
    await server.gate.is_entered()
    server.parts.service.readiness.drain()
    (only,) = server.listener.state.connections
    cast(Connection, only).give_up()
    assert (await client.response()).status == 500
    assert await client.rest() == b""
    server.gate.open()
    await until(lambda: not server.parts.service.batcher.running)
    labels = {"route": "/v1/models/{model}/score", "model": "gate"}
    assert server.value("requests_total", **labels, status="500") == 1
    assert server.value("request_duration_seconds_count", **labels) == 1


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def test_direct_response_is_one_write(tmp_path):
    async with service_of_sums(tmp_path) as (parts, _):
        config = uvicorn.Config(parts.app, lifespan="off", log_config=None)
        config.load()
        subject = Connection(
            config=config,
            server_state=ServerState(),
            app_state={},
            scorer=parts.scorer,
            bodies=parts.bodies,
            on_refusal=parts.metrics.refused,
        )
        transport = Transport()
        subject.connection_made(transport)
        for number in range(1, 4):
            subject.data_received(post(native()))
            await until(lambda: len(transport.written) == number)  # noqa: B023
        for response in transport.written:
            head, _, body = response.partition(b"\r\n\r\n")
            assert re.match(rb"HTTP/1\.1 200 OK\r\n", head)
            assert b"content-length: %d" % len(body) in head
        subject.connection_lost(None)
