"""An event loop on virtual time: where a real loop would sleep, its clock jumps instead.

With anyio's plugin, a test module takes it by a fixture:

    @pytest.fixture
    def anyio_backend():
        return "asyncio", {"loop_factory": VirtualTimeLoop}

Timers fire in order and at once, and `loop.time()` says how long a real loop would have taken.
Time stands still while anything can run, so what happens between two timers happens at one moment.
Work in other threads takes no virtual time, and the clock does not wait for it where a timer is
due: tests with real lanes or sockets belong on the normal loop.
"""

import asyncio
import selectors

_PATIENCE_S = 10.0  # of real time, for a thread or a socket


class Stuck(Exception):
    """Nothing is ready, no timer is set and nobody calls: the test waits for ever."""


class _Selector(selectors.DefaultSelector):
    """Finds what is ready now; a wait for a timer moves `now` and takes no real time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # no timer is set: only a thread or a socket can go on
            if events := super().select(_PATIENCE_S):
                return events
            raise Stuck
        events = super().select(0)
        if not events:
            self.now += max(0.0, timeout)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`await asyncio.sleep(10)` adds 10 to `loop.time()`, which starts at 0, and takes no time."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now
