"""Which requests are refused before they are queued, and when to retry; on virtual time."""

import asyncio
import math
import random
from typing import Any

import pytest

from app.engine.request import Priority
from app.errors import DeadlineExceeded, DeadlineUnmeetable, Overloaded
from app.ranking.batch import RankedRequest
from tests.support.batching import batcher, submit
from tests.support.clock import VirtualTimeLoop
from tests.support.fakes import FakeLane, expected, sums_model


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def test_full_queue_refuses():
    lane = FakeLane()
    subject = batcher([lane], max_queue_rows=10)
    running = submit(subject, 1, [1])
    await asyncio.sleep(0.001)
    queued = submit(subject, 2, [1] * 8)
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await submit(subject, 3, [1] * 3)
    fits = submit(subject, 4, [1] * 2)
    await asyncio.gather(running, queued, fits)


async def test_rows_of_finished_requests_do_not_count_as_queued():
    lane = FakeLane(a_s=1.0)
    subject = batcher([lane], max_queue_rows=10, max_wait_s=0.001)
    running = submit(subject, 1, [1])
    await asyncio.sleep(0.010)
    hurried = submit(subject, 2, [1] * 10, timeout_s=0.050)
    with pytest.raises(DeadlineExceeded):
        await hurried
    assert (await submit(subject, 3, [4])).scores.tolist() == expected(3, [4])
    await running


async def test_empty_queue_never_refuses():
    candidates = [1.0] * 30
    scored = await submit(batcher([FakeLane()], max_queue_rows=10), 1, candidates)
    assert scored.scores.tolist() == expected(1, candidates)


async def test_request_past_its_deadline_is_dropped_and_not_computed():
    lane = FakeLane(a_s=0.100)
    subject = batcher([lane])
    first = submit(subject, 1, [1])
    await asyncio.sleep(0.001)
    with pytest.raises(DeadlineExceeded):
        await submit(subject, 2, [1] * 3, timeout_s=0.050)
    assert asyncio.get_running_loop().time() == pytest.approx(0.051)
    await first
    await submit(subject, 3, [1])
    assert lane.rows == [1, 1]


async def test_late_result_is_an_error():
    with pytest.raises(DeadlineExceeded):
        await submit(batcher([FakeLane(a_s=0.100)]), 1, [1], timeout_s=0.099)


COST = [(1, 0.011), (16, 0.026)]  # 10 ms a batch and 1 ms a row


async def busy(lanes=1, **changes):
    """A batcher whose lanes are at a full batch for 26 ms from now on; it knows its costs."""
    fakes = [FakeLane(f"lane-{i}", a_s=0.010, b_s=0.001) for i in range(lanes)]
    subject = batcher(fakes, **changes)
    subject.learn(sums_model(), COST)
    running = [submit(subject, 0, [1] * 16) for _ in range(lanes)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return subject, running


def wait_s(subject, rows, priority=Priority.NORMAL):
    now = asyncio.get_running_loop().time()
    return subject.wait_s(sums_model(), rows, priority, now)


async def test_forecast_adds_running_and_queued_work_and_the_request_itself():
    subject, running = await busy()
    assert wait_s(subject, 1) == pytest.approx(0.026 + 0.011)
    running.append(submit(subject, 1, [1] * 8))
    await asyncio.sleep(0)
    assert wait_s(subject, 1) == pytest.approx(0.026 + 0.018 + 0.011)
    await asyncio.sleep(0.010)
    assert wait_s(subject, 1) == pytest.approx(0.016 + 0.018 + 0.011)
    await asyncio.gather(*running)


async def test_small_request_does_not_wait_for_all_of_a_large_one():
    subject, running = await busy()
    running.append(submit(subject, 1, [1] * 160))
    await asyncio.sleep(0)
    assert wait_s(subject, 1) == pytest.approx(0.026 + 0.026 + 0.011)
    assert wait_s(subject, 32) == pytest.approx(0.026 + 2 * 0.026 + 0.052)  # a turn each, twice
    await asyncio.gather(*running)


async def test_forecast_leaves_out_lower_priorities():
    subject, running = await busy()
    running.append(submit(subject, 1, [1] * 16, priority=Priority.LOW))
    await asyncio.sleep(0)
    assert wait_s(subject, 1) == pytest.approx(0.026 + 0.011)
    assert wait_s(subject, 1, Priority.LOW) == pytest.approx(0.026 + 0.026 + 0.011)
    await asyncio.gather(*running)


async def test_lanes_share_the_queued_work_of_all_models():
    subject, running = await busy(lanes=2)
    subject.learn(sums_model("other"), [(1, 0.101), (16, 0.116)])
    running.append(submit(subject, 1, [1] * 4, model=sums_model("other")))
    await asyncio.sleep(0)
    assert wait_s(subject, 1) == pytest.approx((0.026 + 0.026 + 0.104) / 2 + 0.011)
    await asyncio.gather(*running)


async def test_forecast_counts_another_model_by_turns():
    subject, running = await busy()
    other = sums_model("other")
    subject.learn(other, COST)
    running += [submit(subject, 1, [1] * 16, model=other) for _ in range(20)]
    await asyncio.sleep(0)
    assert wait_s(subject, 1) == pytest.approx(0.026 + 0.026 + 0.011)
    scored = submit(subject, 2, [7], timeout_s=0.080)
    assert (await scored).scores.tolist() == expected(2, [7])
    running += [submit(subject, 1, [1] * 16, model=other, priority=Priority.HIGH) for _ in range(3)]
    await asyncio.sleep(0)
    assert wait_s(subject, 1) >= 4 * 0.026  # those go first
    await asyncio.gather(*running)


async def test_forecast_matches_the_actual_wait():
    loop = asyncio.get_running_loop()
    subject, running = await busy()
    ends: list[tuple[float, float]] = []

    async def play(foreseen, task):
        await task
        ends.append((foreseen, loop.time()))

    for user in range(20):
        rows = 1 + user * 7 % 16
        foreseen = loop.time() + wait_s(subject, rows)
        running.append(asyncio.create_task(play(foreseen, submit(subject, user, [1] * rows))))
        await asyncio.sleep(0)
    await asyncio.gather(*running)
    for foreseen, end in ends:
        assert end == pytest.approx(foreseen, abs=0.030)  # about a batch: others fill up the last


async def test_request_that_cannot_meet_its_deadline_is_refused_at_once():
    subject, running = await busy()
    metrics = subject._metrics.registry
    with pytest.raises(DeadlineUnmeetable) as refused:
        await submit(subject, 1, [1], timeout_s=0.030)
    assert refused.value.retry_after_s == 1
    assert asyncio.get_running_loop().time() == 0
    shed = metrics.get_sample_value("gatehouse_shed_total", {"reason": "deadline-unmeetable"})
    assert shed == 1
    running.append(submit(subject, 1, [1], timeout_s=0.040))
    await asyncio.gather(*running)


async def test_idle_lane_never_refuses_because_of_a_forecast():
    subject = batcher([FakeLane(a_s=0.010)])
    subject.learn(sums_model(), [(1, 100.0), (16, 100.0)])
    for _ in range(100):
        await submit(subject, 1, [1], timeout_s=0.050)
    assert subject.queues.of(sums_model()).cost.of(1) < 0.1


async def test_refusal_has_retry_after():
    subject, running = await busy(max_queue_rows=4000)
    running.append(submit(subject, 1, [1] * 3200, timeout_s=100.0))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await submit(subject, 2, [1] * 2400, timeout_s=1000.0)
    # Half of what waits has to go: of 3200 rows, by turns with 2400 others, at 26 ms for 16.
    assert refused.value.retry_after_s == math.ceil(0.5 * (1 + 150 + 150) * 0.026)
    with pytest.raises(DeadlineUnmeetable) as late:
        await submit(subject, 2, [1] * 800, timeout_s=0.5)
    assert late.value.retry_after_s == math.ceil((1 + 50 + 50) * 0.026 - 0.5)
    await asyncio.gather(*running)


async def test_overload_is_served_at_full_rate_and_in_time():
    """Ten times what one lane can do is offered; what is accepted is in time, and the lane full."""
    lane = FakeLane(a_s=0.010, b_s=0.001)
    subject = batcher([lane], max_queue_rows=100_000)
    subject.learn(sums_model(), COST)
    loop = asyncio.get_running_loop()
    tasks = []
    while loop.time() < 5:
        tasks.append(submit(subject, 1, [1] * 4, timeout_s=0.2))
        await asyncio.sleep(0.0005)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    late = sum(isinstance(answer, DeadlineExceeded) for answer in answers)
    good = sum(isinstance(answer, RankedRequest) for answer in answers)
    capacity = 5 / 0.026 * 4
    assert good >= 0.95 * capacity
    assert late <= 0.05 * good


class UnevenLane(FakeLane):
    """A lane on a machine that others work on, too: a batch takes a fifth less, or a half more."""

    def __init__(self):
        super().__init__(a_s=0.020, b_s=0.001)
        self._random = random.Random(0)

    def submit(self, batch, on_result):
        pace = self._random.uniform(0.8, 1.5)
        self._a_s, self._b_s = 0.020 * pace, 0.001 * pace
        super().submit(batch, on_result)


async def test_uneven_batches_widen_the_margin():
    """What is accepted is in time even so, and the lane is full."""
    lane = UnevenLane()
    subject = batcher([lane], max_queue_rows=100_000)
    subject.learn(sums_model(), [(1, 0.024), (16, 0.041)])
    loop = asyncio.get_running_loop()
    tasks = []
    while loop.time() < 10:
        tasks.append(submit(subject, 1, [1] * 4, timeout_s=0.25))
        await asyncio.sleep(0.002)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    late = sum(isinstance(answer, DeadlineExceeded) for answer in answers)
    good = sum(isinstance(answer, RankedRequest) for answer in answers)
    capacity = 10 / (1.15 * 0.036) * 4
    assert good >= 0.95 * capacity
    assert late <= 0.03 * good


async def test_refusing_ends_after_a_moment():
    subject, running = await busy()
    assert not subject.is_refusing
    with pytest.raises(DeadlineUnmeetable):
        await submit(subject, 1, [1], timeout_s=0.030)
    assert subject.is_refusing
    await asyncio.sleep(0.2)
    assert not subject.is_refusing
    await asyncio.gather(*running)


async def test_queue_limit_applies_to_each_model_and_priority():
    subject, running = await busy(max_queue_rows=20)
    flood: dict[str, Any] = {"timeout_s": 100.0, "priority": Priority.LOW}
    running.append(submit(subject, 1, [1] * 20, **flood))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await submit(subject, 2, [1], **flood)
    running.append(submit(subject, 3, [1] * 20))
    running.append(submit(subject, 4, [1] * 20, model=sums_model("other"), **flood))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await submit(subject, 5, [1])
    await asyncio.gather(*running)


async def test_late_request_is_dropped_if_another_can_be_in_time():
    """The first batch takes longer than foreseen; who stood first behind it cannot be in time."""
    lane = FakeLane(a_s=0.010, b_s=0.001)
    subject = batcher([lane])
    subject.learn(sums_model(), COST)
    running = submit(subject, 0, [1] * 16)
    await asyncio.sleep(0)
    tight = submit(subject, 1, [1] * 8, timeout_s=0.046)
    easy = submit(subject, 2, [1] * 16, timeout_s=0.100)
    with pytest.raises(DeadlineExceeded):
        await tight
    await asyncio.gather(running, easy)
    assert lane.rows == [16, 16]


async def test_last_request_runs_although_it_seems_late_so_that_costs_are_learned():
    lane = FakeLane(a_s=0.010)
    subject = batcher([lane])
    subject.learn(sums_model(), COST)
    running = submit(subject, 0, [1])
    await asyncio.sleep(0)
    last = submit(subject, 1, [1] * 8, timeout_s=0.030)  # forecast: 11 + 18 ms
    await asyncio.sleep(0)
    subject.learn(sums_model(), [(1, 1.0), (16, 1.0)])  # and then the cost is overrated
    await asyncio.gather(running, last)
    assert lane.rows == [1, 8]
