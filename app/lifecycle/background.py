"""A thread for work that must not disturb serving: a new version is loaded and warmed up on it.

The lanes would be busy with warm-up batches otherwise, and requests would miss their deadlines.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.engine.lanes import use_threads

T = TypeVar("T")

_NICENESS = 10
"""Added to the process's own: a ninth of the weight of a lane, where both want the same core
(sched(7)). Not the most there is: the event loop waits while this thread holds the GIL."""


class BackgroundThread:
    """Runs one function at a time, with one core at most, and with less weight than the lanes."""

    def __init__(self) -> None:
        """Start the thread with its first function."""
        self._executor = ThreadPoolExecutor(1, "background", initializer=_give_way)

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function on the thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)


def _give_way() -> None:
    thread = threading.get_native_id()
    niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS
    os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))
    use_threads(1)
