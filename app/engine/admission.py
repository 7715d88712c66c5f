"""What is refused at the door, and the forecast that decides.

A late answer is worth nothing, and computing it makes others late: a request that cannot be in time
is refused while its caller can still go elsewhere. Owned by the event loop.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from app.artifacts.loader import Model
from app.engine.batch import Batch
from app.engine.queue import ModelQueue
from app.engine.request import Priority, RequestOptions
from app.errors import DeadlineUnmeetable, Overloaded


@dataclass(frozen=True, slots=True, eq=False)
class RunningBatch:
    """A group that a lane is at, since clock time `began` (s); it is expected to take `cost_s`."""

    model: Model
    group: Batch
    rows: int
    began: float
    cost_s: float

    def __repr__(self) -> str:
        return f"<{self.model} {self.group}>"

    def remaining_s(self, now: float) -> float:
        """Return how long it still takes; it is never late before it is done."""
        return max(0.0, self.began + self.cost_s - now)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What stands before a request when it comes: everything in flight, everything queued.

    Attributes:
        lanes: how many lanes share the work.
        min_chunk_rows: a request is not split below this.
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
        flights: Collection[RunningBatch],
        now: float,
    ) -> float:
        """Return how long `rows` more rows of `queue`'s model will take from now on (s).

        All of the lanes' work before it is shared by the lanes: its model's, and of every other
        model as many batches as its model needs, for they take turns. Then comes the batch of the
        request itself, or its share where it is worth more than one lane. What comes later will
        fill that batch up, as it did of late.
        """
        before_s = 0.0
        for flight in flights:
            before_s += flight.remaining_s(now)
        own = queue.rows_before(rows, priority)
        turns = -(-(own + rows) // queue.max_batch_rows)
        for each in queues:
            ahead = own if each is queue else each.rows_beside(turns, priority)
            if ahead:
                before_s += each.cost.of(ahead, -(-ahead // each.max_batch_rows))
        share = rows / min(self.lanes, max(1, rows // self.min_chunk_rows))
        batches = max(1, math.ceil(share / queue.max_batch_rows))
        filled = max(share, min(queue.cost.typical_rows, queue.max_batch_rows))
        return before_s / self.lanes + queue.cost.of(filled, batches)


def refuse_late(terms: RequestOptions, now: float, wait_s: float) -> None:
    """Refuse a request that would be answered after its deadline.

    Raises:
        DeadlineUnmeetable: by the forecast, in `wait_s` the deadline has passed.
    """
    late_s = now + wait_s - terms.deadline
    if late_s > 0:
        raise DeadlineUnmeetable(
            f"the answer would take {wait_s * 1e3:.0f} ms", retry_after_s=math.ceil(late_s)
        )


def refuse_many(rows: int, waiting: int, limit: int, drain_s: float) -> None:
    """Refuse a request that does not fit into the queue; one that waits for nobody always fits.

    Raises:
        Overloaded: there would be more than `limit` rows; `drain_s` is how long the queue takes.
    """
    if waiting and waiting + rows > limit:
        surplus = (waiting + rows - limit) / waiting
        raise Overloaded(
            f"{waiting} candidates are waiting", retry_after_s=math.ceil(surplus * drain_s)
        )
