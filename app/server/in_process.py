"""A call within this process: through the whole HTTP interface, without a socket."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import ASGIApp, Message


@dataclass(frozen=True, slots=True)
class ServiceResponse:
    """The response of the service to one request.

    Attributes:
        status: the HTTP status.
        content: the body, the same bytes that a client gets.
        problem: one line for each error; None if there are scores.
    """

    status: int
    content: bytes
    problem: Sequence[str] | None


async def post_json(app: ASGIApp, path: str, body: bytes) -> ServiceResponse:
    """POST a JSON body to an ASGI app and return its response."""
    status, content = await post(app, path, body, {"content-type": "application/json"})
    return ServiceResponse(status, content, None if status == 200 else _lines(content))


async def post(
    app: ASGIApp, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, bytes]:
    """POST a body to an ASGI app and return the status and the body of its response."""
    sent: list[Message] = []
    received = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return next(received, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope_of(path, headers), receive, send)
    return int(sent[0]["status"]), b"".join(message.get("body", b"") for message in sent[1:])


def scope_of(path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the ASGI scope of a POST."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
    }


def _lines(content: bytes) -> list[str]:
    """Return the errors of a problem document, one line each, or else its detail."""
    document = orjson.loads(content)
    errors = document.get("errors")
    if not errors:
        return [document.get("detail") or document["title"]]
    return [f"{error['pointer'] or '/'}: {error['detail']}" for error in errors]
