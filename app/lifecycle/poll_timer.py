"""When to look at a file or a folder again: at intervals, or at once on request."""

import asyncio
from contextlib import suppress


class PollTimer:
    """Paces one loop that looks at something; owned by the event loop."""

    def __init__(self, interval_s: float) -> None:
        """Let each `wait` take `interval_s` at most."""
        self._interval_s = interval_s
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """End the wait now; if nobody waits, the next wait ends at once."""
        self._woken.set()

    async def wait(self) -> None:
        """Wait for the interval, or until woken."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await self._woken.wait()
        self._woken.clear()
