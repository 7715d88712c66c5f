"""Real lanes and everything at once: sizes, priorities, two models, callers that leave, poison.

The batcher belongs to one thread and each lane is another; what this finds, if it finds anything,
is a row that strays where they meet.
"""

import asyncio
from collections import Counter

import numpy as np
import pytest

from app.engine.batcher import Batcher
from app.engine.lanes import Lane
from app.engine.request import Priority, RequestOptions
from app.errors import ClientDisconnected, InferenceFailed
from app.telemetry.metrics import Metrics
from tests.support.fakes import POISON, expected, limits, request, sums_model

REQUESTS, AT_ONCE = 3000, 300


class Caller:
    """One of the callers: who it is decides what it does."""

    def __init__(self, subject, number, rng) -> None:
        self._subject = subject
        self._number = number
        self._model = sums_model(("sums", "other")[number % 2])
        self._candidates = rng.integers(0, 1000, rng.integers(1, 80)).astype(float).tolist()
        self._priority = Priority(int(rng.integers(0, 3)))
        self._turns = int(rng.integers(0, 20))  # of the loop, before it gives up or leaves
        self._fate = "stays"
        if number % 300 == 150:  # so far apart that no batch has two
            self._fate = "poisoned"
            self._candidates[0] = POISON
        elif rng.random() < 0.2:
            self._fate = str(rng.choice(["cancels", "leaves"]))

    async def run(self) -> str:
        """Ask, check the answer, and say how it ended."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        terms = RequestOptions(loop.time() + 60, self._priority, gone.is_set)
        encoded = request(self._number, self._candidates)
        asking = loop.create_task(self._subject.score(self._model, encoded, terms))
        if self._fate in ("cancels", "leaves"):
            for _ in range(self._turns):
                await asyncio.sleep(0)
            if self._fate == "cancels":
                asking.cancel()
            gone.set()
        try:
            scored = await asking
        except InferenceFailed:
            return "failed" if self._fate == "poisoned" else "failed for another"
        except ClientDisconnected:
            return "left" if self._fate == "leaves" else "left for another"
        except asyncio.CancelledError:
            return "cancelled" if self._fate == "cancels" else "cancelled for another"
        is_own = scored.scores.tolist() == expected(self._number, self._candidates)
        return "answered" if is_own and self._fate != "poisoned" else "answered with another's rows"


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
    assert ends.keys() <= {"answered", "failed", "left", "cancelled"}
    assert sum(ends.values()) == REQUESTS
    assert ends["failed"] == REQUESTS / 300
    assert ends["answered"] >= 0.75 * REQUESTS
    while subject.flights:  # noqa: ASYNC110  (who cancelled did not wait for the batch)
        await asyncio.sleep(0)
    assert subject.backlog.rows == subject.backlog.chunks == 0
    for worker in workers:
        worker.stop()
