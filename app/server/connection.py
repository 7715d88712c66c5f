"""One HTTP/1.1 connection, within limits that uvicorn's own protocol does not have.

A head has to be whole within a time and a size; so many requests may be pipelined and no more; and
an offer to upgrade, such as Java's HTTP client makes with every first request, is ignored instead
of costing the request its body (RFC 9110, section 7.8: a server may go on in HTTP/1.1).
"""

import asyncio
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.scoring.body import WHOLE_BODY
from app.scoring.request_headers import IS_DISCONNECTED
from app.server.corked import Corked

LARGEST_HEAD = 64 << 10  # bytes of a request line and its headers, beside those of one read
MOST_HEADERS = 100
MOST_PIPELINED = 16
HEAD_TIMEOUT_S = 10.0
_HOP_BY_HOP = (b"upgrade", b"http2-settings", b"connection")


class Connection(HttpToolsProtocol):
    """A uvicorn protocol; every method is called by its transport or its parser."""

    def __init__(
        self,
        *args: Any,  # noqa: ANN401
        on_refusal: Callable[[int], None],
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Be a protocol as uvicorn makes one; `on_refusal` is told the status of each refusal."""
        super().__init__(*args, **kwargs)
        self._on_refusal = on_refusal

    _head_bytes = 0
    _is_in_head = True
    _head_began_now = False
    _is_upgrade = False
    _refusal = HTTPStatus.BAD_REQUEST
    _head_timer: asyncio.TimerHandle | None = None
    _cycles: tuple[RequestResponseCycle, ...] = ()  # those that are not answered, and the last one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request as long as for a next one."""
        super().connection_made(transport)
        self._set_head_timer(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer, and let every request know, not the last one alone."""
        self._set_head_timer(None)
        super().connection_lost(exc)
        self.pipeline.clear()
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse what goes over a limit."""
        self._unset_keepalive_if_required()
        self._head_began_now = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal)
        else:
            # Where the head began in this read, some of it may belong to what stood before.
            if self._is_in_head and not self._head_began_now:
                self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            elif self._head_timer is None and self.cycle.response_complete:
                # The rest of a body that was refused, or empty lines. Either unset the keep-alive
                # timer: without this one, who sends a byte of it would be waited for for ever.
                self._set_head_timer(self.timeout_keep_alive)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._head_bytes = 0
        self._is_in_head = self._head_began_now = True
        self._set_head_timer(HEAD_TIMEOUT_S)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, if there are not too many."""
        super().on_header(name, value)
        if len(self.headers) > MOST_HEADERS:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise ValueError  # ends the parsing

    def on_headers_complete(self) -> None:
        """Start the request, unless it is to be parsed again, or too many wait before it."""
        self._is_in_head = False
        self._head_bytes = 0
        self._set_head_timer(None)
        self._is_upgrade = self.parser.should_upgrade()
        if self._is_upgrade:
            return
        if len(self.pipeline) >= MOST_PIPELINED:
            raise ValueError  # ends the parsing
        super().on_headers_complete()
        waiting = [each for each in self._cycles if not each.response_complete]
        self._cycles = (*waiting, self.cycle)
        if self.scope["method"] == "POST":  # an answer to HEAD would stay without its body
            self.cycle.transport = Corked(self.transport)  # type: ignore[assignment]
        self.scope[IS_DISCONNECTED] = self.transport.is_closing  # type: ignore[literal-required]
        self.scope[WHOLE_BODY] = partial(_whole_body, self.cycle)  # type: ignore[literal-required]

    def on_message_complete(self) -> None:
        """End the request's body, and look out for its caller leaving, which ends the reading."""
        if self._is_upgrade:
            return
        super().on_message_complete()
        if self.cycle.response_complete:
            self._set_head_timer(self.timeout_keep_alive)  # anew: an idle connection from now on
        elif not self.pipeline:
            self.flow.resume_reading()  # a large body has paused it

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Parse the request again without its offer; `rest` is what came after its head."""
        method = self.parser.get_method()
        if method == b"CONNECT":  # is an upgrade whatever its headers say
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
            return
        lines = [b"%b %b HTTP/1.1" % (method, self.url)]
        lines += [b"%b: %b" % each for each in self.headers if each[0] not in _HOP_BY_HOP]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", rest]))

    def _set_head_timer(self, seconds: float | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = None if seconds is None else self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self._head_began_now or self._head_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        """Close the connection, and say why if no other answer is under way."""
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            body = f"{status.phrase}\n".encode()
            self._on_refusal(status)
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: text/plain; charset=utf-8\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b"
                % (status, status.phrase.encode(), len(body), body)
            )
        self.transport.close()


def _whole_body(cycle: RequestResponseCycle) -> bytes | None:
    """Return a request's body if all of it is here, as it is where it came with its head."""
    return None if cycle.more_body else bytes(cycle.body)
