"""The context of a request on an ASGI route, which is kept in the ASGI scope."""

import time
from dataclasses import dataclass, field

from starlette.types import Scope, Send

from app.errors import GatehouseError
from app.protocol.problems import error_response, is_v2_path

_KEY = "gatehouse"


@dataclass(slots=True)
class Context:
    """The context of one request.

    Attributes:
        request_id: the client's `x-request-id`, or a new one.
        status: of the response; 499 until it is sent, and if the client disconnects first.
        is_logged: whether the request is a score call, which `Scorer` logs.
        began: `time.perf_counter()` when its head had arrived (s).
    """

    request_id: str
    status: int = 499
    is_logged: bool = False
    began: float = field(default_factory=time.perf_counter)

    def attach(self, scope: Scope) -> None:
        """Put this context into a scope."""
        scope[_KEY] = self


def context_of(scope: Scope) -> Context:
    """Return the context that the middleware attached."""
    context = scope[_KEY]
    assert isinstance(context, Context)
    return context


async def send_error(send: Send, scope: Scope, error: GatehouseError) -> None:
    """Send an error response, in the form of the request's API (native or V2)."""
    status, headers, body = error_response(
        error, is_v2=is_v2_path(scope["path"]), request_id=context_of(scope).request_id
    )
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
