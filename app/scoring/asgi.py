"""Score calls as an ASGI application, which passes other requests on to the next application.

This server sends chunked, compressed and very large bodies through it; other ASGI servers send
every request. Small score calls on this server's connections skip it (`app.server.connection`).
"""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from app.engine.request import never_disconnected
from app.errors import ClientDisconnected, GatehouseError
from app.scoring.body import BodyReader
from app.scoring.call import Route
from app.scoring.context import context_of
from app.scoring.request_headers import read_headers
from app.scoring.score import Scorer

IS_DISCONNECTED = "gatehouse.is_disconnected"
"""The key of an ASGI scope whose value is a function: whether the client has disconnected."""


class ScoreRoutes:
    """Answers score calls and passes every other request on to `app`."""

    def __init__(self, app: ASGIApp, scorer: Scorer, bodies: BodyReader) -> None:
        """Stand in front of `app`."""
        self._app = app
        self._scorer = scorer
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a score call, or pass the request on."""
        route = self._scorer.route(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
        else:
            await self._score(route, scope, receive, send)

    async def _score(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        scorer, context = self._scorer, context_of(scope)
        context.is_logged = True
        client = _AsgiClient(scope.get(IS_DISCONNECTED, never_disconnected))
        headers = read_headers(scope["headers"])
        call = scorer.begin(route, scope["method"], headers, client, request_id=context.request_id)
        if not call.is_done:
            try:
                assert call.head is not None
                body = await self._bodies.read(
                    receive,
                    length=call.head.length,
                    coding=call.head.coding,
                    deadline=call.deadline,
                )
            except GatehouseError as error:
                scorer.refuse(call, error)
            except ClientDisconnected as error:
                scorer.disconnect(call, error)
            except Exception as error:  # noqa: BLE001  (as in `Scorer.submit`)
                scorer.fail(call, error)
            else:
                scorer.submit(call, body)
                del body  # it can be megabytes, and the request is going to wait
        response = await client.response
        if response is not None:
            status, head, body = response
            context.status = status
            lines = [_header(line) for line in head.split(b"\r\n")[:-1]]
            await send({"type": "http.response.start", "status": status, "headers": lines})
            await send({"type": "http.response.body", "body": body})


class _AsgiClient:
    """Takes one response and resolves `response`: status, header lines and body, or None."""

    def __init__(self, is_disconnected: Callable[[], bool]) -> None:
        self.is_disconnected = is_disconnected
        loop = asyncio.get_running_loop()
        self.response: asyncio.Future[tuple[int, bytes, bytes] | None] = loop.create_future()

    def respond(self, status: int, head: bytes, body: bytes, *, closes: bool) -> None:  # noqa: ARG002  (the head says it)
        if not self.response.done():  # its task may have been cancelled
            self.response.set_result((status, head, body))

    def abandon(self) -> None:
        if not self.response.done():
            self.response.set_result(None)


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b": ")
    return name, value
