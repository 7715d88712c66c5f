"""Request bodies: their bytes in memory, reading ASGI messages, and how many rows one has."""

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

from app.artifacts.loader import Model
from app.errors import ClientDisconnected, DeadlineExceeded, Overloaded, RequestTimeout
from app.scoring.content_coding import decompress
from app.scoring.request_headers import check_size
from app.telemetry.metrics import Metrics

LARGE_BYTES = 1 << 20
"""Parsing a body of this size blocks the event loop for milliseconds. Such bodies take turns;
everything else that is ready runs between two of them."""

UNCOUNTED_BYTES = 64 << 10
"""Bodies up to this size are not counted: the server buffers as much for every connection anyway.
So small requests are accepted while large ones are refused."""


class ByteBudget:
    """The bytes of all request bodies that are being read; owned by the event loop."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        """Allow `limit` bytes at once."""
        self.held = 0
        self._limit = limit
        self._metrics = metrics

    def __repr__(self) -> str:
        """Show the bytes in use and the limit."""
        return f"<ByteBudget {self.held} of {self._limit} bytes>"

    def take(self, size: int) -> None:
        """Take bytes.

        Raises:
            Overloaded: too few are left.
        """
        if self.held + size > self._limit:
            self._metrics.shed("bodies")
            raise Overloaded("too many bytes of request bodies are being read")
        self.held += size


class BodyShare:
    """One body's part of a budget, given back at the end of its `with` block or by `release`."""

    __slots__ = ("_budget", "_held")

    def __init__(self, budget: ByteBudget) -> None:
        """Start with nothing."""
        self._budget = budget
        self._held = 0

    def reserve(self, size: int) -> None:
        """Reserve memory for a body of `size` bytes in total.

        Raises:
            Overloaded: the budget has too few left.
        """
        if size > UNCOUNTED_BYTES and size > self._held:
            self._budget.take(size - self._held)
            self._held = size

    def release(self) -> None:
        """Give everything back."""
        self._budget.held -= self._held
        self._held = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give everything back."""
        self.release()


class BodyReader:
    """Reads request bodies from ASGI messages, within the limits of one body and of all."""

    def __init__(self, *, max_bytes: int, timeout_s: float, budget: ByteBudget) -> None:
        """Read bodies of up to `max_bytes`, decompressed too, that arrive within `timeout_s`."""
        self.timeout_s = timeout_s
        self.budget = budget
        self._max_bytes = max_bytes
        self._turn = asyncio.Lock()

    async def read(
        self, receive: Receive, *, length: int, coding: bytes | None, deadline: float
    ) -> bytes:
        """Return a whole body, its content coding undone.

        Args:
            receive: of the request.
            length: of the body as its header states it, or 0 (bytes); see `check_body_headers`.
            coding: the content coding.
            deadline: loop time (s) after which the response is worthless.

        Raises:
            PayloadTooLarge: the body is too large.
            Overloaded: the bodies that are being read leave no room for it.
            MalformedBody: its content coding is broken.
            RequestTimeout: it took too long.
            DeadlineExceeded: the deadline came first.
            ClientDisconnected: the connection closed.
        """
        due = asyncio.get_running_loop().time() + self.timeout_s
        with BodyShare(self.budget) as share:
            share.reserve(length)
            try:
                async with asyncio.timeout_at(min(deadline, due)):
                    body = await self._receive(receive, share)
                    if coding is not None:
                        limit = self._max_bytes
                        body = await decompress(body, coding, share.reserve, max_bytes=limit)
                    if len(body) >= LARGE_BYTES:
                        async with self._turn:
                            await asyncio.sleep(0)
                    return body
            except TimeoutError:
                raise late_body(self.timeout_s, is_deadline=deadline <= due) from None

    async def _receive(self, receive: Receive, share: BodyShare) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("body")
            part = message.get("body", b"")
            size += len(part)
            check_size(size, self._max_bytes)
            share.reserve(size)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def late_body(timeout_s: float, *, is_deadline: bool) -> DeadlineExceeded | RequestTimeout:
    """Return the error of a body that did not arrive in time."""
    if is_deadline:
        return DeadlineExceeded("the body did not arrive before the deadline")
    return RequestTimeout(f"the body took longer than {timeout_s:g} s")


class RowSizes:
    """The largest size of a row in recent request bodies (bytes), by version.

    From it follows, before a body is read, how many rows the body has at least.
    """

    def __init__(self) -> None:
        """Start with no sizes: a body has at least one row."""
        self._bytes: dict[str, float] = {}

    def learn(self, model: Model, body_bytes: int, rows: int) -> None:
        """Learn from a request."""
        row_bytes = body_bytes / rows
        known = self._bytes.get(model.label, 0.0) * 0.999  # large rows are forgotten slowly
        self._bytes[model.label] = row_bytes if row_bytes > known else known

    def forget(self, model: Model) -> None:
        """Forget a version that is no longer loaded."""
        self._bytes.pop(model.label, None)

    def min_rows(self, model: Model, body_bytes: int) -> int:
        """Return how many rows a body has at least."""
        row_bytes = self._bytes.get(model.label)
        return max(1, int(body_bytes / row_bytes)) if row_bytes else 1
