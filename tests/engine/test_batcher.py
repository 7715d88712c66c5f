"""The batcher on virtual time: which rows run together, and when."""

import asyncio

import pytest

from app.engine.request import Priority
from app.ranking.batch import RankedRequest
from tests.support.batching import batcher, submit
from tests.support.clock import VirtualTimeLoop
from tests.support.fakes import FakeLane, expected, queued, sums_model


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def test_single_request_does_not_wait():
    lane = FakeLane()
    scored = await submit(batcher([lane]), 5, [1, 2])
    assert scored.scores.tolist() == expected(5, [1, 2])
    assert lane.batches == [(0.0, [2])]


async def test_request_has_its_queue_time_and_batch_timing():
    loop = asyncio.get_running_loop()
    subject = batcher([FakeLane(a_s=0.010)])
    requests = []
    for delay_s in (0.0, 0.004):
        await asyncio.sleep(delay_s)
        request = queued(1, [2])
        request.on_done = loop.create_future().set_result
        request.deadline = 10.0
        subject.submit(request)
        requests.append(request)
    await asyncio.sleep(1)
    assert [request.queue_s for request in requests] == pytest.approx([0.0, 0.006])
    for request in requests:
        assert request.timing is not None
        assert request.timing.compute_s == 0.010


async def test_requests_that_arrive_together_share_a_batch():
    lane = FakeLane()
    subject = batcher([lane])
    tasks = [submit(subject, user, [user * 10 + 1]) for user in range(5)]
    for user, scored in enumerate(await asyncio.gather(*tasks)):
        assert scored.scores.tolist() == expected(user, [user * 10 + 1])
    assert lane.batches == [(0.0, [1] * 5)]


async def test_second_half_of_a_burst_runs_right_after_the_first():
    lane = FakeLane(a_s=0.010)
    subject = batcher([lane], max_batch_rows=4, max_wait_s=5.0)
    await asyncio.gather(*(submit(subject, user, [1]) for user in range(8)))
    assert lane.batches == [(0.0, [1] * 4), (0.010, [1] * 4)]


async def test_next_batch_fills_while_the_lane_is_busy():
    lane = FakeLane(a_s=0.010)
    subject = batcher([lane])
    first = submit(subject, 0, [1])
    await asyncio.sleep(0.001)
    others = [submit(subject, user, [1]) for user in range(1, 4)]
    await asyncio.gather(first, *others)
    assert lane.batches == [(0.0, [1]), (0.010, [1, 1, 1])]


async def test_max_wait_runs_from_the_arrival_of_the_oldest_row():
    lane = FakeLane()
    subject = batcher([lane], max_wait_s=0.005)
    first = submit(subject, 1, [1])
    await asyncio.sleep(0.003)
    second = submit(subject, 2, [1])
    await asyncio.gather(first, second)
    assert lane.batches == [(0.005, [1, 1])]


async def test_full_batch_ends_the_wait():
    lane = FakeLane()
    subject = batcher([lane], max_batch_rows=4, max_wait_s=5.0)
    first = submit(subject, 1, [1])
    await asyncio.sleep(0.001)
    rest = [submit(subject, user, [1]) for user in (2, 3, 4)]
    await asyncio.gather(first, *rest)
    assert lane.batches == [(0.001, [1] * 4)]


async def test_time_behind_a_busy_lane_counts_towards_max_wait():
    lane = FakeLane(a_s=0.010)
    subject = batcher([lane], max_batch_rows=4, max_wait_s=0.005)
    full = submit(subject, 1, [1] * 4)
    await asyncio.sleep(0.001)
    late = submit(subject, 2, [1])
    await asyncio.gather(full, late)
    assert lane.batches == [(0.0, [4]), (0.010, [1])]


async def test_large_request_is_split_over_idle_lanes():
    lanes = [FakeLane("lane-0"), FakeLane("lane-1")]
    candidates = list(range(12))
    scored = await submit(batcher(lanes), 3, candidates)
    assert scored.scores.tolist() == expected(3, candidates)
    assert sorted(lane.batches for lane in lanes) == [[(0.0, [6])], [(0.0, [6])]]


async def test_chunks_of_a_request_larger_than_a_batch_are_gathered():
    lane = FakeLane()
    candidates = list(range(50))
    scored = await submit(batcher([lane]), 3, candidates)
    assert scored.scores.tolist() == expected(3, candidates)
    assert lane.rows == [16, 16, 14, 4]


@pytest.mark.parametrize("rows", range(1, 60))
async def test_no_chunk_is_smaller_than_min_chunk_rows(rows):
    lane = FakeLane()
    await submit(batcher([lane]), 1, [1] * rows)
    chunks = [chunk for _, batch in lane.batches for chunk in batch]
    assert sum(chunks) == rows
    assert min(chunks) >= min(4, rows)
    assert max(lane.rows) <= 16


async def test_small_request_overtakes_the_chunks_of_a_large_one():
    lane = FakeLane(a_s=0.010)
    subject = batcher([lane])
    large = submit(subject, 1, list(range(64)))
    await asyncio.sleep(0.001)
    small = submit(subject, 2, [7])
    await small
    assert asyncio.get_running_loop().time() == pytest.approx(0.030)
    assert not large.done()
    assert (await large).scores.tolist() == expected(1, list(range(64)))


async def test_models_take_turns():
    lane = FakeLane()
    subject = batcher([lane])
    a, b = sums_model("a"), sums_model("b")
    tasks = [submit(subject, 1, [1] * 16, model=model) for model in (a, a, a, b)]
    assert await order_of_results(tasks) == [0, 3, 1, 2]


async def test_model_with_full_batches_does_not_keep_another_waiting():
    lane = FakeLane()
    subject = batcher([lane], max_wait_s=0.005)
    flood = [submit(subject, 1, [1] * 16, model=sums_model("a")) for _ in range(10)]
    await asyncio.sleep(0.001)
    await submit(subject, 2, [1], model=sums_model("b"))
    assert asyncio.get_running_loop().time() <= 0.040
    await asyncio.gather(*flood)


async def order_of_results(tasks):
    done: list[asyncio.Future[RankedRequest]] = []
    for task in tasks:
        task.add_done_callback(done.append)
    await asyncio.gather(*tasks)
    return [tasks.index(task) for task in done]


async def test_higher_priority_runs_first():
    subject = batcher([FakeLane()], max_batch_rows=4)
    priorities = [Priority.LOW, Priority.NORMAL, Priority.LOW, Priority.HIGH, Priority.NORMAL]
    tasks = [submit(subject, 1, [1] * 4, priority=priority) for priority in priorities]
    assert await order_of_results(tasks) == [3, 1, 4, 0, 2]


async def test_lower_priority_fills_up_a_batch():
    lane = FakeLane()
    subject = batcher([lane], max_batch_rows=4)
    low = submit(subject, 1, [1] * 2, priority=Priority.LOW)
    high = submit(subject, 2, [1] * 2, priority=Priority.HIGH)
    await asyncio.gather(low, high)
    assert lane.batches == [(0.0, [2, 2])]


async def test_low_priority_does_not_starve():
    subject = batcher([FakeLane(a_s=0.010)], max_batch_rows=4)
    flood: list[asyncio.Future[RankedRequest]] = []

    async def overload():
        while True:
            flood.append(submit(subject, 1, [1] * 4, priority=Priority.HIGH))
            await asyncio.sleep(0.009)

    attack = asyncio.create_task(overload())
    await asyncio.sleep(0.001)
    await submit(subject, 2, [1] * 4, priority=Priority.LOW)
    assert asyncio.get_running_loop().time() == pytest.approx(0.56, abs=0.06)
    attack.cancel()
    await asyncio.gather(*flood)


async def test_old_queue_does_not_keep_urgent_requests_waiting():
    subject = batcher([FakeLane(a_s=0.010)], max_batch_rows=4)
    bulk = [submit(subject, 1, [1] * 4, priority=Priority.LOW) for _ in range(200)]
    for _ in range(10):
        await asyncio.sleep(0.100)
        await submit(subject, 2, [1], timeout_s=0.050, priority=Priority.HIGH)
    await asyncio.gather(*bulk)


async def test_old_queue_of_a_model_does_not_keep_another_model_waiting():
    subject = batcher([FakeLane(a_s=0.010)], max_batch_rows=4)
    flood = [submit(subject, 1, [1] * 4, model=sums_model("a")) for _ in range(200)]
    for _ in range(10):
        await asyncio.sleep(0.100)
        await submit(subject, 2, [1], timeout_s=0.050, model=sums_model("b"))
    await asyncio.gather(*flood)


async def test_more_urgent_of_two_models_runs_first():
    a, b = sums_model("a"), sums_model("b")
    subject = batcher([FakeLane()])
    tasks = [
        submit(subject, 1, [1] * 16, model=a),
        submit(subject, 2, [1] * 16, model=a),
        submit(subject, 3, [1] * 16, model=b, priority=Priority.HIGH),
    ]
    assert await order_of_results(tasks) == [2, 0, 1]


async def test_repr_shows_queued_and_running_batches():
    lane = FakeLane()
    subject = batcher([lane])
    tasks = [submit(subject, 1, [1] * 40)]
    await asyncio.sleep(0.001)
    assert repr(subject) == (
        "<Batcher waiting {'sums/1': <24 rows: normal [16:40]>}, "
        "running {'lane-0': <sums/1 [0:16]>}, idle []>"
    )
    assert subject.queues.chunks == 1
    await asyncio.gather(*tasks)
    assert repr(subject) == "<Batcher waiting {}, running {}, idle ['lane-0']>"
