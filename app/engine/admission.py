"""Admission: which requests are refused before they are queued, and the forecast that decides.

A late response is worth nothing, and computing it makes other requests late. A request that cannot
meet its deadline is refused at once, while its client can still try another replica. Owned by the
event loop.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from app.engine.batch import Batch
from app.engine.queue import ModelQueue
from app.engine.request import Priority
from app.errors import DeadlineUnmeetable, Overloaded


@dataclass(slots=True, eq=False)
class RunningBatch:
    """A batch on a lane: started at clock time `started` (s), expected to take `cost_s`."""

    batch: Batch
    started: float
    cost_s: float

    def __repr__(self) -> str:
        return f"<{self.batch.model} {self.batch}>"

    def remaining_s(self, now: float) -> float:
        """Return how long the batch is expected to run from `now` on (s); at least 0."""
        return max(0.0, self.started + self.cost_s - now)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicts how long a request takes, from everything that runs and everything that is queued.

    Attributes:
        lanes: how many lanes share the work.
        min_chunk_rows: a request is not split into smaller chunks.
    """

    lanes: int
    min_chunk_rows: int

    def wait_s(
        self,
        queue: ModelQueue,
        rows: int,
        priority: Priority,
        *,
        queues: Iterable[ModelQueue],
        running: Collection[RunningBatch],
        now: float,
    ) -> float:
        """Return how long `rows` more rows in `queue` will take from now on (s).

        The lanes share all work that runs first: the rows of the same model, and for every other
        model as many batches as this model needs, because models take turns. Then comes the batch
        of the request itself, or one lane's share if the request is split. Later requests will fill
        that batch up to the usual size.
        """
        before_s = 0.0
        for batch in running:
            before_s += batch.remaining_s(now)
        own = queue.rows_before(rows, priority)
        turns = -(-(own + rows) // queue.max_batch_rows)
        for other in queues:
            ahead = own if other is queue else other.rows_beside(turns, priority)
            if ahead:
                before_s += other.cost.of(ahead, -(-ahead // other.max_batch_rows))
        share = rows / min(self.lanes, max(1, rows // self.min_chunk_rows))
        batches = max(1, math.ceil(share / queue.max_batch_rows))
        filled = max(share, min(queue.cost.typical_rows, queue.max_batch_rows))
        return before_s / self.lanes + queue.cost.of(filled, batches)


def check_deadline(deadline: float, now: float, wait_s: float) -> None:
    """Refuse a request whose response would come after its deadline.

    Raises:
        DeadlineUnmeetable: the forecast `wait_s` (s) ends after the deadline.
    """
    late_s = now + wait_s - deadline
    if late_s > 0:
        left_ms = max(0.0, deadline - now) * 1e3
        raise DeadlineUnmeetable(
            f"estimated {wait_s * 1e3:.0f} ms, deadline {left_ms:.0f} ms",
            retry_after_s=math.ceil(late_s),
        )


def check_space(rows: int, waiting: int, limit: int, drain_s: float) -> None:
    """Refuse a request that does not fit into the queue; an empty queue takes any request.

    Raises:
        Overloaded: more than `limit` rows would wait; the queue takes `drain_s` (s) to drain.
    """
    if waiting and waiting + rows > limit:
        surplus = (waiting + rows - limit) / waiting
        raise Overloaded(
            f"queue full: {waiting} rows waiting, limit {limit}",
            retry_after_s=math.ceil(surplus * drain_s),
        )
