"""One timer for the deadlines of all requests. Owned by the event loop."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from app.engine.request import QueuedRequest

_SLACK = 1000


class Deadlines:
    """Calls `on_expired` for each request that is not done when its deadline passes.

    The heap holds each request in a list of its own, `QueuedRequest.watch`, which is emptied when
    the request is done: a finished request, and the model that scored it, are freed at once. The
    empty list stays until the deadline or the next clean-up; the heap never holds more than twice
    the requests that are not done, plus `_SLACK`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        on_expired: Callable[[QueuedRequest], None],
    ) -> None:
        """Start empty; `clock` is the clock of the deadlines (s)."""
        self._loop = loop
        self._clock = clock
        self._on_expired = on_expired
        self._heap: list[tuple[float, int, list[QueuedRequest]]] = []
        self._numbers = count()  # requests have no order; equal deadlines need a tie-break
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._clean_up_at = _SLACK

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: QueuedRequest) -> None:
        """Watch a request's deadline."""
        request.watch.append(request)
        heapq.heappush(self._heap, (request.deadline, next(self._numbers), request.watch))
        if len(self._heap) > self._clean_up_at:
            self._heap = [entry for entry in self._heap if entry[2]]
            heapq.heapify(self._heap)
            self._clean_up_at = 2 * len(self._heap) + _SLACK
        if self._timer is None or request.deadline < self._timer_at:
            self._set_timer(request.deadline)

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        delay_s = max(0.0, deadline - self._clock())
        self._timer = self._loop.call_later(delay_s, self._expire_due)

    def _expire_due(self) -> None:
        self._timer = None
        now = self._clock()
        while self._heap and (not self._heap[0][2] or self._heap[0][0] <= now):
            watch = heapq.heappop(self._heap)[2]
            if watch:
                self._on_expired(watch[0])
        if self._heap:
            # A timer may fire shortly before the deadline by this clock: then set it again.
            self._set_timer(max(self._heap[0][0], now + 0.001))
