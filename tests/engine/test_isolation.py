"""A failed request fails no other request of its batch; on virtual time."""

import asyncio
import logging

import pytest

from app.engine.queue import RECOVERY_BATCHES
from app.errors import InferenceFailed
from app.ranking.batch import RankedRequest
from app.telemetry.metrics import Metrics
from tests.support.batching import batcher, submit
from tests.support.clock import VirtualTimeLoop
from tests.support.fakes import NOT_A_NUMBER, POISON, FakeLane, expected, sums_model


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL)  # failing batches are logged with their tracebacks


async def test_only_the_poisoned_request_of_a_batch_fails():
    lane = FakeLane()
    subject = batcher([lane])
    tasks = [submit(subject, user, [user, POISON if user == 2 else 9]) for user in range(5)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for user, answer in enumerate(answers):
        if user == 2:
            assert isinstance(answer, InferenceFailed)
        else:
            assert isinstance(answer, RankedRequest)
            assert answer.scores.tolist() == expected(user, [user, 9])
    assert subject.queues.rows == 0


async def test_healthy_batch_follows_a_failed_one():
    subject = batcher([FakeLane()])
    with pytest.raises(InferenceFailed):
        await submit(subject, 1, [POISON])
    assert (await submit(subject, 1, [2])).scores.tolist() == expected(1, [2])


async def test_score_that_is_not_finite_fails_its_request_only():
    subject = batcher([FakeLane()])
    sick, healthy = submit(subject, 1, [1, NOT_A_NUMBER]), submit(subject, 2, [3])
    with pytest.raises(InferenceFailed):
        await sick
    assert (await healthy).scores.tolist() == expected(2, [3])


async def test_each_failed_request_has_its_own_error():
    subject = batcher([FakeLane()])
    tasks = [submit(subject, user, [POISON]) for user in range(2)]
    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, InferenceFailed)
    assert isinstance(second, InferenceFailed)
    assert first is not second


async def test_poisoned_request_is_found_by_bisection():
    lane = FakeLane()
    subject = batcher([lane], max_batch_rows=16)
    tasks = [submit(subject, user, [POISON if user == 9 else 1.0]) for user in range(16)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [user for user, answer in enumerate(answers) if isinstance(answer, InferenceFailed)]
    assert failed == [9]
    assert lane.rows == [16, 8, 8, 4, 4, 2, 2, 1, 1]


@pytest.mark.parametrize("second", range(15))
async def test_two_poisoned_requests_of_a_batch_fail_alone(second):
    lane = FakeLane()
    subject = batcher([lane], max_batch_rows=16)
    tasks = [submit(subject, u, [POISON if u in (second, 15) else 1.0]) for u in range(16)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [user for user, answer in enumerate(answers) if isinstance(answer, InferenceFailed)]
    assert failed == [second, 15]


async def test_model_that_always_fails_runs_no_more_than_once_per_request():
    lane = FakeLane()
    subject = batcher([lane], max_batch_rows=16)
    tasks = [submit(subject, user, [POISON]) for user in range(16)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, InferenceFailed) for answer in answers)
    assert len(lane.batches) == 1 + 16


async def test_failed_batch_is_retried_before_later_requests():
    lane = FakeLane()
    subject = batcher([lane], max_batch_rows=2)
    tasks = [submit(subject, user, [POISON if user == 0 else 1.0]) for user in range(4)]
    done: list[asyncio.Future[RankedRequest]] = []
    for task in tasks:
        task.add_done_callback(done.append)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [tasks.index(task) for task in done] == [0, 1, 2, 3]


async def test_disconnected_request_is_not_retried():
    lane = FakeLane()
    subject = batcher([lane])
    leaver, poisoned, stayer = (
        submit(subject, user, [c]) for user, c in ((1, 1.0), (2, POISON), (3, 1.0))
    )
    await asyncio.sleep(0.001)
    leaver.cancel()
    await asyncio.gather(poisoned, stayer, return_exceptions=True)
    assert lane.rows == [3, 2, 1, 1]
    assert (await stayer).scores.tolist() == expected(3, [1])


async def test_batches_become_smaller_when_memory_runs_out():
    lane = FakeLane(memory_rows=5)
    metrics = Metrics()
    subject = batcher([lane], metrics=metrics)
    tasks = [submit(subject, user, [1.0, 2.0, 3.0]) for user in range(6)]
    for user, scored in enumerate(await asyncio.gather(*tasks)):
        assert scored.scores.tolist() == expected(user, [1.0, 2.0, 3.0])
    assert subject.queues.of(sums_model()).max_batch_rows <= 5
    limit = metrics.registry.get_sample_value("gatehouse_batch_limit_rows", {"model": "sums/1"})
    assert limit == subject.queues.of(sums_model()).max_batch_rows
    before = len(lane.batches)
    await submit(subject, 1, [1.0] * 12)
    assert max(lane.rows[before:]) <= 5


async def test_lanes_that_run_out_of_memory_together_halve_the_limit_once():
    lanes = [FakeLane(f"lane-{i}", memory_rows=8) for i in range(8)]
    subject = batcher(lanes)
    await asyncio.gather(*[submit(subject, user, [1.0] * 16) for user in range(8)])
    assert subject.queues.of(sums_model()).max_batch_rows == 8


async def test_single_row_that_does_not_fit_in_memory_fails():
    subject = batcher([FakeLane(memory_rows=0)])
    with pytest.raises(InferenceFailed):
        await submit(subject, 1, [1.0] * 3)


async def test_batch_limit_is_raised_again_after_many_good_batches():
    lane = FakeLane(memory_rows=5)
    subject = batcher([lane])
    await submit(subject, 1, [1.0] * 12)
    queue = subject.queues.of(sums_model())
    assert queue.max_batch_rows <= 5
    lane._memory_rows = None
    for _ in range(3 * RECOVERY_BATCHES):
        await submit(subject, 1, [1.0])
    assert queue.max_batch_rows == 16
    before = len(lane.batches)
    await submit(subject, 1, [1.0] * 16)
    assert lane.rows[before:] == [16]
