"""A request inside the engine: from its admission to its scores."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from app.artifacts.columns import Column, Columns
from app.artifacts.loader import Model
from app.artifacts.program import Program
from app.ranking.batch import RankedRequest
from app.ranking.ranker import RankingOptions


class Priority(IntEnum):
    """Requests of a higher priority run first; requests of one priority take turns."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


Positions = npt.NDArray[np.int64]


class RowSource(Protocol):
    """What the engine needs of an item or user table; any thread may call it."""

    def take(self, positions: Positions) -> npt.NDArray[np.void]:
        """Return the records at `positions`, with a field for each feature."""

    def gather(self, name: str, positions: Positions) -> Column:
        """Return the rows of one feature at `positions`."""

    def take_folded(
        self, positions: Positions, out: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Write the folded part of the rows at `positions`, `[n, H]`, into `out`."""


@dataclass(frozen=True, slots=True, eq=False)
class TableRows:
    """The rows of a table that provide the features which a request does not send.

    Attributes:
        table: one version of a table, which never changes.
        positions: of the rows in the table: one for a user, n for candidates; -1 stands for the
            defaults of the features.
        names: the features that come from the table.
        folded_for: the program that the rows were folded for, if they replace all candidate
            features; else None.
    """

    table: RowSource
    positions: Positions
    names: frozenset[str]
    folded_for: Program | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TableUse:
    """What a request takes from item and user tables.

    Attributes:
        user: the user's row, or None if every user column is in the request's own columns.
        candidate: the candidates' rows, or None as for `user`.
        versions: the versions of the tables that were asked, by `items` and `users`.
        unknown: for a table in which keys were not found, the positions of their candidates in the
            request; 0 for a user.
        kept: the positions in the request of the candidates that are scored, if others are
            dropped; None for all.
        sent: how many candidates the request has, with those that are dropped.
    """

    user: TableRows | None
    candidate: TableRows | None
    versions: Mapping[str, str]
    unknown: Mapping[str, Positions]
    kept: Positions | None
    sent: int


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """The features of one user and n candidates, checked and encoded.

    Attributes:
        user: columns with one row; without those that come from a table.
        candidate: columns with `rows` rows; without those that come from a table.
        rows: n, the number of candidates to score.
        unknown_ids: for each feature, how many ids were outside its vocabulary.
        tables: what comes from tables; None for a request that uses none.
    """

    user: Columns
    candidate: Columns
    rows: int
    unknown_ids: Mapping[str, int]
    tables: TableUse | None = None

    def candidate_column(self, name: str) -> Column:
        """Return a candidate feature's column, wherever it comes from; `[n, ·]`."""
        column = self.candidate.get(name)
        if column is None:
            assert self.tables is not None
            assert self.tables.candidate is not None
            column = self.tables.candidate.table.gather(name, self.tables.candidate.positions)
        return column

    def user_column(self, name: str) -> Column:
        """Return a user feature's column, wherever it comes from; `[1, ·]`."""
        column = self.user.get(name)
        if column is None:
            assert self.tables is not None
            assert self.tables.user is not None
            column = self.tables.user.table.gather(name, self.tables.user.positions)
        return column


@dataclass(slots=True)
class BatchTiming:
    """How long the stages of one batch took (s).

    `cpu_s` is the CPU time of the thread that ran it: without what it waited for a core or for the
    interpreter's lock.
    """

    collate_s: float = 0.0
    compute_s: float = 0.0
    rank_s: float = 0.0
    copy_in_s: float = 0.0
    copy_out_s: float = 0.0
    cpu_s: float = 0.0
    _server_timing: bytes = b""

    @property
    def busy_s(self) -> float:
        """How long the lane was busy."""
        return self.collate_s + self.copy_in_s + self.compute_s + self.copy_out_s + self.rank_s

    @property
    def stages(self) -> tuple[float, ...]:
        """The stages in order; the copies only if there were any."""
        if self.copy_in_s:
            copies = self.copy_in_s, self.compute_s, self.copy_out_s
            return (self.collate_s, *copies, self.rank_s)
        return self.collate_s, self.compute_s, self.rank_s

    @property
    def server_timing(self) -> bytes:
        """The stages as a part of a `Server-Timing` header (ms); the same for a whole batch."""
        if not self._server_timing:
            names: tuple[bytes, ...] = (b"collate", b"compute", b"rank")
            if self.copy_in_s:
                names = (b"collate", b"copy_in", b"compute", b"copy_out", b"rank")
            stages = zip(names, self.stages, strict=True)
            parts = [b"%b;dur=%.3f" % (name, stage_s * 1e3) for name, stage_s in stages]
            self._server_timing = b", ".join(parts)
        return self._server_timing


def never_disconnected() -> bool:
    """Return False: the default for clients that cannot disconnect."""
    return False


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request until it is done. Owned by the event loop; a lane only reads it.

    Attributes:
        model: the version that scores it.
        features: its columns.
        ranking: how to rank the candidates.
        deadline: clock time (s) after which the response is worthless.
        priority: which requests run first.
        is_disconnected: says whether the client has closed the connection.
        on_done: called once on the event loop, with the result or the error.
        arrival: clock time (s) at which it was queued.
        rows_left: rows that have no scores yet.
        scores: `[n, K]` float32, filled chunk by chunk.
        ranked: the result.
        error: why there is no result.
        is_done: whether `on_done` was called.
        queue_s: how long the chunk that finished last was queued (s).
        timing: the stages of that chunk's batch.
        watch: holds this request while it is not done; see `Deadlines`.
    """

    model: Model
    features: RequestFeatures
    ranking: RankingOptions
    deadline: float = math.inf
    priority: Priority = Priority.NORMAL
    is_disconnected: Callable[[], bool] = never_disconnected
    on_done: Callable[["QueuedRequest"], None] | None = None
    arrival: float = 0.0
    rows_left: int = 0
    scores: npt.NDArray[np.float32] | None = None
    ranked: RankedRequest | None = None
    error: Exception | None = None
    is_done: bool = False
    queue_s: float = 0.0
    timing: BatchTiming | None = None
    watch: list["QueuedRequest"] = field(default_factory=list, repr=False)

    def succeed(self, ranked: RankedRequest, timing: BatchTiming) -> None:
        """Finish with a result, unless the request is done."""
        if not self.is_done:
            self.ranked = ranked
            self.timing = timing
            self._finish()

    def fail(self, error: Exception) -> None:
        """Finish with an error, unless the request is done."""
        if not self.is_done:
            self.error = error
            self._finish()

    def _finish(self) -> None:
        self.is_done = True
        on_done, self.on_done = self.on_done, None
        if on_done is not None:
            on_done(self)
        self.watch.clear()
        # A chunk in a queue or in a running batch may keep this object for a while. Release the
        # columns (megabytes), the result and the connection now.
        self.features = _RELEASED
        self.is_disconnected = never_disconnected
        self.scores = self.ranked = self.error = None


_RELEASED = RequestFeatures({}, {}, 0, {})
