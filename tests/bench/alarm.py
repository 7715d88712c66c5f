"""An event loop timer with a precision of tens of microseconds (Linux).

Timers of asyncio and uvloop have a resolution of 1 ms, which is the time between two arrivals at a
rate of 1000 per second. A timerfd has nanoseconds, and the loop can watch it like any other file.
See timerfd_create(2).
"""

import asyncio
import ctypes
import os
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
_ABSOLUTE = 1


class _Times(ctypes.Structure):
    """struct itimerspec: the interval (0: no repetition) and the time of expiry."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


class Alarm:
    """Call `ring` on the running loop at the times given to `set`."""

    def __init__(self, ring: Callable[[], None]) -> None:
        clock_monotonic = 1  # the clock of time.perf_counter and time.monotonic
        self._fd = _libc.timerfd_create(clock_monotonic, _NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._rung)

    def set(self, at: float) -> None:
        """Ring at a time of the monotonic clock (s). A time in the past rings at once."""
        at_ns = max(1, int(at * 1e9))
        times = _Times(0, 0, *divmod(at_ns, 1_000_000_000))
        _libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(times), None)

    def close(self) -> None:
        """Stop the timer and release its file descriptor."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _rung(self) -> None:
        os.read(self._fd, 8)
        self._ring()
