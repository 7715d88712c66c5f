"""Spans of score calls for OpenTelemetry, exported by OTLP over HTTP (extra `otel`).

The standard variables configure it: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`,
`OTEL_BSP_MAX_QUEUE_SIZE`, `OTEL_RESOURCE_ATTRIBUTES` and the others of the specification.

A sampled call becomes a server span, a child of the caller's, with one child span for each stage.
On the event loop a call that is not sampled costs the sampler's decision, and a sampled one the
creation of one span. The SDK's thread makes the spans of the stages, encodes and sends them. It
never waits for the event loop, nor the event loop for it: while too many calls wait to be
exported, further ones are dropped and counted.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_MAX_QUEUE_SIZE,
    OTEL_RESOURCE_ATTRIBUTES,
    OTEL_SERVICE_NAME,
)
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, ParentBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace.status import Status, StatusCode

from app.scoring.trace import SampledCall, Trace
from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestRecord, stage_names

_SCOPE = InstrumentationScope("gatehouse", version("gatehouse"))
_SAMPLED = api.TraceFlags(api.TraceFlags.SAMPLED)
_NO_PARENT = Context()
_DEFAULT_QUEUE = 2048  # calls; the specification's default of OTEL_BSP_MAX_QUEUE_SIZE
_FLUSH_S = 2.0


class SpanRecorder:
    """Samples score calls and hands their spans to the SDK; owned by the event loop."""

    def __init__(self, environment: Mapping[str, str], metrics: Metrics, *, scheme: str) -> None:
        """Start the exporter's thread; `environment` has the `OTEL_…` variables.

        Args:
            environment: the SDK reads most variables from `os.environ` itself.
            metrics: counts traced requests by result.
            scheme: of the service's URLs.
        """
        attributes = {SERVICE_VERSION: version("gatehouse")}
        named = environment.get(OTEL_RESOURCE_ATTRIBUTES, "")
        if not environment.get(OTEL_SERVICE_NAME) and "service.name=" not in named:
            attributes[SERVICE_NAME] = "gatehouse"
        self._provider = TracerProvider(
            resource=Resource.create(attributes), shutdown_on_exit=False
        )
        self._sampler = self._provider.sampler
        self._new_trace_id = self._provider.id_generator.generate_trace_id
        self._new_span_id = self._provider.id_generator.generate_span_id
        self._count = metrics.traced
        self._exporter = _StageExporter(OTLPSpanExporter(), self._provider, metrics)
        self._processor = BatchSpanProcessor(self._exporter)
        queue = environment.get(OTEL_BSP_MAX_QUEUE_SIZE, "").strip()
        self._most_pending = int(queue or _DEFAULT_QUEUE)
        self._recorded = 0
        self._scheme = scheme
        # A sampler that follows the caller decides by the caller's flag alone.
        self._follows: dict[str, bool] = {}
        if isinstance(self._sampler, ParentBased):
            probe = Trace("1" * 32, "1" * 16, "1" * 16, "00")
            self._follows = {
                flags: self._is_sampled(probe._replace(flags=flags), "") for flags in ("00", "01")
            }

    def sample(self, trace: Trace | None, name: str) -> tuple[Trace | None, SampledCall | None]:
        """Decide whether a call is recorded.

        Args:
            trace: the call's place in the caller's trace, if the caller has one.
            name: of the span, such as `POST /v1/score`.

        Returns:
            The trace as the response and the log state it: a new one if the call is sampled and
            has no caller's trace. And the call, if it is sampled.
        """
        if trace is None:
            trace_id = self._new_trace_id()
            decision = self._sampler.should_sample(_NO_PARENT, trace_id, name).decision
            if decision is not Decision.RECORD_AND_SAMPLE:
                return None, None
            trace = Trace(f"{trace_id:032x}", "", f"{self._new_span_id():016x}", "01")
            return trace, SampledCall(name, time.time_ns())
        is_sampled = self._follows.get(trace.flags)
        if is_sampled is None:
            is_sampled = self._is_sampled(trace, name)
        flags = "01" if is_sampled else "00"
        if flags != trace.flags:
            trace = trace._replace(flags=flags)
        return trace, SampledCall(name, time.time_ns()) if is_sampled else None

    def _is_sampled(self, trace: Trace, name: str) -> bool:
        parent = api.set_span_in_context(api.NonRecordingSpan(_caller(trace)), _NO_PARENT)
        result = self._sampler.should_sample(parent, int(trace.trace_id, 16), name)
        return result.decision is Decision.RECORD_AND_SAMPLE

    def end(
        self,
        call: SampledCall,
        trace: Trace,
        record: RequestRecord,
        method: str,
        request_id: str,
        *,
        problem: str = "",
        left: str = "",
    ) -> None:
        """Hand the span of a call that has ended to the exporter, or count it as dropped.

        Args:
            call: the call.
            trace: its place in a trace.
            record: what is counted about it.
            method: the HTTP method.
            request_id: of the request.
            problem: the slug of its error, or empty.
            left: the stage at which its client disconnected, or empty.
        """
        if self._recorded - self._exporter.taken >= self._most_pending:
            self._count("dropped")
            return
        self._recorded += 1
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": record.route,
            "url.scheme": self._scheme,
            "gatehouse.request_id": request_id,
        }
        if left:
            attributes["error.type"] = f"client-disconnected-{left}"
        else:
            attributes["http.response.status_code"] = record.status
        if problem:
            attributes["error.type"] = problem
        if record.version:
            attributes["gatehouse.model"] = record.model
            attributes["gatehouse.version"] = int(record.version.rpartition("/")[2])
            attributes["gatehouse.role"] = record.role
        if record.stages:
            attributes["gatehouse.rows"] = record.candidates
            attributes["gatehouse.policy"] = record.policy
        failed = not left and record.status >= 500
        span = _CallSpan(
            call.name,
            api.SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), False, _SAMPLED),
            _caller(trace) if trace.parent_id else None,
            self._provider.resource,
            attributes,
            kind=api.SpanKind.SERVER,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=call.began_unix_ns,
            end_time=call.began_unix_ns + int(record.duration_s * 1e9),
            instrumentation_scope=_SCOPE,
        )
        span.starts, span.stages = call.starts, record.stages
        self._processor.on_end(span)

    def close(self) -> None:
        """Export what waits, for at most two seconds."""
        closing = threading.Thread(target=self._processor.shutdown, name="otel-flush", daemon=True)
        closing.start()
        closing.join(_FLUSH_S)


class _CallSpan(ReadableSpan):
    """The span of a call, and what the spans of its stages are made of.

    Attributes:
        starts: when decoding, queueing and responding began (s after the call).
        stages: seconds by stage.
    """

    starts: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stages: Sequence[float] = ()


class _StageExporter(SpanExporter):
    """Adds the spans of the stages in the SDK's thread, exports all, and counts the calls.

    Attributes:
        taken: calls that were exported, or could not be.
    """

    def __init__(self, exporter: SpanExporter, provider: TracerProvider, metrics: Metrics) -> None:
        self.taken = 0
        self._exporter = exporter
        self._new_span_id = provider.id_generator.generate_span_id
        self._count = metrics.traced

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the spans of calls; called by the SDK."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(list(self._with_stages(spans)))
        finally:
            self.taken += len(spans)
            self._count("exported" if result is SpanExportResult.SUCCESS else "failed", len(spans))
        return result

    def shutdown(self) -> None:
        """End an export that is retried."""
        self._exporter.shutdown()

    def _with_stages(self, spans: Iterable[ReadableSpan]) -> Iterator[ReadableSpan]:
        for span in spans:
            yield span
            if isinstance(span, _CallSpan) and span.stages:
                yield from self._stages(span)

    def _stages(self, span: _CallSpan) -> Iterator[ReadableSpan]:
        """The stages of one call, each a child of its span, where they were in time."""
        context, began_ns = span.context, span.start_time
        assert context is not None
        assert began_ns is not None
        decoded_s, queued_s, responded_s = span.starts
        began_at = {"decode": decoded_s, "queue": queued_s, "respond": responded_s}
        at_s = 0.0
        for name, stage_s in stage_names(span.stages).items():
            at_s = began_at.get(name, at_s)  # the others follow the one before
            yield ReadableSpan(
                name,
                api.SpanContext(context.trace_id, self._new_span_id(), False, _SAMPLED),
                context,
                span.resource,
                {},
                start_time=began_ns + int(at_s * 1e9),
                end_time=began_ns + int((at_s + stage_s) * 1e9),
                instrumentation_scope=_SCOPE,
            )
            at_s += stage_s


def _caller(trace: Trace) -> api.SpanContext:
    flags = api.TraceFlags(int(trace.flags, 16))
    return api.SpanContext(int(trace.trace_id, 16), int(trace.parent_id, 16), True, flags)
