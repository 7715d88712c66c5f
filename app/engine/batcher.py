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
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from app.artifacts.loader import Model
from app.engine.encode import EncodedRequest
from app.engine.lanes import Lane, Outcome, Part
from app.errors import DeadlineExceeded, GatehouseError, InferenceFailed, Overloaded
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Scored:
    """A request's scores, `[n, K]` float32, and where its time went.

    The durations (s) are those of the piece that finished last.
    """

    scores: npt.NDArray[np.float32]
    queue_s: float = 0.0
    collate_s: float = 0.0
    compute_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Pending:
    """A request until it is answered."""

    request: EncodedRequest
    arrival: float  # loop time (s)
    deadline: float  # loop time (s)
    future: asyncio.Future[Scored]
    result: Scored
    rows_left: int  # rows without scores

    def fail(self, error: GatehouseError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class _Piece:
    """Rows `start` to `stop` of a request, waiting or in a batch."""

    pending: _Pending
    start: int
    stop: int
    alone: bool = False  # its batch failed: by itself it fails or succeeds for itself

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def __repr__(self) -> str:
        return f"{self.start}:{self.stop}{' alone' if self.alone else ''}"


class Batcher:
    """Brings the rows of requests to lanes and their scores back.

    All mutable state is `_queues` (pieces that wait, by model), `_idle` (lanes that wait) and
    `queued_rows`, the sum over `_queues`. Three events move it:

    - a request arrives: its rows join the back of its model's queue;
    - the event loop comes round: every idle lane takes a batch from the front of a queue;
    - a lane is done: it is idle again, and its pieces' requests have their scores, or their error.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
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
        self.lanes = tuple(lanes)
        self.queued_rows = 0
        self._max_batch_rows = max_batch_rows
        self._min_piece_rows = min_piece_rows
        self._max_wait_s = max_wait_s
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._queues: dict[Model, deque[_Piece]] = {}
        self._idle = list(lanes)
        self._wake_up: asyncio.Handle | None = None

    def __repr__(self) -> str:
        queues = {str(model): list(queue) for model, queue in self._queues.items()}
        return f"<Batcher queued {self.queued_rows} rows {queues}, idle {self._idle}>"

    @property
    def queued_requests(self) -> int:
        """How many requests, or pieces of one, wait."""
        return sum(map(len, self._queues.values()))

    async def score(self, model: Model, request: EncodedRequest, deadline: float) -> Scored:
        """Return the request's scores.

        Args:
            model: who scores.
            request: one row or more.
            deadline: loop time (s) after which no answer is wanted.

        Raises:
            Overloaded: the queue holds too many rows already.
            DeadlineExceeded: the deadline passed first.
            InferenceFailed: the model failed on this request.
        """
        if self.queued_rows and self.queued_rows + request.rows > self._max_queue_rows:
            self._metrics.shed("overloaded")
            raise Overloaded(f"{self.queued_rows} rows are waiting")
        pending = _Pending(
            request,
            arrival=self._loop.time(),
            deadline=deadline,
            future=self._loop.create_future(),
            result=Scored(np.empty((request.rows, len(model.manifest.tasks)), np.float32)),
            rows_left=request.rows,
        )
        self._queues.setdefault(model, deque()).append(_Piece(pending, 0, request.rows))
        self.queued_rows += request.rows
        self._wake_soon()
        expiry = self._loop.call_at(deadline, self._expire, pending)
        try:
            return await pending.future
        finally:
            expiry.cancel()

    def _wake_soon(self) -> None:
        """Dispatch once when the loop comes round: what arrives together is batched together."""
        if self._wake_up is None:
            self._wake_up = self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        if self._wake_up is not None:
            self._wake_up.cancel()  # it may be a timer for a later time
            self._wake_up = None
        while self._idle and self._queues:
            model, wait_s = self._most_urgent()
            if wait_s > 0:
                self._wake_up = self._loop.call_later(wait_s, self._dispatch)
                return
            if pieces := self._form_batch(model):
                lane = self._idle.pop()
                parts = [_part(piece) for piece in pieces]
                lane.submit(model, parts, partial(self._finish, model, pieces, self._loop.time()))

    def _most_urgent(self) -> tuple[Model, float]:
        """Return the model whose turn it is, and for how long (s) its rows may wait for company."""
        now = self._loop.time()
        waits = {}
        for model, queue in self._queues.items():  # the model served last comes last
            full = sum(piece.rows for piece in queue) >= self._max_batch_rows
            waits[model] = 0.0 if full else queue[0].pending.arrival + self._max_wait_s - now
            if waits[model] <= 0:
                return model, 0.0
        return min(waits.items(), key=itemgetter(1))

    def _form_batch(self, model: Model) -> list[_Piece]:
        """Take a batch from the front of a model's queue; empty if all its callers have left."""
        queue = self._queues.pop(model)
        # The queued rows are shared out over the idle lanes, so that a lonely large request is as
        # fast as all lanes together allow.
        share = math.ceil(sum(piece.rows for piece in queue) / len(self._idle))
        target = min(self._max_batch_rows, max(self._min_piece_rows, share))
        pieces: list[_Piece] = []
        rows = 0
        while queue and rows < target:
            piece = queue[0]
            if piece.pending.future.done():  # its caller left, or its deadline passed
                self.queued_rows -= queue.popleft().rows
                continue
            taken = piece.rows if piece.alone else self._cut(piece.rows, rows, target)
            if taken == 0 or (piece.alone and pieces):
                break  # it is first in the next batch
            queue.popleft()
            if taken < piece.rows:  # the rest has its turn after everybody else
                queue.append(_Piece(piece.pending, piece.start + taken, piece.stop))
            self.queued_rows -= taken
            pieces.append(replace(piece, stop=piece.start + taken))
            rows += taken
            if piece.alone:
                break
        if queue:
            self._queues[model] = queue  # at the end of the dict: other models are served first
        return pieces

    def _cut(self, wanted: int, rows: int, target: int) -> int:
        """Return how many of `wanted` rows join a batch that holds `rows` already, maybe none.

        It is all of them, or a piece such that neither it nor the rest is below `min_piece_rows`.
        """
        largest_piece = wanted - self._min_piece_rows
        if wanted <= target - rows:
            return wanted
        if (taken := min(target - rows, largest_piece)) >= self._min_piece_rows:
            return taken
        space = self._max_batch_rows - rows
        if wanted <= space:
            return wanted
        if (taken := min(space, largest_piece)) >= self._min_piece_rows:
            return taken
        return 0 if rows else space

    def _finish(
        self, model: Model, pieces: list[_Piece], dispatched: float, lane: Lane, outcome: Outcome
    ) -> None:
        self._idle.append(lane)
        self._wake_soon()
        if isinstance(outcome.scores, Exception):
            self._fail(model, pieces, outcome.scores)
            return
        self._metrics.batch(
            rows=len(outcome.scores),
            requests=len(pieces),
            busy_s=outcome.duration_s,
            lane=lane.name,
        )
        row = 0
        for piece in pieces:
            self._deliver(piece, outcome.scores[row : row + piece.rows])
            row += piece.rows
            if piece.pending.rows_left == 0:
                self._answer(piece.pending, dispatched, outcome)

    def _deliver(self, piece: _Piece, scores: npt.NDArray[np.float32]) -> None:
        pending = piece.pending
        if np.isfinite(scores).all():
            pending.result.scores[piece.start : piece.stop] = scores
            pending.rows_left -= piece.rows
        else:
            self._metrics.failed("non-finite")
            pending.fail(InferenceFailed("the model gave a score that is not finite"))

    def _answer(self, pending: _Pending, dispatched: float, outcome: Outcome) -> None:
        if self._loop.time() > pending.deadline:
            self._expire(pending)
        elif not pending.future.done():
            pending.result.queue_s = dispatched - pending.arrival
            pending.result.collate_s = outcome.collate_s
            pending.result.compute_s = outcome.compute_s
            pending.future.set_result(pending.result)

    def _fail(self, model: Model, pieces: list[_Piece], error: Exception) -> None:
        """Fail the one request of a failed batch, or run each of its requests alone."""
        self._metrics.failed("model")
        logger.error("a batch of %s failed: %d requests", model, len(pieces), exc_info=error)
        if len(pieces) == 1:
            pieces[0].pending.fail(InferenceFailed("the model failed on this request"))
            return
        queue = self._queues.setdefault(model, deque())
        queue.extendleft(replace(piece, alone=True) for piece in reversed(pieces))
        self.queued_rows += sum(piece.rows for piece in pieces)

    def _expire(self, pending: _Pending) -> None:
        if not pending.future.done():
            self._metrics.shed("deadline-exceeded")
            pending.fail(DeadlineExceeded("the scores were not ready before the deadline"))


def _part(piece: _Piece) -> Part:
    request = piece.pending.request
    return Part(request.user, request.candidate, piece.start, piece.stop)
