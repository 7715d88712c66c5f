"""A thread for work that must not disturb serving: a new version is loaded and warmed up on it.

The lanes would be busy with warm-up batches otherwise, and requests would miss their deadlines.

The thread has the weight of any other. With less of it (`nice`), it would get no core for a while
where the cores are busy, also while it holds the interpreter's lock, and everything would wait for
it: `python -m tests.bench.load_stalls --busy 2 --niceness 10` shows delays of half a second.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.engine.lanes import use_threads

T = TypeVar("T")


class BackgroundThread:
    """Runs one function at a time, with one core at most."""

    def __init__(self) -> None:
        """Start the thread with its first function."""
        self._executor = ThreadPoolExecutor(1, "background", initializer=use_threads, initargs=(1,))

    async def run(self, function: Callable[[], T], *, beside_requests: bool = True) -> T:
        """Run a function and return its result.

        While nothing is served, there are no `beside_requests` to give way to: the function runs on
        one of asyncio's threads, and computes with every core.
        """
        if not beside_requests:
            return await asyncio.to_thread(function)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function)
