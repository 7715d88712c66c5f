"""The queues, read from another thread."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from app.engine.queue import Queues
from tests.support.fakes import queued, sums_model


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(former)


@pytest.mark.usefixtures("_hasty_threads")
def test_scrape_in_a_thread_may_read_the_queues_at_any_moment():
    queues = Queues(max_batch_rows=16, min_chunk_rows=4, max_wait_s=0.0)
    requests = [queued(1, [1] * 4, model=sums_model(name)) for name in "abcdef"]
    end = Event()

    def scrape() -> None:
        while not end.is_set():
            assert 0 <= queues.rows <= 24
            assert 0 <= queues.chunks <= 6

    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape)
        patience = time.monotonic() + 0.5
        while time.monotonic() < patience and not scraping.done():
            for request in requests:
                queues.append(request, 0.0)
            while queues:
                queues.take(queues.next(0.0)[0], 1, 0.0)
        end.set()
        scraping.result()
