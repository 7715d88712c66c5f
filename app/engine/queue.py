"""The queue of one model: pieces of requests in the order of their turns.

A request enters as one piece. What is cut off it for a batch leaves; the rest goes to the back, so
that requests take turns, a piece at a time. Owned by the event loop.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from app.engine.encode import EncodedRequest
from app.engine.lanes import Part
from app.engine.terms import Terms
from app.errors import GatehouseError


@dataclass(slots=True)
class Scored:
    """A request's scores, `[n, K]` float32, and where its time went.

    The durations (s) are those of the piece that finished last.
    """

    scores: npt.NDArray[np.float32]
    queue_s: float = 0.0
    collate_s: float = 0.0
    compute_s: float = 0.0
    copy_in_s: float = 0.0
    copy_out_s: float = 0.0


@dataclass(slots=True, eq=False)
class Pending:
    """A request until it is answered.

    Attributes:
        request: its columns.
        arrival: loop time (s) of its coming.
        terms: until when and how urgently its caller waits.
        future: the answer; done early where the caller left or the deadline passed.
        result: where its pieces' scores are gathered.
        rows_left: rows that have no scores yet.
    """

    request: EncodedRequest
    arrival: float
    terms: Terms
    future: asyncio.Future[Scored]
    result: Scored
    rows_left: int

    def fail(self, error: GatehouseError) -> None:
        """Answer with an error, unless there is an answer."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows `start` to `stop` of a request; `alone` if it must not share a batch."""

    pending: Pending
    start: int
    stop: int
    alone: bool = False

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    def part(self) -> Part:
        """Return what it gives to a batch."""
        return Part(
            self.pending.request.user, self.pending.request.candidate, self.start, self.stop
        )

    def __repr__(self) -> str:
        return f"{self.start}:{self.stop}{' alone' if self.alone else ''}"


class PieceQueue:
    """Pieces that wait, and how many rows they have."""

    def __init__(self, *, max_batch_rows: int, min_piece_rows: int) -> None:
        """Start empty; see `Batcher` for the limits."""
        self.rows = 0
        self._pieces: deque[Piece] = deque()
        self._max_batch_rows = max_batch_rows
        self._min_piece_rows = min_piece_rows

    def __len__(self) -> int:
        return len(self._pieces)

    def __repr__(self) -> str:
        return f"{list(self._pieces)}"

    @property
    def oldest_arrival(self) -> float:
        """Loop time (s) since when the oldest row waits; looks at every piece."""
        return min(piece.pending.arrival for piece in self._pieces)

    def append(self, piece: Piece) -> None:
        """Let a piece wait for its turn."""
        self._pieces.append(piece)
        self.rows += piece.rows

    def put_back_alone(self, pieces: list[Piece]) -> None:
        """Let the pieces of a batch that failed run next, each by itself."""
        self._pieces.extendleft(replace(piece, alone=True) for piece in reversed(pieces))
        self.rows += sum(piece.rows for piece in pieces)

    def drop_done(self) -> None:
        """Drop the pieces whose callers left or whose deadlines passed."""
        self._pieces = deque(p for p in self._pieces if not p.pending.future.done())
        self.rows = sum(piece.rows for piece in self._pieces)

    def take(self, target: int) -> list[Piece]:
        """Take a batch of about `target` rows from the front, at most `max_batch_rows`.

        Pieces whose callers left or whose deadlines passed are dropped on the way; where no others
        wait, the batch is empty.
        """
        batch: list[Piece] = []
        rows = 0
        while self._pieces and rows < target:
            piece = self._pieces[0]
            if piece.pending.future.done():
                self.rows -= self._pieces.popleft().rows
                continue
            if piece.alone:
                return batch or [self._pop(piece.rows)]
            taken = self._cut(piece.rows, rows, target)
            if taken == 0:
                break
            batch.append(self._pop(taken))
            rows += taken
        return batch

    def _pop(self, rows: int) -> Piece:
        """Take `rows` rows of the first piece; what it has more goes to the back."""
        piece = self._pieces.popleft()
        self.rows -= rows
        cut = piece.start + rows
        if cut == piece.stop:
            return piece
        self._pieces.append(replace(piece, start=cut))
        return replace(piece, stop=cut)

    def _cut(self, wanted: int, rows: int, target: int) -> int:
        """Return how many of `wanted` rows join a batch that holds `rows` already, maybe none.

        It is all of them, or so many that neither they nor the rest are below `min_piece_rows`.
        """
        if wanted <= target - rows:
            return wanted
        longest_piece = wanted - self._min_piece_rows
        if (cut := min(target - rows, longest_piece)) >= self._min_piece_rows:
            return cut
        # Not worth splitting at the target; the batch may grow to its limit instead.
        space = self._max_batch_rows - rows
        if wanted <= space:
            return wanted
        if (cut := min(space, longest_piece)) >= self._min_piece_rows:
            return cut
        return 0 if rows else space
