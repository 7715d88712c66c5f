"""One timer for the deadlines of all requests, on virtual time."""

import asyncio

import pytest

from app.engine.deadlines import Deadlines
from app.engine.request import BatchTiming, QueuedRequest
from app.errors import DeadlineExceeded
from tests.support.clock import VirtualTimeLoop
from tests.support.fakes import queued


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Watched:
    """Deadlines that record when each request expired."""

    def __init__(self, *, clock=None) -> None:
        self.loop = asyncio.get_running_loop()
        self.expired: list[tuple[float, QueuedRequest]] = []
        self.deadlines = Deadlines(self.loop, clock or self.loop.time, self._expire)

    def add(self, deadline: float) -> QueuedRequest:
        request = queued(1, [1])
        request.deadline = deadline
        self.deadlines.add(request)
        return request

    def _expire(self, request: QueuedRequest) -> None:
        self.expired.append((round(self.loop.time(), 6), request))
        request.fail(DeadlineExceeded())


def finish(request: QueuedRequest) -> None:
    assert request.ranked is None
    request.succeed(object(), BatchTiming())  # type: ignore[arg-type]


async def test_requests_expire_in_the_order_of_their_deadlines():
    watched = Watched()
    requests = {deadline: watched.add(deadline) for deadline in (3.0, 1.0, 2.0, 1.5)}
    await asyncio.sleep(10)
    assert watched.expired == [(deadline, requests[deadline]) for deadline in (1.0, 1.5, 2.0, 3.0)]
    assert len(watched.deadlines) == 0


async def test_requests_with_equal_deadlines_expire_together():
    watched = Watched()
    requests = [watched.add(1.0) for _ in range(5)]
    await asyncio.sleep(10)
    assert watched.expired == [(1.0, request) for request in requests]


async def test_request_that_is_done_does_not_expire():
    watched = Watched()
    first, second, third = (watched.add(deadline) for deadline in (1.0, 2.0, 3.0))
    finish(first)
    await asyncio.sleep(1.5)
    finish(third)
    await asyncio.sleep(10)
    assert [request for _, request in watched.expired] == [second]


async def test_deadline_that_has_passed_expires_at_once():
    watched = Watched()
    await asyncio.sleep(5)
    watched.add(1.0)
    assert watched.expired == []  # not within `add`
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    assert [time for time, _ in watched.expired] == [5.0]


async def test_earlier_deadline_replaces_the_timer():
    watched = Watched()
    watched.add(100.0)
    await asyncio.sleep(1)
    watched.add(2.0)
    await asyncio.sleep(2)
    assert [time for time, _ in watched.expired] == [2.0]
    await asyncio.sleep(100)
    assert [time for time, _ in watched.expired] == [2.0, 100.0]


async def test_there_is_one_timer_for_all_requests(monkeypatch):
    watched = Watched()
    timers: list[asyncio.TimerHandle] = []
    call_later = watched.loop.call_later

    def counted(*args):
        timers.append(call_later(*args))
        return timers[-1]

    monkeypatch.setattr(watched.loop, "call_later", counted)
    for number in range(1000):
        watched.add(1.0 + number / 1000)
    assert len(timers) == 1
    watched.add(0.5)
    assert [timer.cancelled() for timer in timers] == [True, False]


async def test_later_deadline_is_watched_after_an_earlier_one_expired():
    watched = Watched()
    watched.add(1.0)
    await asyncio.sleep(1.5)
    watched.add(2.0)
    await asyncio.sleep(10)
    assert [time for time, _ in watched.expired] == [1.0, 2.0]


async def test_timer_that_fires_before_the_clock_reaches_the_deadline_is_set_again():
    """The loop of uvloop has a clock of milliseconds, and deadlines a finer one."""
    loop = asyncio.get_running_loop()
    watched = Watched(clock=lambda: loop.time() - 0.0004 if loop.time() < 1.0005 else loop.time())
    watched.add(1.0)
    await asyncio.sleep(1.0001)
    assert watched.expired == []
    await asyncio.sleep(0.01)
    assert len(watched.expired) == 1
    assert watched.expired[0][0] <= 1.003


async def test_heap_stays_bounded_when_requests_finish_at_once():
    watched = Watched()
    largest = 0
    for _ in range(10_000):
        finish(watched.add(600.0))
        largest = max(largest, len(watched.deadlines))
    assert largest <= 1002


async def test_clean_up_keeps_the_requests_that_are_not_done():
    watched = Watched()
    open_requests = []
    for number in range(10_000):
        request = watched.add(600.0 - number / 100)
        if number % 10:
            finish(request)
        else:
            open_requests.append(request)
        assert len(watched.deadlines) <= 2 * len(open_requests) + 1002
    await asyncio.sleep(700)
    assert [request for _, request in watched.expired] == open_requests[::-1]


async def test_request_that_finishes_while_others_expire_is_skipped():
    watched = Watched()
    first, second = watched.add(1.0), watched.add(1.0)
    first.on_done = lambda _: finish(second)
    await asyncio.sleep(10)
    assert [request for _, request in watched.expired] == [first]
