"""The two ways to a service: a socket of this server, and its ASGI application.

The model is `sums`; `Gate` is the same model with a program that waits until it is opened.
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import httpx
import orjson
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.server import ServerState

from app.artifacts.columns import ModelInputs
from app.artifacts.loader import Model
from app.artifacts.program import Program
from app.artifacts.store import Artifact
from app.main import Gatehouse, gatehouse
from app.scoring.asgi import IS_DISCONNECTED
from app.server.connection import Connection
from app.server.in_process import scope_of
from app.settings import Settings
from tests.support.fakes import sums_model
from tests.support.waiting import PATIENCE_S, until

Kind = Literal["direct", "asgi"]
SCORE = "/v1/models/sums/score"
INFER = "/v2/models/sums/infer"
GATE = "/v1/models/gate/score"
TCP_CLOSE = 7  # of Linux's TCP states


def native(candidates=(1.0, 3.0, 2.0), *, user: object = 10.0, **members: object) -> bytes:
    """The body of a native score call."""
    document = {"user": {"u": user}, "candidates": {"c": list(candidates)}, **members}
    return orjson.dumps(document)


def tensors(candidates=(1.0, 3.0, 2.0), *, user: float = 10.0) -> bytes:
    """The same request in the Open Inference Protocol."""
    inputs = [
        {"name": "u", "shape": [1, 1], "datatype": "FP32", "data": [user]},
        {
            "name": "c",
            "shape": [len(candidates), 1],
            "datatype": "FP32",
            "data": list(candidates),
        },
    ]
    return orjson.dumps({"inputs": inputs})


class Gate:
    """A program that computes when it is opened.

    Attributes:
        batches: the rows of each batch that a lane has started.
    """

    has_steady_cost = False

    def __init__(self) -> None:
        self.batches: list[int] = []
        self._is_open = threading.Event()
        self._program = sums_model().program

    def run(self, inputs: ModelInputs) -> Any:
        self.batches.append(inputs.rows)
        assert self._is_open.wait(PATIENCE_S)
        return self._program.run(inputs)

    def open(self) -> None:
        self._is_open.set()

    async def is_entered(self) -> None:
        """Wait until a lane has started a batch."""
        await until(lambda: bool(self.batches))


@dataclass
class Door:
    """A service behind one of its doors.

    Attributes:
        client: speaks HTTP through the door.
        listener: of the socket, if there is one.
        gate: the program of the model `gate`.
        asgi_paths: the paths of the requests that the ASGI application was called with.
        sent: what the ASGI application sent to clients of `post_and_disconnect`.
    """

    kind: Kind
    parts: Gatehouse
    client: httpx.AsyncClient
    listener: "Listener | None"
    gate: Gate
    asgi_paths: list[str]
    sent: list[Message] = field(default_factory=list)
    _calls: list["asyncio.Future[None]"] = field(default_factory=list)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def post(
        self, path: str = SCORE, body: bytes | None = None, **headers: str
    ) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = native() if body is None else body
        return await self.client.post(
            path, content=content, headers={"content-type": "application/json"} | named
        )

    async def post_head(self, length: int, path: str = SCORE, **headers: str) -> int:
        """Send a head that announces a body and nothing more; return the response's status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named |= {"host": "x", "content-type": "application/json", "content-length": str(length)}
        if self.listener is not None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.port)
            lines = [f"POST {path} HTTP/1.1", *(f"{k}: {v}" for k, v in named.items()), "", ""]
            writer.write("\r\n".join(lines).encode())
            async with asyncio.timeout(PATIENCE_S):
                status = (await reader.readuntil(b"\r\n")).split()[1]
            writer.close()
            await writer.wait_closed()
            return int(status)

        async def receive() -> Message:
            raise AssertionError("the body was read")

        scope = scope_of(path, named)
        sent: list[Message] = []
        await self.parts.app(scope, receive, _into(sent))
        return int(sent[0]["status"])

    async def post_and_disconnect(self, path: str = GATE) -> Callable[[], Awaitable[None]]:
        """Send a whole request; return a function that closes its connection.

        That function waits until the server can see it.
        """
        listener = self.listener
        if listener is not None:
            body = native()
            _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(
                b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
                % (path.encode(), len(body), body)
            )
            self._writers.append(writer)

            async def leave() -> None:
                gone = listener.closing_of(writer)
                writer.transport.abort()
                await gone()

            return leave
        gone = threading.Event()
        scope = scope_of(path, {}) | {IS_DISCONNECTED: gone.is_set}
        messages: list[Message] = [{"type": "http.request", "body": native()}]

        async def receive() -> Message:
            return messages.pop()

        self._calls.append(asyncio.ensure_future(self.parts.app(scope, receive, _into(self.sent))))

        async def set_gone() -> None:
            gone.set()

        return set_gone

    def value(self, name: str, **labels: str) -> float:
        """A sample of a metric, or 0."""
        found = self.parts.metrics.registry.get_sample_value(f"gatehouse_{name}", labels)
        return found or 0.0


def _into(sent: list[Message]) -> Send:
    async def send(message: Message) -> None:
        sent.append(message)

    return send


@dataclass(frozen=True)
class Listener:
    """A socket that is served, and what uvicorn knows about it."""

    port: int
    state: ServerState

    def closing_of(self, writer: asyncio.StreamWriter) -> Callable[[], Awaitable[None]]:
        """Return a function that waits until the server can see that a client has gone.

        A client that closes looks half-closed until its kernel has refused an interim response.
        """
        address = writer.get_extra_info("sockname")
        [transport] = [
            connection.transport
            for connection in cast("set[Any]", self.state.connections)
            if connection.transport.get_extra_info("peername") == address
        ]

        def is_gone() -> bool:
            if transport.is_closing():
                return True
            tcp = transport.get_extra_info("socket")
            return bool(tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE)

        return partial(until, is_gone, "the client has gone")


@asynccontextmanager
async def listening(
    parts: Gatehouse, app: ASGIApp | None = None, *, keep_alive_s: float = 5
) -> AsyncIterator["Listener"]:
    """Serve on a socket, in this event loop."""
    config = uvicorn.Config(
        app or parts.app,
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=cast(int, keep_alive_s),
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Thu, 01 Jan 2026 00:00:00 GMT")]

    def connection() -> asyncio.Protocol:
        return Connection(
            config=config,
            server_state=state,
            app_state={},
            scorer=parts.scorer,
            bodies=parts.bodies,
            on_refusal=parts.metrics.refused,
        )

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
    try:
        yield Listener(server.sockets[0].getsockname()[1], state)
    finally:
        server.close()
        for open_connection in list(state.connections):
            cast(Any, open_connection).transport.abort()
        await until(lambda: not state.connections and not state.tasks)


@asynccontextmanager
async def service_of_sums(store: Path, **settings: Any) -> AsyncIterator[tuple[Gatehouse, Gate]]:
    """A service with one lane, in which `sums` and `gate` are active."""
    given = {"store": store, "lanes": 1, "request_timeout_ms": 30_000, "log_sample": 1}
    gate = Gate()
    gated: Model = replace(sums_model("gate"), program=cast(Program, gate))
    async with gatehouse(Settings.model_validate(given | settings)) as parts:
        parts.service.registry.has_started = True
        parts.service.registry.activate(Artifact("sums", 1, store), sums_model())
        parts.service.registry.activate(Artifact("gate", 1, store), gated)
        try:
            yield parts, gate
        finally:
            gate.open()


@asynccontextmanager
async def open_door(kind: Kind, store: Path, **settings: Any) -> AsyncIterator[Door]:
    """Start a service and a client behind one of its doors."""
    async with service_of_sums(store, **settings) as (parts, gate):
        paths: list[str] = []

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            paths.append(scope["path"])
            await parts.app(scope, receive, send)

        if kind == "asgi":
            transport = httpx.ASGITransport(counted)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://gatehouse"
            ) as client:
                yield Door(kind, parts, client, None, gate, paths)
            return
        async with (
            listening(parts, counted) as listener,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{listener.port}", timeout=PATIENCE_S
            ) as client,
        ):
            yield Door(kind, parts, client, listener, gate, paths)
