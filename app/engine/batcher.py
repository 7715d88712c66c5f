"""The micro-batcher: rows of many requests run in few batches on few lanes.

It counts rows, not requests. An idle lane never waits (unless `max_wait_s` says so); while lanes
are busy, the queue fills the next batch. A request larger than a batch is split into chunks; after
each chunk the next request has its turn. Nothing polls: new requests and finished batches are the
only events, and all requests that arrive in one turn of the event loop are dispatched together.
Everything here runs on the event loop.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import torch

from app.artifacts.loader import Model
from app.engine.admission import Forecast, RunningBatch, check_deadline, check_space
from app.engine.batch import Batch, Chunk, bisect
from app.engine.cost import MAX_MARGIN
from app.engine.deadlines import Deadlines
from app.engine.inline import longest_inline_s
from app.engine.lanes import BatchResult, OnResult, multiplier_of
from app.engine.queue import ModelQueue, Queues
from app.engine.request import Priority, QueuedRequest
from app.errors import ClientDisconnected, DeadlineExceeded, GatehouseError, InferenceFailed
from app.ranking.batch import RankedRequest, rank_alone
from app.ranking.formulas import Scores
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_REFUSING_S = 0.1
"""For this long after a refusal, requests are checked before their bodies are read."""


class BatchLane(Protocol):
    """What the batcher needs of a lane."""

    name: str

    @property
    def runs_inline(self) -> bool:
        """Whether `run_inline` may be called while the lane is idle."""

    def submit(self, batch: Batch, on_result: OnResult) -> None:
        """Run a batch, then call `on_result` on the event loop."""

    def run_inline(self, batch: Batch) -> BatchResult:
        """Run a batch on the event loop, in the calling thread."""


class Batcher:
    """Brings the rows of requests to lanes and their scores back.

    All mutable state is `_queues` (rows that wait), `_idle` (idle lanes), `_running` (busy lanes
    and their batches) and `_deadlines`. Four events move it:

    - a request is submitted: its rows join its model's queue;
    - the event loop turns: every idle lane takes a batch from the front of a queue; a short batch
      runs on the event loop, because handing it over would take longer (`engine/inline.py`);
    - a lane finishes: it is idle again, and its requests have their results or errors;
    - a deadline passes: the request fails, wherever it is.
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
        """Use these idle lanes.

        Args:
            lanes: one or more, all on one event loop.
            max_batch_rows: the most rows in a batch.
            min_chunk_rows: requests are not split into smaller chunks: in small batches a row
                costs more.
            max_wait_s: how long the oldest row may wait for more rows while a lane is idle (s),
                counted from its arrival.
            max_queue_rows: the most rows of one model that wait with the same or a higher priority.
            metrics: where batches are counted.
            clock: the clock of deadlines (s). The loop's own `time` has the same zero, but under
                uvloop only milliseconds.
        """
        self.min_chunk_rows: Final = min_chunk_rows
        self.max_wait_s: Final = max_wait_s
        self.max_queue_rows: Final = max_queue_rows
        self._metrics = metrics
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._queues = Queues(
            max_batch_rows=max_batch_rows,
            min_chunk_rows=min_chunk_rows,
            max_wait_s=max_wait_s,
        )
        self._forecast = Forecast(len(lanes), min_chunk_rows)
        self._idle = list(lanes)
        self._running: dict[str, RunningBatch] = {}
        self._deadlines = Deadlines(self._loop, clock, self._expire)
        self._refused_at = -math.inf  # clock time (s) of the last refusal
        self._dispatch_is_scheduled = False
        self._wait_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        idle = [lane.name for lane in self._idle]
        return f"<Batcher waiting {self._queues}, running {self._running}, idle {idle}>"

    @property
    def queues(self) -> Queues:
        """The queues of all models; for reading only."""
        return self._queues

    @property
    def running(self) -> Mapping[str, RunningBatch]:
        """The batch of each busy lane, by the lane's name; for reading only."""
        return self._running

    @property
    def is_refusing(self) -> bool:
        """Whether a request was refused a moment ago."""
        return self._clock() - self._refused_at < _REFUSING_S

    def learn(self, model: Model, observed: Sequence[tuple[int, float]]) -> None:
        """Start with the costs of a model's warm-up batches, `(rows, seconds)` each."""
        queue = self._queues.of(model)
        queue.cost.fit(observed)
        queue.cpu_cost.fit(observed)

    def submit(self, request: QueuedRequest) -> None:
        """Queue a request of one row or more; its `on_done` is called when it has ended.

        Raises:
            Overloaded, DeadlineUnmeetable: see `admit`.
        """
        now = self._clock()
        if self._is_surely_in_time(request, now):
            self._queues.timeouts.add(request.deadline - now, now)
        else:
            self.admit(request.model, request.features.rows, request.priority, request.deadline)
        request.arrival = now
        request.rows_left = request.features.rows
        self._queues.append(request, now)
        self._deadlines.add(request)
        self._dispatch_soon()

    def _is_surely_in_time(self, request: QueuedRequest, now: float) -> bool:
        """Whether `admit` would surely accept the request, by a cheaper estimate.

        The estimate is the time of all work, one batch after the other on a single lane, plus the
        largest margin for error. Most requests pass.
        """
        queue = self._queues.of(request.model)
        rows = request.features.rows
        if rows > queue.max_batch_rows or queue.rows + rows > self.max_queue_rows:
            return False
        work_s = queue.cost.of(max(rows, queue.cost.typical_rows))
        for running in self._running.values():
            work_s += running.cost_s
        for waiting in self._queues.waiting:
            work_s += waiting.cost.of(waiting.rows, 1 + waiting.rows // waiting.max_batch_rows)
        return now + (1 + MAX_MARGIN) * work_s < request.deadline

    def admit(self, model: Model, rows: int, priority: Priority, deadline: float) -> None:
        """Refuse a request of so many rows that does not fit or cannot meet its deadline.

        An idle lane with an empty queue takes every request: otherwise an overestimated cost would
        never be corrected.

        Raises:
            Overloaded: too many rows are queued already.
            DeadlineUnmeetable: the response would come after the deadline.
        """
        now = self._clock()
        queue = self._queues.of(model)
        if deadline - now > queue.cost.of(rows):  # else it would be late even on an idle server
            self._queues.timeouts.add(deadline - now, now)
        if self._idle and not self._queues:
            return
        if queue.rows_as_urgent(priority) + rows > self.max_queue_rows:
            self._queues.drop_finished(now)
        waiting = queue.rows_as_urgent(priority)
        wait_s = self.wait_s(model, rows, priority, now)
        try:
            check_space(rows, waiting, self.max_queue_rows, drain_s=wait_s)
            check_deadline(deadline, now, wait_s + queue.cost.margin_s(wait_s))
        except GatehouseError as error:
            self._refused_at = now
            self._metrics.shed(error.slug)
            raise

    def wait_s(self, model: Model, rows: int, priority: Priority, now: float) -> float:
        """Return how long a request that arrives now would take until it has its scores (s)."""
        return self._forecast.wait_s(
            self._queues.of(model),
            rows,
            priority,
            queues=self._queues.waiting,
            running=self._running.values(),
            now=now,
        )

    def _dispatch_soon(self) -> None:
        """Dispatch once in this turn of the loop: what arrives together is batched together."""
        if not self._dispatch_is_scheduled:
            self._dispatch_is_scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Give every idle lane a batch while rows are ready to run."""
        self._dispatch_is_scheduled = False
        if self._wait_timer is not None:
            self._wait_timer.cancel()
            self._wait_timer = None
        now = self._clock()
        while self._idle and self._queues:
            model, wait_s = self._queues.next(now)
            if wait_s > 0:
                self._wait_timer = self._loop.call_later(wait_s, self._dispatch_soon)
                return
            batch = self._queues.take(model, len(self._idle), now)
            if batch is not None:
                self._start(batch, now)

    def _start(self, batch: Batch, now: float) -> None:
        lane = self._idle.pop()
        self._running[lane.name] = RunningBatch(
            batch, now, self._queues.of(batch.model).cost.of(batch.rows)
        )
        if lane.runs_inline and self._is_short(batch):
            self._finish(lane, batch, lane.run_inline(batch))
        else:
            lane.submit(batch, lambda result: self._finish(lane, batch, result))

    def _is_short(self, batch: Batch) -> bool:
        """Whether a batch may run on the event loop: nothing else waits, and it surely ends soon.

        The cost of some models depends on values: one request could stop the server.
        """
        cpu_s = self._queues.of(batch.model).cpu_cost.of(batch.rows)
        return (
            0 < cpu_s <= longest_inline_s(len(batch.chunks))
            and batch.model.program.has_steady_cost
            and not self._queues
        )

    def _finish(self, lane: BatchLane, batch: Batch, result: BatchResult) -> None:
        self._idle.append(lane)
        started = self._running.pop(lane.name).started
        if not isinstance(result.scores, Exception):
            self._dispatch()  # first, so that the lane computes while the responses are written
        now = self._clock()
        busy_s = result.timing.busy_s
        self._metrics.batch(
            str(batch.model),
            rows=batch.rows,
            requests=len(batch.chunks),
            lane=lane.name,
            busy_s=busy_s,
        )
        queue = self._queues.of(batch.model)
        if isinstance(result.scores, Exception):
            self._retry_or_fail(batch, result.scores, queue)
            return
        if queue.observe(batch.rows, result.timing):
            self._metrics.batch_limit(str(batch.model), queue.memory_limit_rows)
        row = 0
        for chunk, whole in zip(batch.chunks, result.ranked, strict=True):
            request = chunk.request
            stop = row + chunk.stop - chunk.start
            if not request.is_done:
                request.queue_s = started - request.arrival
                ranked = whole
                if ranked is None:
                    ranked = self._gather(chunk, result.scores[row:stop], finite=result.is_finite)
                if ranked is not None:
                    self._complete(request, ranked, result, now)
            row = stop

    def _gather(self, chunk: Chunk, scores: Scores, *, finite: bool) -> RankedRequest | None:
        """Collect a chunk's scores, `[rows, K]`; rank the request if they were the last ones."""
        request = chunk.request
        if not (finite or bool(np.isfinite(scores).all())):
            self._metrics.failed("non-finite")
            request.fail(InferenceFailed("the model returned a score that is not finite"))
            return None
        if request.scores is None:
            request.scores = np.empty((request.features.rows, scores.shape[1]), np.float32)
        request.scores[chunk.start : chunk.stop] = scores
        request.rows_left -= len(scores)
        if request.rows_left:
            return None
        multiplier = multiplier_of(request.ranking, chunk.features)
        return rank_alone(request.scores, request.ranking, multiplier)

    def _complete(
        self, request: QueuedRequest, ranked: RankedRequest, result: BatchResult, now: float
    ) -> None:
        if now > request.deadline:
            self._expire(request)
        elif request.is_disconnected():
            request.fail(ClientDisconnected("compute"))
        else:
            request.succeed(ranked, result.timing)

    def _expire(self, request: QueuedRequest) -> None:
        if not request.is_done:
            self._metrics.shed(DeadlineExceeded.slug)
            request.fail(DeadlineExceeded("the scores were not ready before the deadline"))

    def _retry_or_fail(self, batch: Batch, error: Exception, queue: ModelQueue) -> None:
        """Run again what may still succeed, and fail the requests that will not.

        After out-of-memory the batch limit is halved; `ModelQueue.observe` raises it again. After
        any other error each half of the batch runs by itself, until the bad request is found.
        """
        if is_out_of_memory(error) and batch.rows > 1:
            queue.halve_batches(batch)
            limit = queue.memory_limit_rows
            self._metrics.failed("out-of-memory")
            self._metrics.batch_limit(str(batch.model), limit)
            logger.error(
                "model %s: out of memory with %d rows; batch limit is now %d rows",
                batch.model,
                batch.rows,
                limit,
            )
        else:
            self._metrics.failed("model")
            halves = bisect(batch)
            queue.retry(halves)
            if not halves:
                for chunk in batch.chunks:
                    chunk.request.fail(InferenceFailed("the model failed on this request"))
            if batch.retries is None or not halves:  # once for the batch, once for the bad request
                requests = len(batch.chunks)
                logger.error(
                    "model %s: a batch of %d requests failed",
                    batch.model,
                    requests,
                    exc_info=error,
                )
        self._queues.resume(batch.model)
        self._dispatch_soon()


def is_out_of_memory(error: Exception) -> bool:
    """Whether a batch with fewer rows might have succeeded."""
    # On a CPU the allocator raises a plain RuntimeError that only its text identifies.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
