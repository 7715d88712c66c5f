"""Callers that leave: found by one look, when a batch is formed; on virtual time."""

import asyncio
import gc

import pytest

from app.engine.batch import QueuedRequest
from app.errors import ClientDisconnected, DeadlineExceeded
from tests.support.batching import batcher, submit
from tests.support.clock import VirtualTimeLoop
from tests.support.fakes import FakeLane, expected


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def test_a_request_cancelled_in_the_queue_is_never_computed():
    lane = FakeLane()
    subject = batcher([lane])
    first = submit(subject, 1, [1])
    await asyncio.sleep(0.001)
    leaver, stayer = submit(subject, 2, [1, 2]), submit(subject, 3, [4])
    await asyncio.sleep(0)
    leaver.cancel()
    assert (await stayer).scores.tolist() == expected(3, [4])
    assert lane.rows == [1, 1]
    assert subject.backlog.rows == 0
    await first


async def test_a_caller_that_leaves_a_running_batch_does_not_spoil_it():
    lane = FakeLane()
    subject = batcher([lane])
    leaver, stayer = submit(subject, 1, [1]), submit(subject, 2, [5])
    await asyncio.sleep(0.001)
    leaver.cancel()
    assert (await stayer).scores.tolist() == expected(2, [5])
    assert (await submit(subject, 3, [1])).scores.tolist() == expected(3, [1])


async def test_a_caller_that_left_is_found_when_its_batch_is_formed():
    lane = FakeLane()
    subject = batcher([lane])
    first = submit(subject, 1, [1])
    await asyncio.sleep(0.001)
    looks: list[float] = []

    def is_disconnected():
        looks.append(asyncio.get_running_loop().time())
        return True

    leaver = submit(subject, 2, [1, 2], is_disconnected=is_disconnected)
    stayer = submit(subject, 3, [4])
    assert (await stayer).scores.tolist() == expected(3, [4])
    with pytest.raises(ClientDisconnected, match="queue"):
        await leaver
    assert looks == pytest.approx([0.010])
    assert lane.rows == [1, 1]
    await first


async def test_nothing_is_sent_to_a_caller_that_left_while_its_batch_ran():
    gone = False
    subject = batcher([FakeLane()])
    leaver, stayer = submit(subject, 1, [1], is_disconnected=lambda: gone), submit(subject, 2, [5])
    await asyncio.sleep(0.001)
    gone = True
    assert (await stayer).scores.tolist() == expected(2, [5])
    with pytest.raises(ClientDisconnected, match="compute"):
        await leaver


async def test_the_rest_of_a_large_request_is_not_computed_for_a_caller_that_left():
    lane = FakeLane()
    gone = False
    subject = batcher([lane])
    leaver = submit(subject, 1, [1] * 100, is_disconnected=lambda: gone)
    await asyncio.sleep(0.015)
    gone = True
    with pytest.raises(ClientDisconnected, match="queue"):
        await leaver
    assert lane.rows == [16, 16]


async def test_a_request_that_failed_is_freed_at_once():
    """Not when the collector comes: what it has may be a model that another version replaced."""
    lane = FakeLane(a_s=0.100)
    gc.collect()
    gc.disable()
    try:
        late = submit(batcher([lane]), 1, [1], timeout_s=0.050)
        await asyncio.wait([late])
        assert isinstance(late.exception(), DeadlineExceeded)
        del late
        await asyncio.sleep(1)
        assert not [each for each in gc.get_objects() if type(each) is QueuedRequest]
    finally:
        gc.enable()
