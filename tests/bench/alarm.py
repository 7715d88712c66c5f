"""A timer on an event loop that rings within tens of microseconds (Linux).

Timers of asyncio and of uvloop count in whole milliseconds: at a thousand arrivals a second that is
as long as the time between two. A timerfd counts in nanoseconds, and to a loop it is a file like
any other. See timerfd_create(2).
"""

import asyncio
import ctypes
import os
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
_ABSOLUTE = 1


class _Times(ctypes.Structure):
    """struct itimerspec: an interval, which is none here, and when to ring."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


class Alarm:
    """Calls `ring` on the running loop whenever a time that was set has come."""

    def __init__(self, ring: Callable[[], None]) -> None:
        clock_monotonic = 1  # which is what time.perf_counter and time.monotonic read
        self._fd = _libc.timerfd_create(clock_monotonic, _NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._rung)

    def set(self, at: float) -> None:
        """Ring at a time of the monotonic clock (s); a time that is over rings at once."""
        at_ns = max(1, int(at * 1e9))
        times = _Times(0, 0, *divmod(at_ns, 1_000_000_000))
        _libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(times), None)

    def close(self) -> None:
        """Ring no more."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _rung(self) -> None:
        os.read(self._fd, 8)
        self._ring()
