"""One HTTP/1.1 connection: limits that uvicorn's protocol does not have, and direct score calls.

A score call with a plain head goes from the parser straight to the `Scorer`: it needs no ASGI
scope, task or event, and its response is one write. Everything else goes through uvicorn and the
ASGI application: other routes, bodies that are chunked, compressed or very large, requests to
upgrade, and requests that are pipelined behind another.

Limits: a head must be complete within a time and a size; trailers and chunk extensions are bounded;
a client that does not read its responses is disconnected after a while. A request to upgrade, which
Java's HTTP client sends first on a connection, is ignored (RFC 9110, section 7.8: a server may
continue in HTTP/1.1).
"""

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn, cast

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from app.errors import ClientDisconnected, InternalError, Overloaded
from app.scoring.asgi import IS_DISCONNECTED
from app.scoring.body import LARGE_BYTES, UNCOUNTED_BYTES, BodyReader, BodyShare, late_body
from app.scoring.call import CallHead, Route, ScoreCall
from app.scoring.request_headers import read_headers
from app.scoring.score import Scorer
from app.server.head_rules import head_refusal, head_without_upgrade

LARGEST_HEAD = 64 << 10  # bytes of a request line and its headers, beside those of one read
MOST_PIPELINED = 16  # requests; reading pauses while so many wait
HEAD_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 30.0
PROBE_AFTER_S = 0.02  # of a half-closed connection; most requests are answered before
_INDIRECT = frozenset((b"content-encoding", b"expect", b"origin", b"transfer-encoding"))
"""Requests with one of these headers go through the ASGI application."""
_SLICE_BYTES = 16 << 10  # parsed at a time, so that pipelined requests are counted in between
_TCP_CLOSE = 7  # of Linux's TCP states: the other side has reset the connection


class _DirectExchange:
    """Takes the place of uvicorn's current request while a direct call is handled."""

    __slots__ = ("keep_alive", "response_complete")

    def __init__(self) -> None:
        self.keep_alive = True
        self.response_complete = True


@dataclass(slots=True, eq=False)
class _KnownHead:
    """The head of the last direct call: a client mostly sends the same one again."""

    target: bytes
    headers: list[tuple[bytes, bytes]]
    route: Route
    head: CallHead

    def matches(self, connection: "Connection") -> bool:
        """Whether the head that was just parsed is the same."""
        return (
            connection.headers == self.headers
            and connection.target == self.target
            and connection.parser.get_method() == b"POST"
        )


class Connection(HttpToolsProtocol):
    """A uvicorn protocol; every method is called by its transport, its parser or a timer.

    One timer guards the connection. It is set again only when it fires, and when a head or a body
    is incomplete after a read: a request that arrives whole sets no timer.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401
        scorer: Scorer,
        bodies: BodyReader,
        on_refusal: Callable[[int], None],
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Start without a request.

        Args:
            *args: those of the base class.
            scorer: takes direct calls.
            bodies: the limits of request bodies.
            on_refusal: called with the status of each request that was refused unparsed.
            **kwargs: those of the base class.
        """
        super().__init__(*args, **kwargs)
        self._scorer = scorer
        self._bodies = bodies
        self._on_refusal = on_refusal
        self.target = b""
        self._is_in_head = True
        self._has_head_begun = False
        self._head_is_new = False
        self._pending_bytes = 0  # received since the parser last made progress
        self._unparsed = b""  # received while too many requests are pipelined
        self._is_upgrade = False
        self._is_half_closed = False
        self._refusal = HTTPStatus.BAD_REQUEST
        self._late_refusal: HTTPStatus | None = None  # written after the responses before it
        self._direct = _DirectExchange()
        self._is_direct = False  # whether the current request is
        self._call: ScoreCall | None = None  # a direct call without its response
        self._known_head: _KnownHead | None = None
        self._parts: list[bytes] = []  # of a direct call's body
        self._share = BodyShare(bodies.budget)
        self._waits_for_body = False
        self._body_is_timed = False
        self._cycles: tuple[RequestResponseCycle, ...] = ()  # unanswered ones, and the last one
        self._idle_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._date: list[tuple[bytes, bytes]] = []
        self._date_line = b""

    # Transport callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the keep-alive timer: it limits the wait for the first request too."""
        super().connection_made(transport)
        self._idle_since = time.monotonic()
        self._set_timer(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """Disconnect every request of the connection, not only the last one."""
        self._clear_timer()
        for timer in (self._write_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        if self._is_direct:
            self.cycle = None  # type: ignore[assignment]
        super().connection_lost(exc)
        self.pipeline.clear()
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        if self._waits_for_body and self._call is not None:
            self._end_body()
            self._scorer.disconnect(self._call, ClientDisconnected("body"))

    def data_received(self, data: bytes) -> None:
        """Parse; refuse a request that exceeds a limit."""
        if self._late_refusal is not None:
            return
        if self._unparsed:  # reading is paused; this was received before
            self._unparsed += data
            return
        if len(data) <= _SLICE_BYTES:
            self._parse(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), _SLICE_BYTES):
            if self._must_wait():
                self._unparsed += bytes(view[start:])
                return
            self._parse(view[start : start + _SLICE_BYTES])
            if self.transport.is_closing():
                return

    def _must_wait(self) -> bool:
        """Whether what follows must not be parsed yet, or follows what waits for that.

        A request for an upgrade is parsed twice, and may leave something behind.
        """
        return len(self.pipeline) >= MOST_PIPELINED or bool(self._unparsed)

    def _parse(self, data: bytes | memoryview) -> None:
        self._pending_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(bytes(data[upgrade.args[0] :]))
            return
        except httptools.HttpParserError:
            self._refuse(self._refusal)
            return
        if self._is_in_head:
            if self._has_head_begun:
                if self._pending_bytes > LARGEST_HEAD:
                    self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                elif self._head_is_new:
                    self._head_is_new = False
                    self._set_timer(HEAD_TIMEOUT_S)
        elif self._pending_bytes > LARGEST_HEAD:  # trailers, or chunks without content
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._waits_for_body and not self._body_is_timed:
            self._time_body()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a half-closed connection until its requests are answered.

        A client that closed its sending side may still wait for the response (RFC 9112, section
        9.6), or may be gone: the server receives the same. If the response is not ready soon, an
        interim response shows which it is: a client that is gone resets the connection, and
        `is_disconnected` notices that.
        """
        is_incomplete = not self._is_in_head and not self.pipeline
        if not self._cycle_is_open() or is_incomplete or self.scheme == "https":
            return False
        self._is_half_closed = True
        self.cycle.keep_alive = False
        if self.parser.get_http_version() == "1.1":
            self._probe_timer = self.loop.call_later(PROBE_AFTER_S, self._probe)
        return True

    def _probe(self) -> None:
        """Send an interim response, unless a response is being written."""
        is_writing = any(
            cycle.response_started and not cycle.response_complete for cycle in self._cycles
        )
        if self._cycle_is_open() and not is_writing and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def pause_writing(self) -> None:
        """Stop reading while the client does not read, and give up after `WRITE_TIMEOUT_S`."""
        super().pause_writing()
        self.flow.pause_reading()
        self._write_timer = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Continue reading."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if not self.pipeline:
            self.flow.resume_reading()

    # Parser callbacks

    def on_message_begin(self) -> None:
        """Start a head."""
        self.target = b""
        self.headers = []
        self._pending_bytes = 0
        self._is_in_head = self._has_head_begun = self._head_is_new = True

    def on_url(self, url: bytes) -> None:
        """Take a part of the request target."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; trailer fields are ignored (RFC 9110, section 6.5.1)."""
        if self._is_in_head:
            self.headers.append((name.lower(), value))

    def _end_parsing(self, status: HTTPStatus) -> NoReturn:
        self._refusal = status
        raise ValueError  # the parser passes it on as an error of its own

    def on_headers_complete(self) -> None:
        """Start the request: as a direct call, or as uvicorn does."""
        self._start_request()  # may raise: then it is the head that cannot be parsed
        self._is_in_head = False
        self._pending_bytes = 0

    def _start_request(self) -> None:
        is_open = self._cycle_is_open()
        known = self._known_head
        if known is not None and not is_open and known.matches(self):
            self._is_upgrade = False
            self._start_direct(known.route, known.head)
            return
        self._is_upgrade = self.parser.should_upgrade()
        if self._is_upgrade:
            return
        status = head_refusal(self.parser.get_http_version(), self.headers)
        if status is not None:
            self._end_parsing(status)
        route = None if is_open else self._direct_route()
        if route is None:
            self._start_cycle()
        else:
            self._start_direct(route, None)

    def on_body(self, body: bytes) -> None:
        """Take a part of the request's body."""
        self._pending_bytes = 0
        if self._waits_for_body:
            self._parts.append(body)
        elif not self._is_direct:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request's body, and watch for a disconnect, which needs reading."""
        self._pending_bytes = 0
        self._is_in_head = True
        self._has_head_begun = False
        if self._is_upgrade:
            return
        if self._waits_for_body:
            self._submit_direct()
        elif not self._is_direct:
            super().on_message_complete()
            if self.expect_100_continue:
                self.cycle.keep_alive = self.parser.should_keep_alive()
            if not self.cycle.response_complete and not self.pipeline:
                self.flow.resume_reading()  # a large body has paused it

    # Requests through the ASGI application

    def _cycle_is_open(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _start_cycle(self) -> None:
        headers, target = self.headers, self.target
        self._is_direct = False
        super().on_message_begin()
        super().on_url(target)
        for name, value in headers:
            super().on_header(name, value)
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
        super().on_headers_complete()
        if self.expect_100_continue:
            # A client whose body is refused may send it or not: what follows would be ambiguous.
            self.cycle.keep_alive = False
        waiting = [cycle for cycle in self._cycles if not cycle.response_complete]
        self._cycles = (*waiting, self.cycle)
        self.scope[IS_DISCONNECTED] = self.is_disconnected  # type: ignore[literal-required]

    def on_response_complete(self) -> None:
        """Start the next pipelined request, or wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._idle_since = time.monotonic()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._late_refusal is not None:
            self._end_with(self._late_refusal)
            return
        if self._unparsed and len(self.pipeline) < MOST_PIPELINED:
            self.loop.call_soon(self._parse_rest)
        elif not self.pipeline and not self.flow.write_paused:
            self.flow.resume_reading()

    def _parse_rest(self) -> None:
        rest, self._unparsed = self._unparsed, b""
        if rest and not self.transport.is_closing():
            self.data_received(rest)

    # Direct calls

    def _direct_route(self) -> Route | None:
        """Return the route if this is the head of a plain score call."""
        if self.parser.get_method() != b"POST" or not self.target.startswith(b"/v"):
            return None
        if b"%" in self.target:  # percent-encoded, which the ASGI application decodes
            return None
        try:
            route = self._scorer.route(self.target.decode("ascii"))
        except UnicodeDecodeError:
            return None
        if route is None:
            return None
        has_length = False
        for name, value in self.headers:
            if name in _INDIRECT:
                return None
            if name == b"content-length":
                has_length = len(value) <= 7 and int(value) <= LARGE_BYTES
        return route if has_length else None

    def _start_direct(self, route: Route, head: CallHead | None) -> None:
        """Start a direct call; `head` is that of an earlier request with the same head, if any."""
        direct = self._direct
        direct.response_complete = False
        direct.keep_alive = self.parser.should_keep_alive()
        self._is_direct = True
        self.cycle = cast(RequestResponseCycle, direct)
        headers = read_headers(self.headers) if head is None else head.headers
        call = self._scorer.begin(route, "POST", headers, self, head=head)
        if call.is_done or call.head is None:
            return
        if head is None:
            self._known_head = _KnownHead(self.target, self.headers, route, call.head)
        if call.head.length > UNCOUNTED_BYTES:
            try:
                self._share.reserve(call.head.length)
            except Overloaded as error:
                self._scorer.refuse(call, error)
                return
        self._call = call
        self._waits_for_body = True
        self._body_is_timed = False

    def _submit_direct(self) -> None:
        call, parts = self._call, self._parts
        self._end_body()
        assert call is not None
        self._scorer.submit(call, parts[0] if len(parts) == 1 else b"".join(parts))

    def _end_body(self) -> None:
        self._waits_for_body = False
        self._parts = []
        self._share.release()

    def _time_body(self) -> None:
        assert self._call is not None
        self._body_is_timed = True
        left_s = self._call.deadline - time.monotonic()
        self._set_timer(min(left_s, self._bodies.timeout_s))

    def is_disconnected(self) -> bool:
        """Whether the client has closed the connection.

        The transport does not notice a reset while reading is paused (requests are pipelined) or
        finished (half-closed). Then the connection is aborted here, so that its other requests are
        disconnected too.
        """
        transport = self.transport
        if not transport.is_closing() and (self._is_half_closed or self.flow.read_paused):
            tcp = transport.get_extra_info("socket")
            if tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
                transport.abort()
        return transport.is_closing()

    def respond(self, status: int, head: bytes, body: bytes, *, closes: bool) -> None:
        """Write the response of the direct call; see `Client.respond`."""
        self._call = None
        self._direct.response_complete = True
        if self.transport.is_closing():
            return
        default_headers = self.server_state.default_headers
        if default_headers is not self._date:  # uvicorn makes a new list every second
            self._date = default_headers
            self._date_line = b"".join([b"%b: %b\r\n" % header for header in default_headers])
        closing = b"\r\n"
        if not (closes or self._direct.keep_alive):
            closing, closes = b"connection: close\r\n\r\n", True
        self.transport.write(b"".join((STATUS_LINE[status], self._date_line, head, closing, body)))
        if closes:
            self.transport.close()
        self.on_response_complete()

    def abandon(self) -> None:
        """End the direct call without a response."""
        self._call = None
        self._direct.response_complete = True

    def give_up(self) -> None:
        """Fail a direct call that is not done when the server must end.

        Other requests are tasks, which the server cancels.
        """
        if self._call is not None:
            error = InternalError("the server stopped before the response was ready")
            self._scorer.refuse(self._call, error)

    # Timers and refusals

    def _set_timer(self, seconds: float) -> None:
        self._clear_timer()
        self._timer = self.loop.call_later(max(0.0, seconds), self._on_timer)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        """Close the connection if it has waited for too long; else set the timer again."""
        if self._has_head_begun and self._is_in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        elif self._waits_for_body and self._body_is_timed:
            call = self._call
            assert call is not None
            self._end_body()
            is_deadline = call.deadline - call.arrival <= self._bodies.timeout_s
            self._scorer.refuse(call, late_body(self._bodies.timeout_s, is_deadline=is_deadline))
            self._idle_since = time.monotonic()
            self._set_timer(self.timeout_keep_alive)
        elif self._cycle_is_open():
            self._set_timer(self.timeout_keep_alive)
        else:
            left_s = self._idle_since + self.timeout_keep_alive - time.monotonic()
            if left_s > 0:
                self._set_timer(left_s)
            else:
                self.transport.close()

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parse the request again without its upgrade headers; `rest` follows its head."""
        method = self.parser.get_method()
        if method == b"CONNECT":  # an upgrade whatever its headers say
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
            return
        version = self.parser.get_http_version()
        head = head_without_upgrade(method, self.target, version, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

    def _refuse(self, status: HTTPStatus) -> None:
        """End the connection with an error, after the responses to the requests before it."""
        if self.transport.is_closing() or self._late_refusal is not None:
            return
        cycle: RequestResponseCycle | None = self.cycle
        if not self._cycle_is_open() or cycle is None:
            self._end_with(status)
        elif self._is_in_head:
            self._late_refusal = status
        elif self.pipeline:  # the error is in the body of the last request, which has not begun
            self.pipeline.popleft()
            self._late_refusal = status
        elif self._is_direct or cycle.response_started:
            self.transport.close()
        else:
            cycle.disconnected = True
            cycle.message_event.set()
            self._end_with(status)

    def _end_with(self, status: HTTPStatus) -> None:
        body = f"{status.phrase}\n".encode()
        self._on_refusal(status)
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, status.phrase.encode(), len(body), body)
        )
        self.transport.close()
