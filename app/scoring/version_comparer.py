"""Scores requests with a second version, after the answer, and compares the scores.

It must not delay live requests. So it works only while a lane is idle and nothing waits, its
requests have the lowest priority, and it takes a limited share of the time of the event loop and of
a lane.
"""

import asyncio
import time
from functools import partial

import numpy as np

from app.artifacts.model_tables import NO_TABLES
from app.engine.request import Positions, Priority, QueuedRequest, TableUse
from app.errors import ClientDisconnected, GatehouseError
from app.lifecycle.comparison import Comparison
from app.protocol.dialect import Dialect, Headers, ParseContext
from app.ranking.agreement import compare_orders
from app.ranking.batch import RankedRequest
from app.scoring.service import Service
from app.telemetry.ranking import RankingMetrics

SHARE = 0.05
"""The largest share of the time of the event loop, and of one lane, that comparisons take."""
_TIMEOUT_S = 60.0
"""Longer than any wait for an idle lane."""


def _same_candidates(kept: Positions | None, used: TableUse | None) -> bool:
    """Whether two versions score the same candidates: their tables may drop different ones."""
    other = None if used is None else used.kept
    if kept is None or other is None:
        return kept is other
    return np.array_equal(kept, other)


class VersionComparer:
    """Compares versions; owned by the event loop."""

    def __init__(self, service: Service, metrics: RankingMetrics, *, max_candidates: int) -> None:
        """Score on the lanes of `service`; requests have at most `max_candidates`."""
        self._service = service
        self._metrics = metrics
        self._max_candidates = max_candidates
        self._loop = asyncio.get_running_loop()
        self._next_at = 0.0  # monotonic time (s)

    def compare_soon(
        self,
        comparison: Comparison,
        dialect: Dialect,
        headers: Headers,
        body: bytes,
        ranked: RankedRequest,
        kept: Positions | None = None,
    ) -> None:
        """Compare the answer to a request, when it has been sent; `kept` as in `TableUse`."""
        self._loop.call_soon(self._score, comparison, dialect, headers, body, ranked, kept)

    def _is_idle(self) -> bool:
        """Whether there is a lane to spare: of several lanes, one stays free for live requests."""
        batcher, lanes = self._service.batcher, self._service.lane_count
        return not batcher.queues and lanes - len(batcher.running) > min(1, lanes - 1)

    def _must_yield(self) -> bool:
        """Whether other requests wait; then the batcher drops the request."""
        return bool(self._service.batcher.queues)

    def _score(
        self,
        comparison: Comparison,
        dialect: Dialect,
        headers: Headers,
        body: bytes,
        ranked: RankedRequest,
        kept: Positions | None,
    ) -> None:
        began = time.monotonic()
        if began < self._next_at or not self._is_idle():
            self._count(comparison, "dropped")
            return
        other = comparison.other
        policies = self._service.policies.of(other)
        try:
            context = ParseContext(other, policies, headers, self._max_candidates)
            context.tables = self._service.registry.tables.get(other, NO_TABLES)
            parsed = dialect.parse(body, context)
            if parsed.features.rows == 0:
                return
            if not _same_candidates(kept, parsed.features.tables):
                self._count(comparison, "dropped")
                return
            request = QueuedRequest(
                other,
                parsed.features,
                parsed.ranking,
                time.monotonic() + _TIMEOUT_S,
                Priority.LOW,
                self._must_yield,
                partial(self._finish, comparison, ranked, time.monotonic() - began),
            )
            self._service.batcher.submit(request)
        except GatehouseError:  # this version does not accept the request
            self._count(comparison, "failed")
        self._pause_after(time.monotonic() - began)

    def _pause_after(self, busy_s: float) -> None:
        self._next_at = time.monotonic() + busy_s / SHARE

    def _finish(
        self, comparison: Comparison, live: RankedRequest, parse_s: float, request: QueuedRequest
    ) -> None:
        began = time.monotonic()
        if request.error is not None:
            is_dropped = isinstance(request.error, ClientDisconnected)
            self._count(comparison, "dropped" if is_dropped else "failed")
            return
        other, timing = request.ranked, request.timing
        assert other is not None
        assert timing is not None
        tau, best = compare_orders(live.sort_keys, other.sort_keys)
        tau = 1.0 if tau is None else tau
        columns = comparison.other.manifest.task_columns
        differences = {
            task: float(np.abs(live.scores[:, column] - other.scores[:, columns[task]]).mean())
            for task, column in comparison.live.manifest.task_columns.items()
            if task in columns
        }
        comparison.add(tau, best, differences)
        name = comparison.live.manifest.name
        self._metrics.versions_differed(
            name, comparison.role, tau=tau, overlap=best, differences=differences
        )
        self._count(comparison, "compared")
        self._pause_after(parse_s + timing.busy_s + time.monotonic() - began)

    def _count(self, comparison: Comparison, result: str) -> None:
        if result == "dropped":
            comparison.dropped += 1
        elif result == "failed":
            comparison.failed += 1
        name = comparison.live.manifest.name
        self._metrics.version_compared(name, comparison.role, result)
