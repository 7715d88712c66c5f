"""A score call from its head to its response: the hot path.

The transport, which is a connection of this server or an ASGI application, calls `Scorer.begin`
when the head of a request has arrived, and `Scorer.submit` when the body has. The response goes
back through `Client.respond`. Between the two there is no task, future or timer per request: the
batcher calls `Scorer._finish` when the candidates are ranked.

    begin   key, headers, model, media type, size, admission before the body is read
    submit  body → features → queue
            (a lane collates, runs the model and ranks; see `app.engine`)
    finish  ranked candidates → response, one record for metrics and the access log
"""

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from app.artifacts.model_tables import NO_TABLES
from app.engine.request import BatchTiming, QueuedRequest
from app.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    GatehouseError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
)
from app.protocol.dialect import Dialect, Headers, ParseContext, ParsedRequest
from app.protocol.problems import error_response, is_v2_path
from app.ranking.batch import rank_alone
from app.scoring.access_log import AccessLog, request_id_of
from app.scoring.assignment import assign
from app.scoring.body import RowSizes
from app.scoring.call import CallHead, Client, Limits, Route, ScoreCall
from app.scoring.content_coding import MIN_COMPRESSED_BYTES, compress
from app.scoring.gate_sampler import GateSampler
from app.scoring.keys import Keys
from app.scoring.request_headers import check_body_headers, priority, timeout_s
from app.scoring.response_sampler import ResponseSampler
from app.scoring.service import Service
from app.scoring.trace import parse_traceparent
from app.scoring.traffic_recorder import TrafficRecorder
from app.scoring.version_comparer import VersionComparer
from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestRecord

if TYPE_CHECKING:
    from app.scoring.spans import SpanRecorder

logger = logging.getLogger(__name__)

_MOST_ROUTES = 1000

_SERVER_TIMING = (
    b"server-timing: decode;dur=%.3f, encode;dur=%.3f, queue;dur=%.3f, %b, respond;dur=%.3f\r\n"
)
_CLOSE = b"connection: close\r\n"


class Scorer:
    """Handles score calls in all dialects; owned by the event loop."""

    def __init__(
        self,
        service: Service,
        dialects: Sequence[Dialect],
        *,
        keys: Keys,
        limits: Limits,
        log: AccessLog,
        metrics: Metrics,
        spans: "SpanRecorder | None" = None,
        recorder: TrafficRecorder | None = None,
    ) -> None:
        """Score with `service`; if there are any `keys`, a request needs one of them.

        With `spans`, the spans of sampled calls are exported.
        """
        self._service = service
        self._dialects = dialects
        self._keys = keys
        self._limits = limits
        self._log = log
        self._metrics = metrics
        self._spans = spans
        self._gates = GateSampler(metrics.gates)
        self._recorder = recorder
        self._sampler = ResponseSampler(metrics.ranking, service.drift)
        self._registry = service.registry
        self._comparer = VersionComparer(
            service, metrics.ranking, max_candidates=limits.max_candidates
        )
        self._row_sizes = RowSizes()
        service.registry.on_freed.append(self._row_sizes.forget)
        self._routes: dict[str, Route | None] = {}

    @property
    def limits(self) -> Limits:
        """The limits of one request."""
        return self._limits

    def route(self, path: str) -> Route | None:
        """Return the route of a path, or None if it is not one of score calls."""
        try:
            return self._routes[path]
        except KeyError:
            pass
        route = None
        for dialect in self._dialects:
            if match := dialect.path.fullmatch(path):
                model, version = match["model"], match["version"]
                template = dialect.route(model, version)
                route = Route(dialect, template, model, int(version) if version else None)
        if len(self._routes) >= _MOST_ROUTES:  # clients choose the paths
            self._routes.clear()
        self._routes[path] = route
        return route

    def begin(
        self,
        route: Route,
        method: str,
        headers: Headers,
        client: Client,
        *,
        request_id: str = "",
        head: CallHead | None = None,
    ) -> ScoreCall:
        """Check the head of a call.

        If the call is refused, it is done: `client` has the response, and the body is not needed.

        Args:
            route: see `Scorer.route`.
            method: the HTTP method.
            headers: see `read_headers`.
            client: gets the response.
            request_id: of the request, if the transport knows it.
            head: of an earlier call with the same method, headers and route, if there was one.
        """
        call = ScoreCall(
            route,
            method,
            client,
            request_id or request_id_of(headers.get(b"x-request-id")),
            time.perf_counter(),
            time.monotonic(),
            head,
        )
        if (traceparent := headers.get(b"traceparent")) is not None:
            call.trace = parse_traceparent(traceparent)
        if self._spans is not None:
            call.trace, call.span = self._spans.sample(call.trace, f"{method} {route.template}")
        try:
            self._check_head(call, headers)
        except GatehouseError as error:
            self.refuse(call, error)
        except Exception as error:  # noqa: BLE001  (as in `submit`)
            self.fail(call, error)
        return call

    def _check_head(self, call: ScoreCall, headers: Headers) -> None:
        if call.method != "POST":
            raise MethodNotAllowed("method not allowed; use POST")
        route, head, service = call.route, call.head, self._service
        call.key = self._keys.name_of(headers.get(b"authorization"))
        if head is None:
            timeout = timeout_s(headers, self._limits.default_timeout_s)
            urgency = priority(headers)
            call.model = model = service.registry.requested(route.model, route.version)
            length, coding = check_body_headers(
                headers, route.dialect.media_types, self._limits.max_body_bytes
            )
            call.head = head = CallHead(headers, timeout, urgency, length, coding)
        else:
            call.model = model = service.registry.requested(route.model, route.version)
        call.deadline = call.arrival + head.timeout_s
        call.policies = service.policies.of(model)
        if service.batcher.is_refusing:
            rows = self._row_sizes.min_rows(model, head.length)
            service.batcher.admit(model, rows, head.priority, call.deadline)

    def submit(self, call: ScoreCall, body: bytes) -> None:
        """Queue a call whose whole body has arrived and is decompressed."""
        try:
            self._submit(call, body)
        except GatehouseError as error:
            if isinstance(error, InvalidRequest) and error.unknown_keys and call.model is not None:
                self._metrics.unknown_keys(call.model.manifest.name, error.unknown_keys)
            self.refuse(call, error)
        except Exception as error:  # noqa: BLE001  (a bug fails only the request that meets it)
            self.fail(call, error)

    def _submit(self, call: ScoreCall, body: bytes) -> None:
        began = time.perf_counter()
        call.parsed = parsed = self._parse(call, body)
        call.decode_s = parsed.decoded_at - began
        call.encode_s = time.perf_counter() - parsed.decoded_at
        model, head, features = call.model, call.head, parsed.features
        assert model is not None
        assert head is not None
        if parsed.timeout_s is not None:
            call.deadline = call.arrival + parsed.timeout_s
        if self._registry.comparisons and call.route.version is None:
            comparison = self._registry.comparisons.get(model)
            if comparison is not None and comparison.takes_next():
                call.compared = comparison, body
        if features.unknown_ids:
            self._metrics.unknown(model.manifest.name, features.unknown_ids)
        if features.tables is not None and features.tables.unknown:
            unknown = {table: len(rows) for table, rows in features.tables.unknown.items()}
            self._metrics.unknown_keys(model.manifest.name, unknown)
        request = QueuedRequest(
            model,
            features,
            parsed.ranking,
            call.deadline,
            head.priority if parsed.priority is None else parsed.priority,
            call.client.is_disconnected,
            partial(self._finish, call),
        )
        if features.rows:
            self._row_sizes.learn(model, len(body), features.rows)
            self._service.batcher.submit(request)
        else:
            empty = np.empty((0, len(model.manifest.tasks)), np.float32)
            request.succeed(rank_alone(empty, parsed.ranking), BatchTiming())

    def _parse(self, call: ScoreCall, body: bytes) -> ParsedRequest:
        """Decide which version scores the call, and read the body for it."""
        registry, recorder = self._registry, self._recorder
        if recorder is not None and recorder.takes_next():
            call.recording = recorder.begin(len(body))
        if registry.canaries and call.route.version is None:
            parsed = assign(call, body, self._service, self._limits.max_candidates)
            if parsed is not None:
                return parsed
        model, policies, head = call.model, call.policies, call.head
        assert model is not None
        assert policies is not None
        assert head is not None
        role = registry.role(model)
        context = ParseContext(model, policies, head.headers, self._limits.max_candidates, role)
        if registry.tables:
            context.tables = registry.tables.get(model, NO_TABLES)
        if call.recording is not None:
            context.keeps_ids = True
        return call.route.dialect.parse(body, context)

    def refuse(self, call: ScoreCall, error: GatehouseError) -> None:
        """Send an error response, unless the call is done."""
        if call.is_done:
            return
        status, headers, body = error_response(
            error, is_v2=is_v2_path(call.route.template), request_id=call.request_id
        )
        head = b"".join(
            [b"%b: %b\r\n" % header for header in headers if header[0] != b"content-length"]
        )
        self._respond(call, status, head, body, problem=error.slug)

    def disconnect(self, call: ScoreCall, error: ClientDisconnected) -> None:
        """End a call whose client has disconnected; nothing is sent."""
        if call.is_done:
            return
        call.is_done = True
        self._metrics.cancelled(error.stage)
        call.client.abandon()
        self._record(call, 499, left=error.stage)

    def fail(self, call: ScoreCall, error: Exception) -> None:
        """Respond with 500 after an unexpected exception; the log has its traceback."""
        fields = {"fields": {"id": call.request_id}}
        logger.error("request failed", exc_info=error, extra=fields)
        self.refuse(call, InternalError("the log has the cause under this request id"))

    def _finish(self, call: ScoreCall, request: QueuedRequest) -> None:
        """Send the response of a request that has ended, unless the call is done."""
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
        if now > call.deadline:  # the deadline passed while the response was written
            self._metrics.shed(DeadlineExceeded.slug)
            self.refuse(call, DeadlineExceeded("the response was not ready before the deadline"))
            return
        ranker, rows = parsed.ranking.ranker, request.features.rows
        if call.recording is not None:
            call.recording.ranked = ranked
            head += call.recording.header
        if now >= self._sampler.next_at:
            self._sampler.sample(now, request.model, request.features, ranker, ranked)
            if request.model.manifest.gates:
                self._gates.sample(now, request)
        if call.compared is not None:
            assert call.head is not None
            comparison, request_body = call.compared
            kept = None if parsed.features.tables is None else parsed.features.tables.kept
            self._comparer.compare_soon(
                comparison, call.route.dialect, call.head.headers, request_body, ranked, kept
            )
        if call.span is not None:
            call.span.starts = (
                parsed.decoded_at - call.decode_s - call.began,
                request.arrival - call.arrival if request.arrival else 0.0,
                began - call.began,
            )
        respond_s = time.perf_counter() - began
        head += _SERVER_TIMING % (
            call.decode_s * 1e3,
            call.encode_s * 1e3,
            request.queue_s * 1e3,
            timing.server_timing,
            respond_s * 1e3,
        )
        stages = (call.decode_s, call.encode_s, request.queue_s, *timing.stages, respond_s)
        policy = ranker.policy.name
        if len(body) < MIN_COMPRESSED_BYTES:
            self._respond(call, 200, head, body, policy, rows, stages)
            return
        assert call.head is not None
        compress(
            body,
            call.head.headers.get(b"accept-encoding"),
            lambda coding, content: self._respond(
                call, 200, head + coding, content, policy, rows, stages
            ),
        )

    def _respond(
        self,
        call: ScoreCall,
        status: int,
        head: bytes,
        body: bytes,
        policy: str = "",
        candidates: int = 0,
        stages: Sequence[float] = (),
        problem: str = "",
    ) -> None:
        """Send a response; `head` does not have the length and the request id yet."""
        call.is_done = True
        closes = self._service.is_draining
        head = b"%bcontent-length: %d\r\nx-request-id: %b\r\n%b" % (
            head,
            len(body),
            call.request_id.encode(),
            _CLOSE if closes else b"",
        )
        if call.trace is not None:
            head += call.trace.header_line
        call.client.respond(status, head, body, closes=closes)
        self._record(call, status, policy, candidates, stages, problem)

    def _record(
        self,
        call: ScoreCall,
        status: int,
        policy: str = "",
        candidates: int = 0,
        stages: Sequence[float] = (),
        problem: str = "",
        left: str = "",
    ) -> None:
        model = call.model
        record = RequestRecord(
            call.route.template,
            "" if model is None else model.manifest.name,
            status,
            time.perf_counter() - call.began,
            "" if model is None else model.label,
            call.key,
            policy,
            candidates,
            stages,
            "" if model is None else self._registry.role(model),
        )
        if call.recording is not None and model is not None:
            assert self._recorder is not None
            assert call.policies is not None
            self._recorder.add(call.recording.record(record, model, call.policies, call.parsed))
        canaries = self._registry.canaries
        if canaries and model is not None and call.is_assigned:
            canary = canaries.get(model.manifest.name)
            if canary is not None:
                canary.observe(model, status, record.duration_s)
        timeout_s = call.deadline - call.arrival if call.deadline else 0.0
        self._log.add(
            record,
            call.method,
            call.request_id,
            problem,
            left,
            timeout_s=timeout_s,
            trace=call.trace,
        )
        if call.span is not None:
            assert self._spans is not None
            assert call.trace is not None
            self._spans.end(
                call.span,
                call.trace,
                record,
                call.method,
                call.request_id,
                problem=problem,
                left=left,
            )
