"""The server on a real loop and real sockets: what a signal does to connections and files."""

import asyncio
import os
import signal
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop

from app.lifecycle.readiness import Readiness
from app.lifecycle.registry import Registry
from app.scoring.body import BodyReader, ByteBudget
from app.scoring.score import Scorer
from app.scoring.service import Service
from app.server.server import DrainingServer
from app.server.sockets import listen
from app.telemetry.metrics import Metrics
from tests.support.waiting import until

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LENGTH = [(b"content-length", b"5")]


async def hello(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": LENGTH})
    await send({"type": "http.response.body", "body": b"hello"})


def make_server(**changes: Any) -> tuple[DrainingServer, Readiness]:
    metrics = Metrics()
    readiness = Readiness(Registry(metrics))
    service = cast("Service", SimpleNamespace(readiness=readiness))
    scorer = cast("Scorer", SimpleNamespace(route=lambda _path: None))
    bodies = BodyReader(max_bytes=1000, timeout_s=5, budget=ByteBudget(1000, metrics))
    given: dict[str, Any] = {
        "keep_alive_s": 5,
        "drain_delay_s": 0.0,
        "drain_timeout_s": 5,
        "on_reload": lambda: None,
    }
    return DrainingServer(hello, scorer, bodies, service, metrics, **(given | changes)), readiness


@pytest.fixture
def signals():
    """The handlers of the signals as they were; the server ignores the signals after it."""
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(main: Any) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


async def started(server: DrainingServer) -> None:
    await until(lambda: server.started, "the server has started")


@pytest.mark.usefixtures("signals")
def test_connections_in_the_accept_queue_are_answered_at_sigterm():
    async def main() -> None:
        server, readiness = make_server()
        (listener,) = listen("127.0.0.1", [0])
        address = listener.getsockname()
        serving = asyncio.create_task(server.serve([listener]))
        await started(server)
        # The loop accepts nothing while this code runs: the kernel alone completes the handshakes.
        server._drain(asyncio.get_running_loop())
        callers = [socket.create_connection(address) for _ in range(50)]
        for caller in callers:
            caller.sendall(REQUEST)
            caller.setblocking(False)
        loop = asyncio.get_running_loop()
        answers = []
        for caller in callers:
            answer = b""
            while part := await loop.sock_recv(caller, 4096):
                answer += part
            answers.append(answer)
            caller.close()
        await serving
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        assert all(answer.endswith(b"hello") for answer in answers)
        assert readiness.is_draining
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    run(main())


@pytest.mark.usefixtures("signals")
def test_sighup_reloads_and_ends_nothing():
    reloads = []

    async def main() -> None:
        server, readiness = make_server(on_reload=lambda: reloads.append(1))
        (listener,) = listen("127.0.0.1", [0])
        serving = asyncio.create_task(server.serve([listener]))
        await started(server)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: reloads, "SIGHUP reloads")
        assert not readiness.is_draining
        server.end()
        await serving
        assert readiness.is_draining

    run(main())
    assert reloads == [1]


@pytest.mark.usefixtures("signals")
def test_a_server_that_ends_before_it_listens_on_a_second_socket_closes_it():
    async def main() -> None:
        server, readiness = make_server()
        first, second = listen("127.0.0.1", [0, 0])
        address = second.getsockname()
        serving = asyncio.create_task(server.serve([first]))
        await started(server)
        readiness.drain()
        assert not await server.listen_also(second)
        server.end()
        await serving
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    run(main())
