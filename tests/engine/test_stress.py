"""Real lanes and everything at once: sizes, priorities, two models, disconnects, failures.

The batcher runs on one thread and each lane on another: this looks for rows that are mixed up
between them.
"""

import asyncio
from collections import Counter

import numpy as np
import pytest

from app.engine.batcher import Batcher
from app.engine.lanes import Lane
from app.engine.request import Priority
from app.errors import ClientDisconnected, InferenceFailed
from app.telemetry.metrics import Metrics
from tests.support.batching import submit
from tests.support.fakes import POISON, expected, limits, sums_model
from tests.support.waiting import until

REQUESTS, AT_ONCE = 3000, 300


class Caller:
    """One client: its number decides what it does."""

    def __init__(self, subject, number, rng) -> None:
        self._subject = subject
        self._number = number
        self._model = sums_model(("sums", "other")[number % 2])
        self._candidates = rng.integers(0, 1000, rng.integers(1, 80)).astype(float).tolist()
        self._priority = Priority(int(rng.integers(0, 3)))
        self._turns = int(rng.integers(0, 20))  # of the loop, before it cancels or disconnects
        self._fate = "stays"
        if number % 300 == 150:  # so far apart that no batch has two of them
            self._fate = "poisoned"
            self._candidates[0] = POISON
        elif rng.random() < 0.2:
            self._fate = str(rng.choice(["cancels", "disconnects"]))

    async def run(self) -> str:
        """Send a request, check the response, and return how it ended."""
        gone = asyncio.Event()
        asking = submit(
            self._subject,
            self._number,
            self._candidates,
            timeout_s=60,
            model=self._model,
            priority=self._priority,
            is_disconnected=gone.is_set,
        )
        if self._fate in ("cancels", "disconnects"):
            for _ in range(self._turns):
                await asyncio.sleep(0)
            if self._fate == "cancels":
                asking.cancel()
            gone.set()
        try:
            scored = await asking
        except InferenceFailed:
            return "failed" if self._fate == "poisoned" else "another failed"
        except ClientDisconnected:
            return "disconnected" if self._fate == "disconnects" else "another disconnected"
        except asyncio.CancelledError:
            return "cancelled" if self._fate == "cancels" else "another cancelled"
        is_own = scored.scores.tolist() == expected(self._number, self._candidates)
        return "answered" if is_own and self._fate != "poisoned" else "answered with another's rows"


@pytest.mark.no_cover
@pytest.mark.slow
async def test_every_request_ends_once_and_with_its_own_rows():
    loop = asyncio.get_running_loop()
    workers = [Lane(f"lane-{i}", loop) for i in range(4)]
    subject = Batcher(workers, metrics=Metrics(), **limits(max_queue_rows=1_000_000))
    rng = np.random.default_rng(0)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number):
        async with gate:
            return await Caller(subject, number, rng).run()

    ends = Counter(await asyncio.gather(*map(one, range(REQUESTS))))
    assert ends.keys() <= {"answered", "failed", "disconnected", "cancelled"}
    assert sum(ends.values()) == REQUESTS
    assert ends["failed"] == REQUESTS / 300
    assert ends["answered"] >= 0.75 * REQUESTS
    # A cancelled request does not wait for its batch.
    await until(lambda: not subject.running, "batches end")
    assert subject.queues.rows == subject.queues.chunks == 0
    for worker in workers:
        worker.stop()
