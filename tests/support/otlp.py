"""A receiver of OTLP over HTTP: it decodes what exporters send, as a collector does."""

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PATIENCE_S = 30.0


@dataclass
class Collector:
    """The URL for `OTEL_EXPORTER_OTLP_ENDPOINT`, and what has arrived."""

    url: str = ""
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)
    status: int = 200
    posts: int = 0

    def wait_for(self, enough: Callable[[], bool]) -> None:
        """Wait until a condition holds.

        Raises:
            AssertionError: it does not, within `PATIENCE_S`.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not enough():
            assert time.monotonic() < deadline, f"{len(self.spans)} spans after {self.posts} posts"
            time.sleep(0.01)

    def calls(self) -> list[Any]:
        """Return the spans of calls, without those of stages."""
        return [span for span in self.spans if span.kind == span.SPAN_KIND_SERVER]

    def stages(self, call: Any) -> list[Any]:
        """Return the spans of a call's stages, in order of time."""
        found = [span for span in self.spans if span.parent_span_id == call.span_id]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


def attributes(item: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource."""
    return {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value"))
        for attribute in item.attributes
    }


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a receiver on a free port."""
    received = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.posts += 1
            if received.status == 200:
                assert self.path == "/v1/traces"
                assert self.headers["content-type"] == "application/x-protobuf"
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
                    received.resources.append(attributes(resource_spans.resource))
                    for scope in resource_spans.scope_spans:
                        received.spans.extend(scope.spans)
            self.send_response(received.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        received.url = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield received
        finally:
            listener.shutdown()
            thread.join()
