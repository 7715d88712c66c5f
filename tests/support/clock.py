"""An event loop with virtual time: instead of sleeping, it advances its clock.

With anyio's pytest plugin, a test module selects it with a fixture:

    @pytest.fixture
    def anyio_backend():
        return "asyncio", {"loop_factory": VirtualTimeLoop}

Timers fire in order without waiting, and `loop.time()` is the time that a real loop would have
taken. The clock does not advance while a callback is ready, so all events between two timers happen
at the same time. Work in other threads takes no virtual time, and the clock does not wait for it
when a timer is set: tests with real lanes or sockets need the normal loop.
"""

import asyncio
import selectors

_MAX_WAIT_S = 30.0  # real time to wait for a thread or a socket


class Stuck(Exception):
    """Nothing is ready, no timer is set and no thread wakes the loop: the test would never end."""


class _Selector(selectors.DefaultSelector):
    """Return what is ready now. Waiting for a timer advances `now` and takes no real time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # no timer is set: only a thread or a socket can wake the loop
            if events := super().select(_MAX_WAIT_S):
                return events
            raise Stuck
        events = super().select(0)
        if not events:
            self.now += max(0.0, timeout)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`loop.time()` starts at 0. `await asyncio.sleep(10)` adds 10 to it and takes no real time."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now
