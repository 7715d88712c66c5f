"""A thread for work that must not disturb serving: a new version is loaded and warmed up on it.

The lanes would be busy with warm-up batches otherwise, and requests would miss their deadlines.

The thread has the weight of any other. With less of it (`nice`), it would get no core for a while
where the cores are busy, also while it holds the interpreter's lock, and everything would wait for
it: `python -m tests.bench.load_stalls --busy 2 --niceness 10` shows delays of half a second.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from app.engine.lanes import use_threads

T = TypeVar("T")

_SWITCH_INTERVAL_S = 0.0005
"""How long this thread may keep the GIL while another one waits for it; Python's default is 5 ms.
It holds for the process, so it is set only while such a thread works. C++ code keeps the GIL for
longer: 10 ms to load a TorchScript file, and as much to freeze it."""


class BackgroundThread:
    """Runs one function at a time, with one core at most, and lets others have the lock soon."""

    def __init__(self) -> None:
        """Start the thread with its first function."""
        self._executor = ThreadPoolExecutor(1, "background", initializer=use_threads, initargs=(1,))

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function on the thread and return its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(_run, function))


class _SwitchInterval:
    """Python's switch interval, shorter while any background thread works."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working = 0
        self._before = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._working:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(_SWITCH_INTERVAL_S)
            self._working += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._working -= 1
            if not self._working:
                sys.setswitchinterval(self._before)


_switch_interval = _SwitchInterval()


def _run(function: Callable[[], T]) -> T:
    with _switch_interval:
        return function()
