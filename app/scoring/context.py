"""What is known of a request while it is on its way; it travels in the ASGI scope."""

import time
from dataclasses import dataclass, field

from starlette.types import Scope, Send

from app.errors import GatehouseError
from app.protocol.problems import error_response, is_v2_path

_KEY = "gatehouse"


@dataclass(slots=True)
class Context:
    """One request, as logs and metrics see it.

    Attributes:
        request_id: the caller's `x-request-id`, or one made here.
        route: the path's template; bounded, so it can be a label.
        model: the name of an active model, or empty.
        key: the name of the key that the caller presented, or empty.
        status: of the answer; 499 until one is sent, and if the caller leaves first.
        fields: more for the log line; never feature values.
        began: `time.perf_counter()` when the headers were there.
    """

    request_id: str
    route: str = "other"
    model: str = ""
    key: str = ""
    status: int = 499
    fields: dict[str, object] = field(default_factory=dict)
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
    """Answer a request with an error, in the form of its path."""
    status, headers, body = error_response(
        error, is_v2=is_v2_path(scope["path"]), request_id=context_of(scope).request_id
    )
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
