"""Run a plan of `tests.bench.load`: assign due requests to idle connections."""

import asyncio
import gc
import pickle
import sys
import time
from collections import deque
from contextlib import suppress
from typing import cast

import numpy as np
import uvloop

from tests.bench.alarm import Alarm
from tests.bench.load import UNANSWERED, Plan, Report, Row

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


def child() -> None:
    """Read a plan from standard input, run it, and write the report to standard output."""
    plan: Plan = pickle.loads(sys.stdin.buffer.read())
    gc.disable()
    report = uvloop.run(carry_out(plan))
    with open(
        sys.stdout.fileno(), "wb", closefd=False
    ) as output:  # buffered, so that the report is written completely
        pickle.dump(report, output)


async def carry_out(plan: Plan) -> Report:
    """Run a plan on the running loop."""
    shooter = Shooter(plan)
    await shooter.connect(plan.connections if plan.rate is None else min(16, plan.connections))
    await shooter.run()
    return shooter.report()


class Connection(asyncio.Protocol):
    """A connection that sends one request at a time and reads status and Retry-After."""

    def __init__(self, shooter: "Shooter") -> None:
        self._shooter = shooter
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._whole = 0  # size of the response in bytes, once its head has arrived
        self._told_when = False
        self._kind, self._due, self._late_s = 0, 0.0, 0.0
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, kind: int, due: float) -> None:
        """Send a request that was due at the time `due`."""
        self.is_busy = True
        self._kind, self._due, self._whole = kind, due, 0
        self._late_s = time.perf_counter() - due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._whole:
            end = self._received.find(_HEAD_END)
            if end < 0:
                return
            head = bytes(self._received[:end]).lower()
            length = head.index(_LENGTH) + len(_LENGTH)
            stop = head.find(b"\r", length)
            body = int(head[length : stop if stop >= 0 else end])
            self._whole = end + len(_HEAD_END) + body
            self._told_when = b"\r\nretry-after:" in head
        if len(self._received) < self._whole:
            return
        status = int(self._received[9:12])
        self._received.clear()
        self.is_busy = False
        now = time.perf_counter()
        self._shooter.answered(self.row(status, now), now)
        self._shooter.come_free(self, now)

    def row(self, status: int, now: float) -> Row:
        """Return the result of the current request."""
        return self._kind, status, now - self._due, self._told_when, self._late_s

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._shooter.lose(self)

    def close(self) -> None:
        self._transport.abort()


class Shooter:
    """Send due requests over idle connections and record the results."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._rng = np.random.default_rng(plan.seed)
        self._ended = asyncio.Event()
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[int, float]] = deque()
        self._rows: list[Row] = []
        self._sent = 0
        self._end = 0.0
        self._due: deque[float] = deque()  # times of future arrivals
        self._kinds: list[int] = []
        self._alarm = Alarm(self._arrive)

    async def connect(self, count: int) -> None:
        """Open connections before the load starts."""
        await asyncio.gather(*(self._connect() for _ in range(count)))

    async def run(self) -> None:
        """Send all requests, and wait for responses for at most the plan's `patience_s`."""
        plan = self._plan
        began = time.perf_counter()
        self._end = began + plan.seconds
        if plan.rate is None:
            idle, self._idle = self._idle, []
            for connection in idle:
                self.come_free(connection, time.perf_counter())
        else:
            count = self._rng.poisson(plan.rate * plan.seconds)
            self._due.extend(np.sort(self._rng.random(count)) * plan.seconds + began)
            self._arrive()
        with suppress(TimeoutError):  # the report counts unanswered requests
            await asyncio.wait_for(self._ended.wait(), plan.seconds + plan.patience_s)
        self._alarm.close()

    def come_free(self, connection: Connection, now: float) -> None:
        """Send the next request on an idle connection, or keep the connection for later."""
        if self._plan.rate is None and now < self._end:
            self._send(connection, self._draw(), now)
        elif self._waiting:
            self._send(connection, *self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, row: Row, now: float) -> None:
        """Record the result of a request."""
        self._rows.append(row)
        if now >= self._end:
            self._end_when_all_are_answered()

    def lose(self, connection: Connection) -> None:
        """Remove a connection that the server closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        elif connection.is_busy and not self._ended.is_set():
            now = time.perf_counter()
            self.answered(connection.row(UNANSWERED, now), now)

    def report(self) -> Report:
        """Close all connections and return the results."""
        now = time.perf_counter()
        self._ended.set()
        for connection in self._open:
            if connection.is_busy:
                self._rows.append(connection.row(UNANSWERED, now))
            connection.close()
        for kind, due in self._waiting:
            self._rows.append((kind, UNANSWERED, now - due, False, now - due))
        return Report.of_rows(self._plan.seconds, self._rows)

    def _arrive(self) -> None:
        """Send or queue all requests that are due."""
        now = time.perf_counter()
        while self._due and self._due[0] <= now:
            shot = self._draw(), self._due.popleft()
            if self._idle:
                self._send(self._idle.pop(), *shot)
                continue
            self._waiting.append(shot)
            if len(self._open) + len(self._opening) < self._plan.connections:
                task = self._loop.create_task(self._connect())
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
        # Ring once more after the last arrival, because all may be answered by then.
        self._alarm.set(self._due[0] if self._due else self._end)
        if now >= self._end:
            self._end_when_all_are_answered()

    def _end_when_all_are_answered(self) -> None:
        if not self._due and not self._waiting and len(self._rows) == self._sent:
            self._ended.set()

    def _draw(self) -> int:
        if not self._kinds:
            weights = np.array(self._plan.weights or [1.0] * len(self._plan.requests))
            drawn = self._rng.choice(len(weights), 4096, p=weights / weights.sum())
            self._kinds = drawn.tolist()
        return self._kinds.pop()

    def _send(self, connection: Connection, kind: int, due: float) -> None:
        self._sent += 1
        connection.send(self._plan.requests[kind], kind, due)

    async def _connect(self) -> None:
        _, connection = await self._loop.create_connection(
            lambda: Connection(self), "127.0.0.1", self._plan.port
        )
        self._open.add(connection)
        self.come_free(connection, time.perf_counter())
