"""The micro-batcher: rows of many requests become few batches on few lanes.

It counts rows, not requests. An idle lane never waits (unless `max_wait_s` says so), and while
lanes are busy the queue fills the next batch by itself. A request larger than a batch is split into
chunks and gathered again; after each chunk the next request has its turn, so that small requests
are not stuck behind a large one. Nothing polls: work arriving and lanes coming free are the events.
Everything here runs on the event loop.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from app.artifacts.loader import Model
from app.engine.admission import Forecast, RunningBatch, refuse_late, refuse_many
from app.engine.backlog import Backlog
from app.engine.batch import Batch, QueuedRequest, Scored
from app.engine.failure import after_failure
from app.engine.lanes import BatchResult, OnOutcome, Part
from app.engine.request import Priority, RequestFeatures, RequestOptions
from app.errors import ClientDisconnected, DeadlineExceeded, GatehouseError, InferenceFailed
from app.telemetry.metrics import Metrics

_MOMENT_S = 0.1


class BatchLane(Protocol):
    """What the batcher needs of a lane."""

    name: str

    def submit(self, model: Model, parts: Sequence[Part], on_outcome: OnOutcome) -> None:
        """Run a batch, then call `on_outcome` on the event loop."""


class Batcher:
    """Brings the rows of requests to lanes and their scores back.

    All mutable state is `_backlog` (rows that wait), `_idle` (lanes that wait) and `_flights`
    (lanes that work, and at what). Three events move it:

    - a request arrives: its rows join the back of its model's queue;
    - the event loop comes round: every idle lane takes a batch from the front of a queue;
    - a lane is done: it is idle again, and its chunks' requests have their scores, or their error.
    """

    def __init__(
        self,
        lanes: Sequence[BatchLane],
        *,
        max_batch_rows: int,
        min_chunk_rows: int,
        max_wait_s: float,
        max_queue_rows: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take charge of idle lanes.

        Args:
            lanes: the lanes, one or more, all on one event loop.
            max_batch_rows: the most rows a batch holds.
            min_chunk_rows: no request is split into smaller chunks: below the knee of the cost
                curve a row costs more.
            max_wait_s: how long the oldest row may wait for company while a lane is idle, counted
                from its arrival.
            max_queue_rows: of a model, no more rows than this wait that are as urgent or more.
            metrics: where batches are counted.
            clock: what deadlines are told by (s). It is not the loop's own `time`, which has the
                same zero but, under uvloop, no more than milliseconds.
        """
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._backlog = Backlog(
            max_batch_rows=max_batch_rows,
            min_chunk_rows=min_chunk_rows,
            max_wait_s=max_wait_s,
        )
        self._forecast = Forecast(len(lanes), min_chunk_rows)
        self._idle = list(lanes)
        self._flights: dict[str, RunningBatch] = {}
        self._refused = -math.inf  # when somebody was, last (s)
        self._dispatch_is_due = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        idle = [lane.name for lane in self._idle]
        return f"<Batcher waiting {self._backlog}, in flight {self._flights}, idle {idle}>"

    @property
    def backlog(self) -> Backlog:
        """What waits; to be looked at."""
        return self._backlog

    @property
    def flights(self) -> Mapping[str, RunningBatch]:
        """What each busy lane is at, by its name; to be looked at."""
        return self._flights

    @property
    def is_refusing(self) -> bool:
        """Whether somebody was refused a moment ago."""
        return self._clock() - self._refused < _MOMENT_S

    def learn(self, model: Model, observed: Sequence[tuple[int, float]]) -> None:
        """Take what batches of a model, `(rows, seconds)` each, cost before it served."""
        self._backlog.queue(model).cost.fit(observed)

    def admit(self, model: Model, rows: int, terms: RequestOptions) -> None:
        """Refuse a request that does not fit, or that cannot be in time; an idle lane takes all.

        Raises:
            Overloaded: the queue holds too many rows already.
            DeadlineUnmeetable: the answer would come after the deadline.
        """
        if self._idle and not self._backlog:
            return  # what is idle never refuses, else a cost once overrated would stay so
        now = self._clock()
        queue = self._backlog.queue(model)
        if queue.rows_as_urgent(terms.priority) + rows > self._max_queue_rows:
            self._backlog.drop_over(now)  # rows that are over refuse nobody
        waiting = queue.rows_as_urgent(terms.priority)
        wait_s = self.wait_s(model, rows, terms.priority, now)
        try:
            refuse_many(rows, waiting, self._max_queue_rows, drain_s=wait_s)
            refuse_late(terms, now, wait_s + queue.cost.doubt_s(wait_s))
        except GatehouseError as error:
            self._refused = now
            self._metrics.shed(error.slug)
            raise

    def wait_s(self, model: Model, rows: int, priority: Priority, now: float) -> float:
        """Return the forecast for a request that comes now: how long until its scores (s)."""
        return self._forecast.wait_s(
            self._backlog.queue(model),
            rows,
            priority,
            queues=self._backlog.waiting,
            flights=self._flights.values(),
            now=now,
        )

    async def score(self, model: Model, request: RequestFeatures, terms: RequestOptions) -> Scored:
        """Return the request's scores.

        Args:
            model: who scores.
            request: one row or more.
            terms: until when and how urgently the caller waits.

        Raises:
            Overloaded, DeadlineUnmeetable: see `admit`.
            DeadlineExceeded: the deadline passed first.
            InferenceFailed: the model failed on this request.
            ClientDisconnected: when its batch was formed, or its answer was there, the caller was gone.
        """
        self.admit(model, request.rows, terms)
        now = self._clock()
        pending = QueuedRequest(request, terms, now, self._loop.create_future(), request.rows)
        self._backlog.append(model, pending, now)
        self._dispatch_soon()
        expiry = self._loop.call_at(terms.deadline, self._expire, pending)
        try:
            return await pending.future
        finally:
            expiry.cancel()
            del pending  # its future has the error, whose traceback has this frame: a cycle

    def _dispatch_soon(self) -> None:
        """Dispatch once when the loop comes round: what arrives together is batched together."""
        if not self._dispatch_is_due:
            self._dispatch_is_due = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Give every idle lane a batch, as long as there are rows that need not wait."""
        self._dispatch_is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        while self._idle and self._backlog:
            model, wait_s = self._backlog.next(now)
            if wait_s > 0:
                self._timer = self._loop.call_later(wait_s, self._dispatch_soon)
                return
            group = self._backlog.take(model, len(self._idle), now)
            if group is not None:
                self._start(model, group, now)

    def _start(self, model: Model, group: Batch, now: float) -> None:
        lane = self._idle.pop()
        rows = group.rows
        flight = RunningBatch(model, group, rows, now, self._backlog.queue(model).cost.of(rows))
        self._flights[lane.name] = flight
        lane.submit(model, [p.part() for p in group.chunks], partial(self._finish, lane, flight))

    def _finish(self, lane: BatchLane, flight: RunningBatch, outcome: BatchResult) -> None:
        self._idle.append(lane)
        del self._flights[lane.name]
        self._dispatch_soon()
        requests, busy_s = len(flight.group.chunks), outcome.duration_s
        self._metrics.batch(rows=flight.rows, requests=requests, lane=lane.name, busy_s=busy_s)
        queue = self._backlog.queue(flight.model)
        if isinstance(outcome.scores, Exception):
            after_failure(outcome.scores, flight.group, flight.model, queue, self._metrics)
            self._backlog.resume(flight.model)
            return
        if queue.learn(flight.rows, outcome.duration_s):
            self._metrics.batch_limit(str(flight.model), queue.max_batch_rows)
        flight.model.usage.batches += 1
        row = 0
        for chunk in flight.group.chunks:
            scores = outcome.scores[row : row + chunk.rows]  # [rows, K]
            row += chunk.rows
            if outcome.finite or bool(np.isfinite(scores).all()):
                chunk.pending.gather(chunk.start, chunk.stop, scores)
                if chunk.pending.rows_left == 0:
                    self._answer(chunk.pending, flight, outcome)
            else:
                self._metrics.failed("non-finite")
                chunk.pending.fail(InferenceFailed("the model gave a score that is not finite"))

    def _answer(self, pending: QueuedRequest, flight: RunningBatch, outcome: BatchResult) -> None:
        if pending.future.done():
            return
        if self._clock() > pending.terms.deadline:
            self._expire(pending)
        elif pending.terms.is_disconnected():
            pending.fail(ClientDisconnected("compute"))
        else:
            assert pending.scores is not None
            waited_s = flight.began - pending.arrival
            pending.future.set_result(Scored(pending.scores, waited_s, outcome))

    def _expire(self, pending: QueuedRequest) -> None:
        if not pending.future.done():
            self._metrics.shed("deadline-exceeded")
            pending.fail(DeadlineExceeded("the scores were not ready before the deadline"))
