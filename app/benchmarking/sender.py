"""One process of the load generator: assign due requests to idle connections.

`app.benchmarking.load.fire` starts it, and gives it a plan on standard input. It writes lines of
progress, then its results, to standard output.
"""

import asyncio
import ctypes
import gc
import json
import os
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import BinaryIO, cast

import numpy as np
import uvloop

from app.benchmarking.load import (
    UNANSWERED,
    CannotConnect,
    Plan,
    Progress,
    Refusal,
    Row,
    reason_of,
)

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_FIRST_CONNECTIONS = 16  # of an open loop; more are opened when all of them are busy
_PROGRESS_S = 0.5

_libc = ctypes.CDLL(None, use_errno=True)
_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
_ABSOLUTE = 1


class _Times(ctypes.Structure):
    """struct itimerspec: the interval (0: no repetition) and the time of expiry."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


class Alarm:
    """Call `ring` on the running loop at the times given to `set` (Linux).

    Timers of asyncio and uvloop have a resolution of 1 ms, which is the time between two arrivals
    at a rate of 1000 per second. A timerfd has nanoseconds, and the loop can watch it like any
    other file. See timerfd_create(2).
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        clock_monotonic = 1  # the clock of time.perf_counter and time.monotonic
        self._fd = _libc.timerfd_create(clock_monotonic, _NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._rung)

    def set(self, at: float) -> None:
        """Ring at a time of the monotonic clock (s). A time in the past rings at once."""
        at_ns = max(1, int(at * 1e9))
        times = _Times(0, 0, *divmod(at_ns, 1_000_000_000))
        _libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(times), None)

    def close(self) -> None:
        """Stop the timer and release its file descriptor."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _rung(self) -> None:
        os.read(self._fd, 8)
        self._ring()


class Connection(asyncio.Protocol):
    """A connection that sends one request at a time and reads status and Retry-After."""

    def __init__(self, sender: "Sender") -> None:
        self._sender = sender
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._body = 0  # where the body of the response begins, once its head has arrived
        self._whole: int | None = 0  # size of the response in bytes; None: in chunks
        self._told_when = False
        self._kind, self._due, self._lag_s, self._late_s = 0, 0.0, 0.0, 0.0
        self.is_busy = False
        self.is_closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, kind: int, due: float, lag_s: float) -> None:
        """Send a request that was due at the time `due` and noticed `lag_s` later."""
        self.is_busy = True
        self._kind, self._due, self._lag_s, self._body = kind, due, lag_s, 0
        self._late_s = time.perf_counter() - due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Read a response; hand the connection back when it is complete."""
        self._received += data
        if not self._body and not self._read_head():
            return
        if self._whole is None:
            if not _is_last_chunk(self._received, self._body):
                return
        elif len(self._received) < self._whole:
            return
        status = int(self._received[9:12])
        now = time.perf_counter()
        row = self.row(status, now)
        if status != 200:
            self._sender.refused(row, self._received[self._body :])
        self._received.clear()
        self.is_busy = False
        self._sender.answered(row, now)
        if self.is_closing:
            self._transport.close()
        else:
            self._sender.come_free(self, now)

    def _read_head(self) -> bool:
        """Read the head of a response; return whether it is complete."""
        end = self._received.find(_HEAD_END)
        if end < 0:
            return False
        head = bytes(self._received[:end]).lower()
        self._body = end + len(_HEAD_END)
        length = head.find(_LENGTH)
        self._whole = None
        if length >= 0:
            length += len(_LENGTH)
            stop = head.find(b"\r", length)
            self._whole = self._body + int(head[length : stop if stop >= 0 else end])
        self._told_when = b"\r\nretry-after:" in head
        self.is_closing = b"\r\nconnection: close" in head
        return True

    def row(self, status: int, now: float) -> Row:
        """Return the result of the current request."""
        due_s = self._sender.since_start(self._due)
        latency_s = now - self._due
        return self._kind, status, latency_s, self._told_when, self._late_s, due_s, self._lag_s

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell the sender."""
        self._sender.lose(self)

    def close(self) -> None:
        """Close the connection at once."""
        self._transport.abort()


def _is_last_chunk(received: bytearray, start: int) -> bool:
    """Return whether a chunked body (RFC 9112, section 7.1) that begins at `start` is complete."""
    while (end := received.find(b"\r\n", start)) >= 0:
        size = int(received[start:end].partition(b";")[0], 16)
        if size == 0:
            return received.endswith(b"\r\n\r\n")
        start = end + 2 + size + 2
    return False


class Sender:
    """Send due requests over idle connections and record the results.

    Attributes:
        refusal: the first response with another status than 200, after the warm-up.
    """

    def __init__(self, plan: Plan, on_progress: Callable[[Progress], None] | None = None) -> None:
        self._plan = plan
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._rng = np.random.default_rng(plan.seed)
        self._tls = ssl.create_default_context() if plan.tls else None
        self._ended = asyncio.Event()
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[int, float, float]] = deque()  # kind, due, lag
        self._rows: list[Row] = []
        self._failed = 0
        self._shown = 0  # rows that a progress has shown
        self._sent = 0
        self._refused = 0  # requests that got no connection
        self._start = 0.0
        self._end = 0.0
        self._due: deque[float] = deque()  # times of future arrivals
        self._kinds: list[int] = []
        self.refusal: Refusal | None = None
        self._alarm = Alarm(self._arrive)

    async def connect(self) -> None:
        """Open connections before the load starts.

        Raises:
            CannotConnect: the server does not accept one.
        """
        plan = self._plan
        count = plan.connections
        if plan.rate is not None:
            count = min(count, _FIRST_CONNECTIONS)
        try:
            await asyncio.gather(*(self._connect() for _ in range(count)))
        except OSError as error:
            raise CannotConnect(str(error)) from None

    async def run(self) -> None:
        """Send all requests, and wait for responses for at most the plan's `patience_s`."""
        plan = self._plan
        seconds = plan.warm_up_s + plan.seconds
        began = time.perf_counter()
        self._start = began + plan.warm_up_s
        self._end = began + seconds
        if self._on_progress is not None:
            self._loop.call_later(_PROGRESS_S, self._report_progress)
        if plan.rate is None:
            idle, self._idle = self._idle, []
            for connection in idle:
                self.come_free(connection, time.perf_counter())
        else:
            # A Poisson process, given how many arrivals it has: the rate is what was asked for.
            for start, length in ((began, plan.warm_up_s), (self._start, plan.seconds)):
                uniform = self._rng.random(round(plan.rate * length))
                self._due.extend(np.sort(uniform) * length + start)
            self._arrive()
        with suppress(TimeoutError):  # the report counts unanswered requests
            await asyncio.wait_for(self._ended.wait(), seconds + plan.patience_s)
        self._alarm.close()

    def since_start(self, due: float) -> float:
        """Return a time as seconds since the end of the warm-up."""
        return due - self._start

    def come_free(self, connection: Connection, now: float) -> None:
        """Send the next request on an idle connection, or keep the connection for later."""
        if self._plan.rate is None and now < self._end:
            self._send(connection, self._draw(), now, 0.0)
        elif self._waiting:
            self._send(connection, *self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, row: Row, now: float) -> None:
        """Record the result of a request."""
        self._rows.append(row)
        self._failed += row[1] != 200
        if now >= self._end:
            self._end_when_all_are_answered()

    def refused(self, row: Row, body: bytes | bytearray) -> None:
        """Keep the reason of the first response with another status than 200."""
        if self.refusal is None and row[5] >= 0:
            self.refusal = Refusal(int(row[1]), reason_of(bytes(body)))

    def lose(self, connection: Connection) -> None:
        """Remove a connection that the server closed; open another one if requests wait."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        elif connection.is_busy and not self._ended.is_set():
            now = time.perf_counter()
            self.answered(connection.row(UNANSWERED, now), now)
        if self._waiting or self._plan.rate is None:
            self._open_another()

    def rows(self) -> list[Row]:
        """Close all connections and return the results, without those of the warm-up."""
        now = time.perf_counter()
        self._ended.set()
        for connection in self._open:
            if connection.is_busy:
                self._rows.append(connection.row(UNANSWERED, now))
            connection.close()
        for kind, due, lag_s in self._waiting:
            self._rows.append(self._unsent(kind, due, lag_s, now))
        return [row for row in self._rows if row[5] >= 0]

    def _arrive(self) -> None:
        """Send or queue all requests that are due."""
        now = time.perf_counter()
        while self._due and self._due[0] <= now:
            due = self._due.popleft()
            kind, lag_s = self._draw(), time.perf_counter() - due
            if self._idle:
                self._send(self._idle.pop(), kind, due, lag_s)
                continue
            self._waiting.append((kind, due, lag_s))
            self._open_another()
        # Ring once more after the last arrival, because all may be answered by then.
        self._alarm.set(self._due[0] if self._due else self._end)
        if now >= self._end:
            self._end_when_all_are_answered()

    def _end_when_all_are_answered(self) -> None:
        if not self._due and not self._waiting and len(self._rows) == self._sent + self._refused:
            self._ended.set()

    def _draw(self) -> int:
        if not self._kinds:
            weights = np.array(self._plan.weights or [1.0] * len(self._plan.requests))
            drawn = self._rng.choice(len(weights), 4096, p=weights / weights.sum())
            self._kinds = drawn.tolist()
        return self._kinds.pop()

    def _send(self, connection: Connection, kind: int, due: float, lag_s: float) -> None:
        self._sent += 1
        connection.send(self._plan.requests[kind], kind, due, lag_s)

    def _open_another(self) -> None:
        """Open a connection unless there are enough, or the load is over."""
        if self._ended.is_set() or len(self._open) + len(self._opening) >= self._plan.connections:
            return
        task = self._loop.create_task(self._connect_or_refuse())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect_or_refuse(self) -> None:
        """Open a connection; if the server accepts none, the request that waited longest fails."""
        try:
            await self._connect()
        except OSError:
            if self._waiting:
                now = time.perf_counter()
                self._refused += 1
                self.answered(self._unsent(*self._waiting.popleft(), now), now)

    def _unsent(self, kind: int, due: float, lag_s: float, now: float) -> Row:
        return kind, UNANSWERED, now - due, False, np.nan, self.since_start(due), lag_s

    async def _connect(self) -> None:
        plan = self._plan
        _, connection = await self._loop.create_connection(
            lambda: Connection(self), plan.host, plan.port, ssl=self._tls
        )
        self._open.add(connection)
        self.come_free(connection, time.perf_counter())

    def _report_progress(self) -> None:
        assert self._on_progress is not None
        if self._ended.is_set():
            return
        recent = [row[2] for row in self._rows[self._shown :] if row[1] == 200]
        self._shown = len(self._rows)
        elapsed_s = time.perf_counter() - self._start
        sample = recent[:: max(1, len(recent) // 500)]
        sent = self._sent + self._refused
        progress = Progress(elapsed_s, sent, len(self._rows), self._failed, sample)
        self._on_progress(progress)
        self._loop.call_later(_PROGRESS_S, self._report_progress)


async def carry_out(
    plan: Plan, on_progress: Callable[[Progress], None] | None = None
) -> tuple[list[Row], Refusal | None]:
    """Run a plan on the running loop; return its results and the first refusal.

    Raises:
        CannotConnect: the server does not accept connections.
    """
    sender = Sender(plan, on_progress)
    await sender.connect()
    await sender.run()
    return sender.rows(), sender.refusal


def main() -> None:
    """Read a plan from standard input and run it."""
    plan = Plan.from_bytes(sys.stdin.buffer.read())
    gc.disable()
    # Its own buffer: with PYTHONUNBUFFERED, a write to a pipe may write a part only.
    with open(sys.stdout.fileno(), "wb", closefd=False) as output:
        run(plan, output)


def run(plan: Plan, output: BinaryIO) -> None:
    """Run a plan; write progress and results."""

    def show(progress: Progress) -> None:
        try:
            _write_line(output, {"progress": asdict(progress)})
        except BrokenPipeError:  # nobody waits for the report: stop the load
            os._exit(1)

    began, used_s = time.perf_counter(), time.process_time()
    try:
        rows, refusal = uvloop.run(carry_out(plan, show))
    except CannotConnect as error:
        _write_line(output, {"cannot_connect": str(error)})
        return
    busy = (time.process_time() - used_s) / (time.perf_counter() - began)
    reason = None if refusal is None else asdict(refusal)
    _write_line(output, {"rows": len(rows), "busy": min(1.0, busy), "refusal": reason})
    output.write(np.array(rows, np.float64).tobytes())
    output.flush()


def _write_line(output: BinaryIO, document: dict[str, object]) -> None:
    output.write(json.dumps(document).encode() + b"\n")
    output.flush()


if __name__ == "__main__":
    main()
