"""Everything that waits: one queue a model, and whose turn it is. Owned by the event loop."""

import math
from collections.abc import Iterable
from operator import itemgetter
from weakref import WeakKeyDictionary

from app.artifacts.loader import Model
from app.engine.batch import Batch, QueuedRequest
from app.engine.queue import ModelQueue

AGED_EVERY = 4
"""Age counts for one batch in so many: what is not urgent gets on, however much is urgent, and
what is urgent has the other batches to itself, however much that is not waits since long ago."""

SWEEP_S = 0.01
"""Looking through a full queue takes milliseconds; while it is full, that is once in so long."""


class Backlog:
    """The queues of all models; those that have rows take turns.

    What is known of a model's batches stays with its queue for as long as anybody holds the model.
    """

    def __init__(self, *, max_batch_rows: int, min_chunk_rows: int, max_wait_s: float) -> None:
        """Start empty; see `Batcher` for the arguments."""
        self._max_batch_rows = max_batch_rows
        self._min_piece_rows = min_chunk_rows
        self._max_wait_s = max_wait_s
        self._queues: WeakKeyDictionary[Model, ModelQueue] = WeakKeyDictionary()
        self._turns: dict[Model, ModelQueue] = {}  # those with rows, the next one first
        self._taken = 0  # batches
        self._swept = -math.inf  # when chunks were last looked through (s)

    def __repr__(self) -> str:
        return f"{ {str(model): queue for model, queue in self._turns.items()} }"

    def __bool__(self) -> bool:
        return bool(self._turns)

    @property
    def rows(self) -> int:
        """How many rows wait; any thread may ask."""
        return sum([queue.rows for queue in list(self._turns.values())])

    @property
    def chunks(self) -> int:
        """How many requests, or chunks of one, wait; any thread may ask."""
        return sum(map(len, list(self._turns.values())))

    @property
    def waiting(self) -> Iterable[ModelQueue]:
        """The queues that have rows."""
        return self._turns.values()

    @property
    def queues(self) -> dict[Model, ModelQueue]:
        """Every queue."""
        return dict(self._queues)

    def queue(self, model: Model) -> ModelQueue:
        """Return a model's queue."""
        queue = self._turns.get(model)
        if queue is None:
            queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = ModelQueue(
                max_batch_rows=self._max_batch_rows, min_chunk_rows=self._min_piece_rows
            )
        return queue

    def append(self, model: Model, pending: QueuedRequest, now: float) -> None:
        """Let a request wait for its turn."""
        queue = self.queue(model)
        queue.append(pending, 0, now)
        self._turns.setdefault(model, queue)

    def resume(self, model: Model) -> None:
        """Let a model have its turn, if rows were put back into its queue."""
        queue = self.queue(model)
        if queue.rows:
            self._turns.setdefault(model, queue)

    def drop_over(self, now: float) -> None:
        """Drop the chunks that nobody waits for any more; not again within `SWEEP_S`."""
        if now - self._swept < SWEEP_S:
            return
        self._swept = now
        for queue in self._turns.values():
            queue.drop_over(now)
        self._turns = {model: queue for model, queue in self._turns.items() if queue.rows}

    def next(self, now: float) -> tuple[Model, float]:
        """Return the model whose turn it is, and how long (s) its rows may wait for company."""
        ready = self._turns
        if self._max_wait_s > 0:
            waits = {model: self._company_s(queue, now) for model, queue in self._turns.items()}
            ready = {model: self._turns[model] for model, wait_s in waits.items() if wait_s <= 0}
            if not ready:
                return min(waits.items(), key=itemgetter(1))
        if len(ready) == 1:
            return next(iter(ready)), 0.0
        aged_at = self._aged_at(now)
        return min(ready, key=lambda model: ready[model].urgency(aged_at)), 0.0

    def _aged_at(self, now: float) -> float | None:
        return None if self._taken % AGED_EVERY else now

    def _company_s(self, queue: ModelQueue, now: float) -> float:
        """Return how long (s) a queue's rows may wait for company; a full batch needs none."""
        if queue.rows >= queue.max_batch_rows:
            return 0.0
        return queue.oldest_arrival + self._max_wait_s - now

    def take(self, model: Model, lanes: int, now: float) -> Batch | None:
        """Take a batch of a model whose turn it is; then it is behind the other models.

        The rows are shared out over the idle `lanes`: a lonely large request is as fast as they can
        be. Where all rows turn out to be of requests that are over, there is no batch.
        """
        queue = self._turns.pop(model)
        share = math.ceil(queue.rows / lanes)
        target = min(queue.max_batch_rows, max(self._min_piece_rows, share))
        group = queue.take(target, now, self._aged_at(now))
        if queue.rows:
            self._turns[model] = queue
        if group is not None:
            self._taken += 1
        return group
