"""A proxy that misbehaves: it refuses, ignores or drops the first requests."""

import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

SILENCE = 0
"""In place of a status: keep the connection open and do not answer."""

RESET = -1
"""In place of a status: reset the connection, as the kernel does for a process that is killed."""

CLOSE = -2
"""In place of a status: close the connection without a response."""


@dataclass
class Front:
    """The URL of the proxy, and the headers of every request, with lower-case names."""

    url: str = ""
    requests: list[Mapping[str, str]] = field(default_factory=list)


@contextmanager
def busy_front(
    server: str, refusals: Sequence[int], *, retry_after_s: int | None = None
) -> Iterator[Front]:
    """Answer the first requests with the statuses `refusals`; forward later ones to `server`."""
    front = Front()
    left = list(refusals)
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = httpx.get(server + self.path)
            self._answer(answer.status_code, answer.content, answer.headers)

        def do_POST(self) -> None:
            front.requests.append({name.lower(): value for name, value in self.headers.items()})
            body = self.rfile.read(int(self.headers["content-length"]))
            status = left.pop(0) if left else None
            if status == SILENCE:
                over.wait()
                self.close_connection = True
            elif status in (RESET, CLOSE):
                if status == RESET:
                    now = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
                self.close_connection = True
            elif status is not None:
                self._answer(status, b'{"title": "busy"}')
            else:
                sent = {n: v for n, v in self.headers.items() if n.lower() not in ("host", "te")}
                answer = httpx.post(server + self.path, content=body, headers=sent, timeout=60)
                self._answer(answer.status_code, answer.content, answer.headers)

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None):
            self.send_response(status)
            for name in ("content-type", "inference-header-content-length"):
                if headers is not None and name in headers:
                    self.send_header(name, headers[name])
            if retry_after_s is not None and headers is None and status in (429, 503):
                self.send_header("retry-after", str(retry_after_s))
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        front.url = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield front
        finally:
            over.set()
            listener.shutdown()
            thread.join()
