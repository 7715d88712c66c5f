"""The event loop with virtual time."""

import asyncio
import threading

import pytest

from tests.support import clock
from tests.support.clock import Stuck, VirtualTimeLoop


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def test_sleep_advances_the_loop_clock_by_exactly_its_duration():
    loop = asyncio.get_running_loop()
    await asyncio.sleep(86_400)
    assert loop.time() == 86_400


async def test_timers_fire_in_order_of_time():
    fired = []

    async def note(delay: float) -> None:
        await asyncio.sleep(delay)
        fired.append((delay, asyncio.get_running_loop().time()))

    await asyncio.gather(*[note(delay) for delay in (3.0, 0.5, 2.0, 0.0)])
    assert fired == [(0.0, 0.0), (0.5, 0.5), (2.0, 2.0), (3.0, 3.0)]


async def test_clock_does_not_advance_while_a_callback_is_ready():
    loop = asyncio.get_running_loop()
    loop.call_later(0.001, lambda: None)
    for _ in range(100):
        await asyncio.sleep(0)
    assert loop.time() == 0


async def test_timeout_ends_an_endless_wait():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await asyncio.Event().wait()
    assert asyncio.get_running_loop().time() == 5


async def test_call_from_another_thread_wakes_the_loop():
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(called.set))
    thread.start()
    await called.wait()
    thread.join()
    assert loop.time() == 0


def test_loop_that_nothing_can_wake_raises_an_error(monkeypatch):
    monkeypatch.setattr(clock, "_MAX_WAIT_S", 0.0)
    loop = VirtualTimeLoop()
    waiting = loop.create_task(asyncio.Event().wait())
    with pytest.raises(Stuck):
        loop.run_until_complete(waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(waiting)
    loop.close()
