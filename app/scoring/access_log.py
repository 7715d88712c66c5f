"""The access log: every request is counted, and some are logged, one line each.

All slow requests, all server errors, and a random share of the others are logged. Two kinds are not
logged one by one: requests that were refused or late are summed up each second, and health
probes are only counted.
"""

import asyncio
import logging
import random
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    DeadlineExceeded,
    DeadlineUnmeetable,
    Draining,
    InternalError,
    NotReady,
    Overloaded,
)
from app.lifecycle.readiness import Readiness
from app.scoring.context import Context, send_error
from app.scoring.trace import Trace
from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestRecord, stage_names

logger = logging.getLogger("app.access")

SHED_INTERVAL_S = 1.0
_SUMMED_UP = frozenset(
    error.slug for error in (Overloaded, DeadlineUnmeetable, DeadlineExceeded, NotReady, Draining)
)
_PROBES = frozenset(
    (
        *("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"),
        *("/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready"),
    )
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class AccessLog:
    """Counts requests and logs some of them; owned by the event loop."""

    def __init__(self, metrics: Metrics, *, log_sample: float, slow_request_s: float) -> None:
        """Log a share `log_sample` of the requests, and all that take `slow_request_s` or more."""
        self._append = metrics.record
        self._log_sample = log_sample
        self._slow_request_s = slow_request_s
        self._shed: dict[str, int] = {}
        self._shed_id = ""
        self._shed_timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Log what is summed up so far."""
        if self._shed_timer is not None:
            self._shed_timer.cancel()
            self._log_shed()

    def add(
        self,
        record: RequestRecord,
        method: str,
        request_id: str,
        problem: str = "",
        left: str = "",
        *,
        timeout_s: float = 0.0,
        trace: Trace | None = None,
    ) -> None:
        """Count a request, and log it if it is slow, failed, or sampled.

        Args:
            record: what is counted.
            method: the HTTP method.
            request_id: of the request.
            problem: the slug of its error, or empty.
            left: the stage at which its client disconnected, or empty.
            timeout_s: from its arrival to its deadline, or 0 if that is not known.
            trace: its place in a trace.
        """
        self._append(record)
        status, duration_s = record.status, record.duration_s
        if problem in _SUMMED_UP:
            self._add_shed(problem, request_id)
            return
        is_slow = duration_s >= self._slow_request_s
        is_notable = status >= 499 or is_slow
        if record.route in _PROBES and status != 500:
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
            model = record.version or record.model
            optional = {"model": model, "problem": problem, "left": left, "key": record.key}
            line |= {name: value for name, value in optional.items() if value}
            if is_slow and record.role:
                line["role"] = record.role
            if is_slow and timeout_s:
                line["deadline_ms"] = round(timeout_s * 1e3, 3)
            if is_slow and record.stages:
                stages = stage_names(record.stages).items()
                line["stages_ms"] = {name: round(stage_s * 1e3, 3) for name, stage_s in stages}
            if trace is not None:
                ids = {"trace_id": trace.trace_id, "span_id": trace.span_id}
                line |= ids | ({"parent_id": trace.parent_id} if trace.parent_id else {})
            logger.log(_level(status), "request", extra={"fields": line})

    def _add_shed(self, problem: str, request_id: str) -> None:
        if self._shed_timer is None:
            self._shed_id = request_id
            loop = asyncio.get_running_loop()
            self._shed_timer = loop.call_later(SHED_INTERVAL_S, self._log_shed)
        self._shed[problem] = self._shed.get(problem, 0) + 1

    def _log_shed(self) -> None:
        fields = {"requests": sum(self._shed.values()), **self._shed, "first_id": self._shed_id}
        self._shed, self._shed_timer = {}, None
        logger.warning("requests refused or late", extra={"fields": fields})


def _level(status: int) -> int:
    if status == 500:
        return logging.ERROR
    return logging.WARNING if status > 500 else logging.INFO


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
                route = getattr(scope.get("route"), "path_format", "other")
                record = RequestRecord(route, "", context.status, duration_s)
                self._log.add(record, scope["method"], context.request_id)


def request_id_of(header: bytes | None) -> str:
    """Return the id in an `x-request-id` header if it is well formed, else a new one."""
    if header is not None and _REQUEST_ID.fullmatch(header):
        return str(header, "ascii")
    return f"{random.getrandbits(128):032x}"


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
