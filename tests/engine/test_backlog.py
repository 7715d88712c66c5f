"""What waits, looked at from outside."""

import asyncio
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from app.engine.backlog import Backlog
from app.engine.batch import QueuedRequest
from app.engine.request import RequestOptions
from tests.support.fakes import request, sums_model


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(former)


@pytest.mark.usefixtures("_hasty_threads")
async def test_a_scrape_in_a_thread_may_look_at_any_moment():
    backlog = Backlog(max_batch_rows=16, min_chunk_rows=4, max_wait_s=0.0)
    models = [sums_model(name) for name in "abcdef"]
    waits = asyncio.get_running_loop().create_future()
    pending = QueuedRequest(request(1, [1] * 4), RequestOptions(1e9), 0.0, waits, 4)
    end = Event()

    def scrape() -> None:
        while not end.is_set():
            assert 0 <= backlog.rows <= 24
            assert 0 <= backlog.chunks <= 6

    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape)
        patience = time.monotonic() + 0.5
        while time.monotonic() < patience and not scraping.done():
            for model in models:
                backlog.append(model, pending, 0.0)
            while backlog:
                backlog.take(backlog.next(0.0)[0], 1, 0.0)
        end.set()
        scraping.result()
