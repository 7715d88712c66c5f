"""Reading a request's body within its limits: type before bytes, bytes before parsing."""

import asyncio
from collections.abc import Callable

from starlette.types import Receive, Scope

from app.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from app.scoring.budget import ByteBudget, Share
from app.scoring.content_coding import INFLATABLE, inflated

LARGE_BYTES = 1 << 20
"""Parsing this much and more holds the event loop for milliseconds. Such bodies take turns, and
between any two of them everything else that is ready goes on."""

WHOLE_BODY = "gatehouse.whole_body"
"""Where the server's connection puts into a scope how to get a body that is here already: small
ones come with their heads, and need neither a timer nor room in the budget."""

JSON = frozenset((b"application/json",))


class BodyReader:
    """Reads bodies of one server: each within its own limits, all of them within a budget."""

    def __init__(self, *, max_bytes: int, timeout_s: float, budget: ByteBudget) -> None:
        """Let in bodies of up to `max_bytes`, decompressed too, that arrive within `timeout_s`."""
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._budget = budget
        self._turn = asyncio.Lock()

    async def read(
        self,
        scope: Scope,
        receive: Receive,
        *,
        deadline: float,
        media_types: frozenset[bytes] = JSON,
        admit: Callable[[int], None] | None = None,
    ) -> bytes:
        """Return a request's whole body, its content coding undone.

        A request without a content type is taken to be of the right one (RFC 9110, section 8.3,
        leaves that to the server): what is no JSON is found out by reading it.

        Args:
            scope: of the request.
            receive: of the request.
            deadline: loop time (s) after which no answer is wanted.
            media_types: the content types that are read, in lower case.
            admit: told the announced length (bytes, or 0) before anything is read; may refuse.

        Raises:
            UnsupportedMediaType: the content type is another, or the content coding is.
            PayloadTooLarge: it is too large; refused before it is read, or while it is.
            Overloaded: the bodies that are on their way leave it no room; likewise.
            MalformedBody: its content coding is broken.
            RequestTimeout: it took too long.
            DeadlineExceeded: the deadline came first.
            ClientDisconnected: the connection closed.
        """
        length, coding = self._checked(scope, media_types)
        if admit is not None:
            admit(length)
        if coding is None and (body := _whole(scope)) is not None:
            self._check_size(len(body))
            return body
        due = asyncio.get_running_loop().time() + self._timeout_s
        with Share(self._budget) as share:
            share.cover(length)
            try:
                async with asyncio.timeout_at(min(deadline, due)):
                    return await self._ready(await self._received(receive, share), coding, share)
            except TimeoutError:
                if deadline <= due:  # a timer may go off before the clock is there
                    raise DeadlineExceeded("the body was not there before the deadline") from None
                detail = f"the body took longer than {self._timeout_s:g} s"
                raise RequestTimeout(detail) from None

    async def _ready(self, body: bytes, coding: bytes | None, share: Share) -> bytes:
        """Undo a body's coding; a large one has to wait until the event loop has come round."""
        if coding is not None:
            body = await inflated(body, coding, share, max_bytes=self._max_bytes)
        if len(body) >= LARGE_BYTES:
            async with self._turn:
                await asyncio.sleep(0)
        return body

    async def _received(self, receive: Receive, share: Share) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("body")
            chunk = message.get("body", b"")
            size += len(chunk)
            self._check_size(size)
            share.cover(size)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _checked(self, scope: Scope, media_types: frozenset[bytes]) -> tuple[int, bytes | None]:
        """Return the length that the headers announce, or 0, and the content coding, if any."""
        length = 0
        coding = None
        for name, value in scope["headers"]:
            if name == b"content-type":
                if value.split(b";", 1)[0].strip().lower() not in media_types:
                    expected = b" or ".join(sorted(media_types)).decode()
                    raise UnsupportedMediaType(f"content-type must be {expected}")
            elif name == b"content-length":
                length = int(value)
                self._check_size(length)
            elif name == b"content-encoding" and (value := value.strip().lower()) != b"identity":
                if coding is not None or value not in INFLATABLE:
                    detail = "content-encoding must be gzip, deflate or identity"
                    raise UnsupportedMediaType(detail, is_coding=True)
                coding = value
        return length, coding

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise PayloadTooLarge(f"the body is larger than {self._max_bytes} bytes")


def _whole(scope: Scope) -> bytes | None:
    whole: Callable[[], bytes | None] | None = scope.get(WHOLE_BODY)
    return None if whole is None else whole()
