"""Measures the lag and CPU time of the event loop, and the pauses of Python's garbage collector."""

import asyncio
import gc
import threading
import time
from collections import deque
from typing import Any

from app.telemetry.metrics import Metrics

INTERVAL_S = 0.1


class EventLoopMonitor:
    """A timer that measures how late it fires. Owned by the event loop, except `_on_gc`."""

    def __init__(self, metrics: Metrics) -> None:
        """Start measuring on the running event loop, until `close`."""
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._pauses: deque[tuple[int, float]] = deque(maxlen=1000)  # (generation, s)
        self._gc_began = 0.0
        # The kernel counts it anyway, so it costs nothing between scrapes.
        clock = time.pthread_getcpuclockid(threading.get_ident())
        began_s = time.clock_gettime(clock)
        metrics.watch_total(
            "event_loop_cpu_seconds_total",
            "CPU time of the event loop's thread, in seconds.",
            lambda: time.clock_gettime(clock) - began_s,
        )
        gc.callbacks.append(self._on_gc)
        self._due = 0.0
        self._timer = self._schedule()

    def close(self) -> None:
        """Stop measuring."""
        self._timer.cancel()
        gc.callbacks.remove(self._on_gc)

    def _schedule(self) -> asyncio.TimerHandle:
        self._due = time.monotonic() + INTERVAL_S
        return self._loop.call_later(INTERVAL_S, self._fire)

    def _fire(self) -> None:
        self._metrics.loop_lagged(max(0.0, time.monotonic() - self._due))
        while self._pauses:
            self._metrics.gc_paused(*self._pauses.popleft())
        self._metrics.drain()
        self._timer = self._schedule()

    def _on_gc(self, phase: str, info: dict[str, Any]) -> None:
        """Remember a collection. Runs in any thread, between any two instructions.

        It must not touch a metric, because the interrupted code may hold the metric's lock.
        """
        if phase == "start":
            self._gc_began = time.perf_counter()
        else:
            self._pauses.append((info["generation"], time.perf_counter() - self._gc_began))
