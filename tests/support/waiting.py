"""Wait for what nothing signals, for a bounded time: a test that would hang fails and says why."""

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 30.0


def wait_until(
    condition: Callable[[], object], what: str = "", *, patience_s: float = PATIENCE_S
) -> None:
    """Poll until `condition()` is true.

    Raises:
        AssertionError: it is still false after `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what or condition}"
        time.sleep(0.005)


async def until(
    condition: Callable[[], object], what: str = "", *, patience_s: float = PATIENCE_S
) -> None:
    """Poll until `condition()` is true, while other tasks run.

    Raises:
        AssertionError: it is still false after `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what or condition}"
        await asyncio.sleep(0.001)


@contextmanager
def killed_after(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """Kill a process that is read for longer: reading then ends, and the process has a code."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
