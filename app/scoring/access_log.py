"""The outermost layer: request id, one log line, one count, and no error without an answer.

Pure ASGI: a `BaseHTTPMiddleware` would cost as much as the rest of the front end, and hide a
caller's leaving from the routes behind it.
"""

import logging
import random
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalError
from app.scoring.context import Context, send_error
from app.scoring.service import Service
from app.telemetry.metrics import Metrics

logger = logging.getLogger("app.access")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class AccessLogMiddleware:
    """Wraps an ASGI app; see the module."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        metrics: Metrics,
        *,
        log_sample: float,
        slow_request_s: float,
    ) -> None:
        """Wrap `app`. All slow answers and server errors are logged, and a share of the others."""
        self._app = app
        self._service = service
        self._metrics = metrics
        self._log_sample = log_sample
        self._slow_request_s = slow_request_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an HTTP request on and watch its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = Context(_request_id(scope))
        context.attach(scope)

        async def send_watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = message.setdefault("headers", [])
                headers.append((b"x-request-id", context.request_id.encode()))
                if self._service.draining:
                    headers.append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        except Exception:
            logger.exception("request failed", extra={"fields": {"id": context.request_id}})
            if context.status == 499:  # nothing is sent yet
                error = InternalError("the log has the cause under this request's id")
                await send_error(send_watched, scope, error)
        finally:
            self._observe(scope, context)

    def _observe(self, scope: Scope, context: Context) -> None:
        duration_s = time.perf_counter() - context.began
        route = getattr(scope.get("route"), "path", context.route)
        self._metrics.answered(route, context.model, context.status, duration_s)
        if context.key:
            self._metrics.called(context.key, context.status)
            context.fields["key"] = context.key
        notable = context.status >= 499 or duration_s >= self._slow_request_s
        if notable or random.random() < self._log_sample:  # noqa: S311  (no secret)
            fields = {
                "id": context.request_id,
                "method": scope["method"],
                "route": route,
                "status": context.status,
                "ms": round(duration_s * 1e3, 3),
                **context.fields,
            }
            level = logging.ERROR if context.status == 500 else logging.INFO
            logger.log(level, "request", extra={"fields": fields})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return f"{random.getrandbits(128):032x}"
