"""The access log: every request is counted, and some are logged, one line each.

All slow requests, all server errors, and a random share of the others are logged. Requests that
are refused with 503, as under overload, are logged at a limited rate: a few per second.
"""

import logging
import random
import re
import time
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalError
from app.lifecycle.readiness import Readiness
from app.scoring.context import Context, send_error
from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestRecord

logger = logging.getLogger("app.access")

REFUSALS_PER_S = 10
"""The most log lines for status 503 in a second. The next line says how many were not logged."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class AccessLog:
    """Counts requests and logs some of them; owned by the event loop."""

    def __init__(self, metrics: Metrics, *, log_sample: float, slow_request_s: float) -> None:
        """Log a share `log_sample` of the requests, and all that take `slow_request_s` or more."""
        self._append = metrics.record
        self._log_sample = log_sample
        self._slow_request_s = slow_request_s
        self._second = 0  # of the monotonic clock, in which `_refusals` were seen
        self._refusals = 0
        self._not_logged = 0  # refusals since the last one that was logged

    def add(
        self,
        record: RequestRecord,
        method: str,
        request_id: str,
        problem: str = "",
        left: str = "",
    ) -> None:
        """Count a request, and log it if it is slow, failed, or sampled.

        Args:
            record: what is counted.
            method: the HTTP method.
            request_id: of the request.
            problem: the slug of its error, or empty.
            left: the stage at which its client disconnected, or empty.
        """
        self._append(record)
        status, duration_s = record.status, record.duration_s
        is_notable = status >= 499 or duration_s >= self._slow_request_s
        if status == HTTPStatus.SERVICE_UNAVAILABLE and not self._logs_refusal():
            return
        if is_notable or random.random() < self._log_sample:  # noqa: S311  (no secret)
            line: dict[str, object] = {
                "id": request_id,
                "method": method,
                "route": record.route,
                "status": status,
                "ms": round(duration_s * 1e3, 3),
            }
            if record.stages:
                line["candidates"] = record.candidates
            optional = {"problem": problem, "left": left, "key": record.key}
            if status == HTTPStatus.SERVICE_UNAVAILABLE and self._not_logged:
                line["not_logged"], self._not_logged = self._not_logged, 0
            line |= {name: value for name, value in optional.items() if value}
            level = logging.ERROR if status == 500 else logging.INFO
            logger.log(level, "request", extra={"fields": line})

    def _logs_refusal(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._refusals = second, 0
        self._refusals += 1
        if self._refusals <= REFUSALS_PER_S:
            return True
        self._not_logged += 1
        return False


class AccessLogMiddleware:
    """The outermost ASGI layer: request id, access log, and a response for every exception.

    Pure ASGI: Starlette's `BaseHTTPMiddleware` would cost as much as the rest of the front end, and
    hide a disconnect from the routes behind it. Score calls are logged by `Scorer`.
    """

    def __init__(self, app: ASGIApp, readiness: Readiness, log: AccessLog) -> None:
        """Wrap `app`."""
        self._app = app
        self._readiness = readiness
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an HTTP request on; log it when its response is sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = Context(request_id_of(_header(scope, b"x-request-id")))
        context.attach(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start" and not context.is_logged:
                context.status = message["status"]
                headers = message.setdefault("headers", [])
                headers.append((b"x-request-id", context.request_id.encode()))
                if self._readiness.is_draining:
                    headers.append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request failed", extra={"fields": {"id": context.request_id}})
            if context.status == 499:  # nothing is sent yet
                error = InternalError("the log has the cause under this request id")
                await send_error(send_with_headers, scope, error)
        finally:
            if not context.is_logged:
                duration_s = time.perf_counter() - context.began
                route = getattr(scope.get("route"), "path", "other")
                record = RequestRecord(route, "", context.status, duration_s)
                self._log.add(record, scope["method"], context.request_id)


def request_id_of(header: bytes | None) -> str:
    """Return the id in an `x-request-id` header if it is well formed, else a new one."""
    if header is not None and _REQUEST_ID.fullmatch(header):
        return str(header, "ascii")
    return f"{random.getrandbits(128):032x}"


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for each, value in scope["headers"] if each == name), None)
