"""A batch: chunks of requests that run through a model together. Owned by the event loop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.artifacts.loader import Model
from app.engine.request import QueuedRequest, RequestFeatures


@dataclass(slots=True, eq=False)
class Chunk:
    """Rows `start` to `stop` of a request.

    Attributes:
        features: the request's columns. A chunk has a reference of its own, because a request that
            expires while a lane works on it drops its columns.
        since: clock time (s) at which it joined the queue for this turn.
        turn: how many of its rows may run before the next request's turn.
    """

    request: QueuedRequest
    features: RequestFeatures
    start: int
    stop: int
    since: float = 0.0
    turn: int = 0

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it holds every row of its request."""
        return self.stop - self.start == self.features.rows

    def __repr__(self) -> str:
        return f"{self.start}:{self.stop}"


@dataclass(slots=True)
class RetryBudget:
    """How many more batches may run to find the request that made a batch fail."""

    left: int


@dataclass(slots=True, eq=False)
class Batch:
    """Chunks of requests to one model, at least one; `retries` once they were in a failed batch."""

    model: Model
    chunks: Sequence[Chunk]
    rows: int
    retries: RetryBudget | None = None

    @classmethod
    def of(
        cls, model: Model, chunks: Sequence[Chunk], retries: RetryBudget | None = None
    ) -> "Batch":
        """Return a batch of these chunks."""
        return cls(model, chunks, sum([chunk.stop - chunk.start for chunk in chunks]), retries)

    def __repr__(self) -> str:
        return f"{list(self.chunks)}"


def bisect(batch: Batch) -> tuple[Batch, ...]:
    """Split a failed batch in two, to find the request at fault; spends two of its retries.

    One bad request among n is found in 2·log₂n runs, two in at most twice as many. There are never
    more runs than that, nor more than a model that always fails needs to fail each request alone.
    Returns nothing for a single chunk, and when no retry is left.
    """
    count = len(batch.chunks)
    if count == 1:
        return ()
    retries = batch.retries or RetryBudget(min(4 * math.ceil(math.log2(count)), 2 * count - 2))
    if retries.left < 2:
        return ()
    retries.left -= 2
    middle = count // 2
    halves = batch.chunks[:middle], batch.chunks[middle:]
    return tuple(Batch.of(batch.model, half, retries) for half in halves)
