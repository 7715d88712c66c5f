"""Disconnected clients are noticed when a batch is formed and when it ends; virtual time."""

import asyncio
import gc
import weakref

import pytest

from app.engine.request import QueuedRequest
from app.errors import ClientDisconnected, DeadlineExceeded
from tests.support.batching import batcher, submit
from tests.support.clock import VirtualTimeLoop
from tests.support.fakes import FakeLane, expected, queued


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def test_request_that_disconnects_in_the_queue_is_never_computed():
    lane = FakeLane()
    subject = batcher([lane])
    first = submit(subject, 1, [1])
    await asyncio.sleep(0.001)
    quitter, other = submit(subject, 2, [1, 2]), submit(subject, 3, [4])
    await asyncio.sleep(0)
    quitter.cancel()
    assert (await other).scores.tolist() == expected(3, [4])
    assert lane.rows == [1, 1]
    assert subject.queues.rows == 0
    await first


async def test_disconnect_does_not_disturb_a_running_batch():
    lane = FakeLane()
    subject = batcher([lane])
    quitter, other = submit(subject, 1, [1]), submit(subject, 2, [5])
    await asyncio.sleep(0.001)
    quitter.cancel()
    assert (await other).scores.tolist() == expected(2, [5])
    assert (await submit(subject, 3, [1])).scores.tolist() == expected(3, [1])


async def test_disconnect_is_noticed_when_the_batch_is_formed():
    lane = FakeLane()
    subject = batcher([lane])
    first = submit(subject, 1, [1])
    await asyncio.sleep(0.001)
    calls: list[float] = []

    def is_disconnected():
        calls.append(asyncio.get_running_loop().time())
        return True

    quitter = submit(subject, 2, [1, 2], is_disconnected=is_disconnected)
    other = submit(subject, 3, [4])
    assert (await other).scores.tolist() == expected(3, [4])
    with pytest.raises(ClientDisconnected, match="queue"):
        await quitter
    assert calls
    assert calls == pytest.approx([0.010] * len(calls))
    assert lane.rows == [1, 1]
    await first


async def test_request_that_disconnects_in_a_batch_fails_when_it_ends():
    gone = False
    subject = batcher([FakeLane()])
    quitter, other = submit(subject, 1, [1], is_disconnected=lambda: gone), submit(subject, 2, [5])
    await asyncio.sleep(0.001)
    gone = True
    assert (await other).scores.tolist() == expected(2, [5])
    with pytest.raises(ClientDisconnected, match="compute"):
        await quitter


async def test_rest_of_a_large_request_is_not_computed_after_a_disconnect():
    lane = FakeLane()
    gone = False
    subject = batcher([lane])
    quitter = submit(subject, 1, [1] * 100, is_disconnected=lambda: gone)
    await asyncio.sleep(0.015)
    gone = True
    with pytest.raises(ClientDisconnected, match="queue"):
        await quitter
    assert lane.rows == [16, 16]


def requests_in_memory() -> set[int]:
    return {id(instance) for instance in gc.get_objects() if type(instance) is QueuedRequest}


async def test_failed_request_is_freed_at_once():
    """Not by the garbage collector later: it may hold a model that another version replaced."""
    lane = FakeLane(a_s=0.100)
    gc.collect()
    gc.disable()
    try:
        others = requests_in_memory()
        late = submit(batcher([lane]), 1, [1], timeout_s=0.050)
        await asyncio.wait([late])
        assert isinstance(late.exception(), DeadlineExceeded)
        del late
        await asyncio.sleep(1)
        assert requests_in_memory() <= others
    finally:
        gc.enable()


async def test_finished_request_is_freed_before_its_deadline():
    gc.collect()
    gc.disable()
    try:
        others = requests_in_memory()
        subject = batcher([FakeLane()])
        await submit(subject, 1, [1, 2], timeout_s=100.0)
        assert len(subject._deadlines) == 1
        assert requests_in_memory() <= others
    finally:
        gc.enable()


async def test_finished_request_keeps_no_columns_and_no_result():
    """A chunk in a queue may hold the request itself until its turn."""
    subject = batcher([FakeLane()])
    request = queued(1, [1, 2])
    request.deadline = 100.0
    column = weakref.ref(request.features.candidate["c"])
    subject.submit(request)
    await asyncio.sleep(1)
    assert request.is_done
    assert column() is None
    assert (request.scores, request.ranked, request.error) == (None, None, None)
    assert request.on_done is None
