"""The micro-batcher: rows of many requests become few batches on few lanes.

It counts rows, not requests. An idle lane never waits (unless `max_wait_s` says so), and while
lanes are busy the queue fills the next batch by itself. A request larger than a batch is split into
pieces and gathered again; after each piece the next request has its turn, so that small requests
are not stuck behind a large one. Nothing polls: work arriving and lanes coming free are the events.

Everything here runs on the event loop.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from app.artifacts.loader import Model
from app.engine.encode import EncodedRequest
from app.engine.lanes import OnOutcome, Outcome, Part
from app.engine.queue import Pending, Piece, PieceQueue, Scored
from app.engine.terms import Terms
from app.errors import DeadlineExceeded, InferenceFailed, Overloaded
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class BatchLane(Protocol):
    """What the batcher needs of a lane."""

    name: str

    def submit(self, model: Model, parts: Sequence[Part], on_outcome: OnOutcome) -> None:
        """Run a batch, then call `on_outcome` on the event loop."""


class Batcher:
    """Brings the rows of requests to lanes and their scores back.

    All mutable state is `_queues` (pieces that wait, by model) and `_idle` (lanes that wait). Three
    events move it:

    - a request arrives: its rows join the back of its model's queue;
    - the event loop comes round: every idle lane takes a batch from the front of a queue;
    - a lane is done: it is idle again, and its pieces' requests have their scores, or their error.
    """

    def __init__(
        self,
        lanes: Sequence[BatchLane],
        *,
        max_batch_rows: int,
        min_piece_rows: int,
        max_wait_s: float,
        max_queue_rows: int,
        metrics: Metrics,
    ) -> None:
        """Take charge of idle lanes.

        Args:
            lanes: the lanes, one or more, all on one event loop.
            max_batch_rows: the most rows a batch holds.
            min_piece_rows: no request is split into smaller pieces: below the knee of the cost
                curve a row costs more.
            max_wait_s: how long the oldest row may wait for company while a lane is idle, counted
                from its arrival.
            max_queue_rows: more waiting rows than this are refused.
            metrics: where batches are counted.
        """
        self._max_batch_rows = max_batch_rows
        self._min_piece_rows = min_piece_rows
        self._max_wait_s = max_wait_s
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._queues: dict[Model, PieceQueue] = {}
        self._idle = list(lanes)
        self._dispatch_is_due = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        queues = {str(model): queue for model, queue in self._queues.items()}
        return f"<Batcher {self.queued_rows} rows wait {queues}, idle lanes {self._idle}>"

    @property
    def queued_rows(self) -> int:
        """How many rows wait."""
        return sum(queue.rows for queue in self._queues.values())

    @property
    def queued_requests(self) -> int:
        """How many requests, or pieces of one, wait."""
        return sum(map(len, self._queues.values()))

    async def score(self, model: Model, request: EncodedRequest, terms: Terms) -> Scored:
        """Return the request's scores.

        Args:
            model: who scores.
            request: one row or more.
            terms: until when and how urgently the caller waits.

        Raises:
            Overloaded: the queue holds too many rows already.
            DeadlineExceeded: the deadline passed first.
            InferenceFailed: the model failed on this request.
        """
        waiting = self.queued_rows
        if waiting + request.rows > self._max_queue_rows:
            self._drop_done()  # rows that nobody waits for refuse nobody
            waiting = self.queued_rows
        if waiting and waiting + request.rows > self._max_queue_rows:
            self._metrics.shed("overloaded")
            raise Overloaded(f"{waiting} candidates are waiting")
        pending = Pending(
            request,
            arrival=self._loop.time(),
            terms=terms,
            future=self._loop.create_future(),
            result=Scored(np.empty((request.rows, len(model.manifest.tasks)), np.float32)),
            rows_left=request.rows,
        )
        self._queue(model).append(Piece(pending, 0, request.rows))
        self._dispatch_soon()
        expiry = self._loop.call_at(terms.deadline, self._expire, pending)
        try:
            return await pending.future
        finally:
            expiry.cancel()

    def _queue(self, model: Model) -> PieceQueue:
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = PieceQueue(
                max_batch_rows=self._max_batch_rows, min_piece_rows=self._min_piece_rows
            )
        return queue

    def _drop_done(self) -> None:
        for queue in self._queues.values():
            queue.drop_done()
        self._queues = {model: queue for model, queue in self._queues.items() if queue.rows}

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
        while self._idle and self._queues:
            model, wait_s = self._next_model()
            if wait_s > 0:
                self._timer = self._loop.call_later(wait_s, self._dispatch_soon)
                return
            queue = self._queues.pop(model)
            # Shared out over the idle lanes, a lonely large request is as fast as they can be.
            share = math.ceil(queue.rows / len(self._idle))
            pieces = queue.take(min(self._max_batch_rows, max(self._min_piece_rows, share)))
            if queue.rows:
                self._queues[model] = queue  # behind the other models
            if pieces:
                lane = self._idle.pop()
                finish = partial(self._finish, lane, model, pieces, self._loop.time())
                lane.submit(model, [piece.part() for piece in pieces], finish)

    def _next_model(self) -> tuple[Model, float]:
        """Return the model whose turn it is, and how long (s) its rows may wait for company."""
        if self._max_wait_s == 0:
            return next(iter(self._queues)), 0.0
        now = self._loop.time()
        waits: dict[Model, float] = {}
        for model, queue in self._queues.items():
            if queue.rows >= self._max_batch_rows:
                return model, 0.0
            waits[model] = queue.oldest_arrival + self._max_wait_s - now
        return min(waits.items(), key=itemgetter(1))

    def _finish(
        self,
        lane: BatchLane,
        model: Model,
        pieces: list[Piece],
        dispatched: float,
        outcome: Outcome,
    ) -> None:
        self._idle.append(lane)
        self._dispatch_soon()
        rows = sum(piece.rows for piece in pieces)
        self._metrics.batch(
            rows=rows, requests=len(pieces), busy_s=outcome.duration_s, lane=lane.name
        )
        if isinstance(outcome.scores, Exception):
            self._fail(model, pieces, outcome.scores)
            return
        all_finite = bool(np.isfinite(outcome.scores).all())
        row = 0
        for piece in pieces:
            scores = outcome.scores[row : row + piece.rows]  # [rows, K]
            self._deliver(piece, scores, is_finite=all_finite or bool(np.isfinite(scores).all()))
            row += piece.rows
            if piece.pending.rows_left == 0:
                self._answer(piece.pending, dispatched, outcome)

    def _deliver(self, piece: Piece, scores: npt.NDArray[np.float32], *, is_finite: bool) -> None:
        pending = piece.pending
        if is_finite:
            pending.result.scores[piece.start : piece.stop] = scores
            pending.rows_left -= piece.rows
        else:
            self._metrics.failed("non-finite")
            pending.fail(InferenceFailed("the model gave a score that is not finite"))

    def _answer(self, pending: Pending, dispatched: float, outcome: Outcome) -> None:
        if self._loop.time() > pending.terms.deadline:
            self._expire(pending)
        elif not pending.future.done():
            pending.result.queue_s = dispatched - pending.arrival
            pending.result.collate_s = outcome.collate_s
            pending.result.compute_s = outcome.compute_s
            pending.result.copy_in_s = outcome.copy_in_s
            pending.result.copy_out_s = outcome.copy_out_s
            pending.future.set_result(pending.result)

    def _fail(self, model: Model, pieces: list[Piece], error: Exception) -> None:
        """Fail the one request of a failed batch, or run each of its requests alone."""
        self._metrics.failed("model")
        logger.error("a batch of %s failed: %d requests", model, len(pieces), exc_info=error)
        if len(pieces) == 1:
            pieces[0].pending.fail(InferenceFailed("the model failed on this request"))
            return
        self._queue(model).put_back_alone(pieces)

    def _expire(self, pending: Pending) -> None:
        if not pending.future.done():
            self._metrics.shed("deadline-exceeded")
            pending.fail(DeadlineExceeded("the scores were not ready before the deadline"))
