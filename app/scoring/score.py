"""A score call from its head to its response: the hot path.

A door, that is a connection of this server or an ASGI application, calls `Scorer.begin` when the
head of a request has arrived and `Scorer.submit` when the body has; the response goes back through
`Client.respond`. Between the two there is no task, no future and no timer per request: the batcher
calls `Scorer._finish` when the scores are ranked.

    begin   key, headers, model, media type, size, admission before the body is read
    submit  body → features → queue
            (a lane collates, runs the model and ranks; see `app.engine`)
    finish  ranked candidates → response, one record for metrics and the access log
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from app.artifacts.loader import Model
from app.engine.request import BatchTiming, Priority, QueuedRequest
from app.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    GatehouseError,
    InternalError,
    MethodNotAllowed,
)
from app.protocol.dialect import Dialect, Headers, ParseContext, ParsedRequest
from app.protocol.problems import error_response, is_v2_path
from app.ranking.batch import rank_alone
from app.ranking.policies import ModelPolicies
from app.scoring.access_log import AccessLog, request_id_of
from app.scoring.content_coding import compress
from app.scoring.keys import Keys
from app.scoring.request_headers import check_body_headers, priority, timeout_s
from app.scoring.score_distributions import ResponseSampler
from app.scoring.service import Service
from app.telemetry.metrics import Metrics
from app.telemetry.requests import GPU_STAGES, STAGES, RequestRecord

logger = logging.getLogger(__name__)

_MOST_ROUTES = 1000

_SERVER_TIMING, _GPU_SERVER_TIMING = (
    b"server-timing: " + b", ".join(b"%b;dur=%%.3f" % stage.encode() for stage in stages) + b"\r\n"
    for stages in (STAGES, GPU_STAGES)
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may be at most."""

    max_candidates: int
    max_body_bytes: int
    default_timeout_s: float


@dataclass(frozen=True, slots=True)
class Route:
    """A path of score calls: its dialect, its template, and what it names."""

    dialect: Dialect
    template: str
    model: str | None
    version: int | None


@dataclass(slots=True)
class Response:
    """A response as bytes.

    Attributes:
        status: the status code.
        head: header lines, each with its line end.
        body: as long as `content-length` in the head says.
        closes: whether the connection ends with it, as the head says.
    """

    status: int
    head: bytes
    body: bytes
    closes: bool


class Client(Protocol):
    """The other side of a call, behind its door."""

    def is_disconnected(self) -> bool:
        """Whether it has closed the connection: one look, on the event loop."""

    def respond(self, response: Response | None) -> None:
        """Send the response; None if the client is gone. Called once, on the event loop."""


@dataclass(slots=True, eq=False)
class ScoreCall:
    """One score call; owned by the event loop.

    Attributes:
        route: what it calls.
        method: of HTTP.
        client: who gets the response.
        headers: those that score calls read.
        request_id: its `x-request-id`, or a new one.
        began: `time.perf_counter()` when its head had arrived (s).
        arrival: `time.monotonic()` at the same time (s).
        deadline: clock time (s) after which the response is worthless.
        priority: which requests run first.
        length: the announced length of its body (bytes), or 0.
        coding: the content coding of its body.
        model: the version that scores it.
        policies: the model's policies, all of one policy set.
        key: the name of its API key, or empty.
        parsed: its body.
        is_done: whether it has its response.
    """

    route: Route
    method: str
    client: Client
    headers: Headers
    request_id: str
    began: float
    arrival: float
    deadline: float = 0.0
    priority: Priority = Priority.NORMAL
    length: int = 0
    coding: bytes | None = None
    model: Model | None = None
    policies: ModelPolicies | None = None
    key: str = ""
    parsed: ParsedRequest | None = None
    decode_s: float = 0.0
    encode_s: float = 0.0
    is_done: bool = False


class Scorer:
    """Answers score calls in all dialects; owned by the event loop."""

    def __init__(
        self,
        service: Service,
        dialects: Sequence[Dialect],
        *,
        keys: Keys,
        limits: Limits,
        log: AccessLog,
        metrics: Metrics,
    ) -> None:
        """Score with `service`; callers need one of `keys`, if there are any."""
        self._service = service
        self._dialects = dialects
        self._keys = keys
        self._limits = limits
        self._log = log
        self._metrics = metrics
        self._sampler = ResponseSampler(metrics.ranking)
        self._routes: dict[str, Route | None] = {}

    @property
    def limits(self) -> Limits:
        """What one request may be at most."""
        return self._limits

    def route(self, path: str) -> Route | None:
        """Return the route of a path, or None if it is not one of score calls."""
        try:
            return self._routes[path]
        except KeyError:
            pass
        route = None
        for dialect in self._dialects:
            if found := dialect.path.fullmatch(path):
                model, version = found["model"], found["version"]
                template = dialect.route(model, version)
                route = Route(dialect, template, model, int(version) if version else None)
        if len(self._routes) >= _MOST_ROUTES:  # callers choose paths
            self._routes.clear()
        self._routes[path] = route
        return route

    def begin(
        self, route: Route, method: str, headers: Headers, client: Client, request_id: str = ""
    ) -> ScoreCall:
        """Check the head of a call.

        If the call is refused, it is done: `client` has the response, and no body is wanted.

        Args:
            route: see `Scorer.route`.
            method: of HTTP.
            headers: see `read_headers`.
            client: who gets the response.
            request_id: of the request, if the door knows it.
        """
        request_id = request_id or request_id_of(headers.get(b"x-request-id"))
        call = ScoreCall(
            route, method, client, headers, request_id, time.perf_counter(), time.monotonic()
        )
        try:
            self._check_head(call)
        except GatehouseError as error:
            self.refuse(call, error)
        except Exception as error:  # noqa: BLE001  (as in `submit`)
            self.fail(call, error)
        return call

    def _check_head(self, call: ScoreCall) -> None:
        if call.method != "POST":
            raise MethodNotAllowed(f"{call.method} is not allowed; use POST")
        route, headers = call.route, call.headers
        call.key = self._keys.caller(headers.get(b"authorization"))
        call.deadline = call.arrival + timeout_s(headers, self._limits.default_timeout_s)
        call.priority = priority(headers)
        call.model = model = self._service.registry.active(route.model, route.version)
        call.policies = self._service.policies.of(model)
        call.length, call.coding = check_body_headers(
            headers, route.dialect.media_types, self._limits.max_body_bytes
        )
        self._service.batcher.admit_unread(model, call.length, call.priority, call.deadline)

    def submit(self, call: ScoreCall, body: bytes) -> None:
        """Queue a call whose whole body has arrived, its content coding undone."""
        try:
            self._submit(call, body)
        except GatehouseError as error:
            self.refuse(call, error)
        except Exception as error:  # noqa: BLE001  (a fault of ours fails its own request only)
            self.fail(call, error)

    def _submit(self, call: ScoreCall, body: bytes) -> None:
        began = time.perf_counter()
        model, policies = call.model, call.policies
        assert model is not None
        assert policies is not None
        context = ParseContext(model, policies, call.headers, self._limits.max_candidates)
        parsed = call.route.dialect.parse(body, context)
        call.decode_s = parsed.decoded_at - began
        call.encode_s = time.perf_counter() - parsed.decoded_at
        call.parsed = parsed
        features = parsed.features
        if parsed.timeout_s is not None:
            call.deadline = call.arrival + parsed.timeout_s
        if parsed.priority is not None:
            call.priority = parsed.priority
        if features.unknown_ids:
            self._metrics.unknown(model.manifest.name, features.unknown_ids)
        self._service.batcher.learn_size(model, len(body), features.rows)
        request = QueuedRequest(
            model,
            features,
            parsed.ranking,
            call.deadline,
            call.priority,
            call.client.is_disconnected,
            partial(self._finish, call),
        )
        if features.rows:
            self._service.batcher.submit(request)
        else:
            empty = np.empty((0, len(model.manifest.tasks)), np.float32)
            request.succeed(rank_alone(empty, parsed.ranking), BatchTiming())

    def refuse(self, call: ScoreCall, error: GatehouseError) -> None:
        """Answer a call with an error, unless it is done."""
        if call.is_done:
            return
        status, headers, body = error_response(
            error, is_v2=is_v2_path(call.route.template), request_id=call.request_id
        )
        head = b"".join([b"%b: %b\r\n" % each for each in headers])
        self._respond(call, status, head, body, fields={"problem": error.slug})

    def disconnect(self, call: ScoreCall, error: ClientDisconnected) -> None:
        """End a call whose client is gone; nothing is sent."""
        if call.is_done:
            return
        call.is_done = True
        self._metrics.cancelled(error.stage)
        self._record(call, 499, fields={"left": error.stage})
        call.client.respond(None)

    def fail(self, call: ScoreCall, error: Exception) -> None:
        """Answer a call with 500 after an unexpected exception; the log has its traceback."""
        fields = {"fields": {"id": call.request_id}}
        logger.error("request failed", exc_info=error, extra=fields)
        self.refuse(call, InternalError("the log has the cause under this request id"))

    def _finish(self, call: ScoreCall, request: QueuedRequest) -> None:
        """Answer a call whose request has ended, unless the server gave it up before."""
        if call.is_done:
            return
        error = request.error
        try:
            if error is None:
                self._write(call, request)
            elif isinstance(error, GatehouseError):
                self.refuse(call, error)
            elif isinstance(error, ClientDisconnected):
                self.disconnect(call, error)
            else:
                raise error
        except Exception as failure:  # noqa: BLE001  (as in `submit`)
            self.fail(call, failure)

    def _write(self, call: ScoreCall, request: QueuedRequest) -> None:
        began = time.perf_counter()
        parsed, ranked, timing = call.parsed, request.ranked, request.timing
        assert parsed is not None
        assert ranked is not None
        assert timing is not None
        head, body = parsed.writer.write(ranked)
        now = time.monotonic()
        if now > call.deadline:  # writing took the rest of its time
            self._metrics.shed(DeadlineExceeded.slug)
            self.refuse(call, DeadlineExceeded("the response was not ready before the deadline"))
            return
        respond_s = time.perf_counter() - began
        stages: tuple[float, ...] = (call.decode_s, call.encode_s, request.queue_s)
        if timing.copy_in_s:
            stages += (timing.collate_s, timing.copy_in_s, timing.compute_s, timing.copy_out_s)
            template = _GPU_SERVER_TIMING
        else:
            stages += (timing.collate_s, timing.compute_s)
            template = _SERVER_TIMING
        stages += (timing.rank_s, respond_s)
        head += template % tuple([stage_s * 1e3 for stage_s in stages])
        features, ranker = request.features, parsed.ranking.ranker
        self._sampler.offer(now, request.model.manifest.name, features, ranker, ranked)
        compress(
            body,
            call.headers.get(b"accept-encoding"),
            lambda coding_head, content: self._respond(
                call,
                200,
                b"%b%bcontent-length: %d\r\n" % (head, coding_head, len(content)),
                content,
                policy=ranker.policy.name,
                candidates=features.rows,
                stages=stages,
            ),
        )

    def _respond(
        self,
        call: ScoreCall,
        status: int,
        head: bytes,
        body: bytes,
        *,
        policy: str = "",
        candidates: int = 0,
        stages: Sequence[float] = (),
        fields: dict[str, object] | None = None,
    ) -> None:
        call.is_done = True
        closes = self._service.draining
        closing = b"connection: close\r\n" if closes else b""
        head = b"%bx-request-id: %b\r\n%b" % (head, call.request_id.encode(), closing)
        call.client.respond(Response(status, head, body, closes))
        self._record(call, status, policy, candidates, stages, fields or {"candidates": candidates})

    def _record(
        self,
        call: ScoreCall,
        status: int,
        policy: str = "",
        candidates: int = 0,
        stages: Sequence[float] = (),
        fields: dict[str, object] | None = None,
    ) -> None:
        model = call.model
        name, version = ("", "") if model is None else (model.manifest.name, str(model))
        duration_s = time.perf_counter() - call.began
        record = RequestRecord(
            call.route.template,
            name,
            status,
            duration_s,
            version,
            call.key,
            policy,
            candidates,
            stages,
        )
        self._log.add(record, call.method, call.request_id, fields or {})
