"""Requests that wait, the chunks they are cut into, and the groups that chunks run in.

Owned by the event loop.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from app.engine.lanes import BatchResult, Part
from app.engine.request import RequestFeatures, RequestOptions


@dataclass(frozen=True, slots=True)
class Scored:
    """A request's scores, `[n, K]` float32, and where its time went.

    Attributes:
        scores: in the order of its candidates.
        queue_s: how long the chunk that finished last waited (s).
        outcome: of that chunk's batch.
    """

    scores: npt.NDArray[np.float32]
    queue_s: float
    outcome: BatchResult


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request until it is answered.

    Attributes:
        request: its columns.
        terms: until when and how urgently its caller waits.
        arrival: clock time (s) of its coming.
        future: the answer; done early where the caller left or the deadline passed.
        rows_left: rows that have no scores yet.
        scores: `[n, K]` float32; those of its chunks come together here.
    """

    request: RequestFeatures
    terms: RequestOptions
    arrival: float
    future: asyncio.Future[Scored]
    rows_left: int
    scores: npt.NDArray[np.float32] | None = None

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless there is an answer."""
        if not self.future.done():
            self.future.set_exception(error)

    def gather(self, start: int, stop: int, scores: npt.NDArray[np.float32]) -> None:
        """Take the scores of rows `start` to `stop`, `[stop - start, K]`."""
        if stop - start == self.request.rows:
            self.scores = scores
        else:
            if self.scores is None:
                self.scores = np.empty((self.request.rows, scores.shape[1]), np.float32)
            self.scores[start:stop] = scores
        self.rows_left -= stop - start


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Rows `start` to `stop` of a request.

    Attributes:
        since: clock time (s) since when it waits for this turn.
        turn: how many of its rows may go before it is the others' turn.
    """

    pending: QueuedRequest
    start: int
    stop: int
    since: float
    turn: int

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    def part(self) -> Part:
        """Return what it gives to a batch."""
        request = self.pending.request
        return Part(request.user, request.candidate, self.start, self.stop)

    def __repr__(self) -> str:
        return f"{self.start}:{self.stop}"


@dataclass(slots=True)
class Reruns:
    """How many more batches may be run on account of one that failed."""

    left: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Pieces that run as one batch; `reruns` once they were part of a batch that failed."""

    chunks: Sequence[Chunk]
    reruns: Reruns | None = field(default=None)

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(chunk.rows for chunk in self.chunks)

    def halves(self) -> tuple["Batch", ...]:
        """Return what to run again after this group failed, to find the requests at fault.

        One poisoned request among n is found in 2·log₂n runs, two in no more than twice as many;
        there are never more runs than that, nor more than a model that always fails would need to
        fail each request by itself. Where no run is left, or one request alone, it is nothing.
        """
        count = len(self.chunks)
        if count == 1:
            return ()
        reruns = self.reruns or Reruns(min(4 * math.ceil(math.log2(count)), 2 * count - 2))
        if reruns.left < 2:
            return ()
        reruns.left -= 2
        middle = count // 2
        return Batch(self.chunks[:middle], reruns), Batch(self.chunks[middle:], reruns)

    def __repr__(self) -> str:
        return f"{list(self.chunks)}"
