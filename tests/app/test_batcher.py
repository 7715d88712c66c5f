"""The batcher on virtual time: scenarios, then every promise under random schedules."""

import asyncio
import logging
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from app.engine.batcher import Batcher
from app.engine.queue import Scored
from app.engine.terms import Terms
from app.errors import DeadlineExceeded, GatehouseError, InferenceFailed, Overloaded
from app.telemetry.metrics import Metrics
from tests.app.fakes import NOT_A_NUMBER, POISON, FakeLane, expected, limits, request, sums_model
from tests.clock import VirtualTimeLoop


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL)  # failing batches are logged with their tracebacks


def batcher(lanes, **changes):
    return Batcher(lanes, metrics=Metrics(), **limits(**changes))


def submit(subject, user, candidates, *, timeout_s=10.0, model=None) -> "asyncio.Task[Scored]":
    loop = asyncio.get_running_loop()
    score = subject.score(
        model or sums_model(), request(user, candidates), Terms(loop.time() + timeout_s)
    )
    return loop.create_task(score)


async def test_a_lonely_request_does_not_wait():
    lane = FakeLane()
    scored = await submit(batcher([lane]), 5, [1, 2])
    assert scored.scores.tolist() == expected(5, [1, 2])
    assert lane.batches == [(0.0, [2])]
    assert scored.queue_s == 0


async def test_requests_that_arrive_together_share_a_batch():
    lane = FakeLane()
    subject = batcher([lane])
    tasks = [submit(subject, user, [user * 10 + 1]) for user in range(5)]
    for user, scored in enumerate(await asyncio.gather(*tasks)):
        assert scored.scores.tolist() == expected(user, [user * 10 + 1])
    assert lane.batches == [(0.0, [1] * 5)]


async def test_the_second_half_of_a_burst_follows_the_first_at_once():
    lane = FakeLane(a_s=0.010)
    subject = batcher([lane], max_batch_rows=4, max_wait_s=5.0)
    await asyncio.gather(*(submit(subject, user, [1]) for user in range(8)))
    assert lane.batches == [(0.0, [1] * 4), (0.010, [1] * 4)]


async def test_while_the_lane_is_busy_the_next_batch_fills():
    lane = FakeLane(a_s=0.010)
    subject = batcher([lane])
    first = submit(subject, 0, [1])
    await asyncio.sleep(0.001)
    others = [submit(subject, user, [1]) for user in range(1, 4)]
    await asyncio.gather(first, *others)
    assert lane.batches == [(0.0, [1]), (0.010, [1, 1, 1])]


async def test_company_is_awaited_from_the_arrival_of_the_oldest_row():
    lane = FakeLane()
    subject = batcher([lane], max_wait_s=0.005)
    first = submit(subject, 1, [1])
    await asyncio.sleep(0.003)
    second = submit(subject, 2, [1])
    await asyncio.gather(first, second)
    assert lane.batches == [(0.005, [1, 1])]


async def test_a_full_batch_ends_the_wait_for_company():
    lane = FakeLane()
    subject = batcher([lane], max_batch_rows=4, max_wait_s=5.0)
    first = submit(subject, 1, [1])
    await asyncio.sleep(0.001)
    rest = [submit(subject, user, [1]) for user in (2, 3, 4)]
    await asyncio.gather(first, *rest)
    assert lane.batches == [(0.001, [1] * 4)]


async def test_time_behind_a_busy_lane_counts_as_waiting():
    lane = FakeLane(a_s=0.010)
    subject = batcher([lane], max_batch_rows=4, max_wait_s=0.005)
    full = submit(subject, 1, [1] * 4)
    await asyncio.sleep(0.001)
    late = submit(subject, 2, [1])
    await asyncio.gather(full, late)
    assert lane.batches == [(0.0, [4]), (0.010, [1])]


async def test_a_large_request_is_split_over_idle_lanes():
    lanes = [FakeLane("lane-0"), FakeLane("lane-1")]
    candidates = list(range(12))
    scored = await submit(batcher(lanes), 3, candidates)
    assert scored.scores.tolist() == expected(3, candidates)
    assert sorted(lane.batches for lane in lanes) == [[(0.0, [6])], [(0.0, [6])]]


async def test_a_request_larger_than_a_batch_is_gathered():
    lane = FakeLane()
    candidates = list(range(50))
    scored = await submit(batcher([lane]), 3, candidates)
    assert scored.scores.tolist() == expected(3, candidates)
    assert lane.rows == [16, 16, 14, 4]


@pytest.mark.parametrize("rows", range(1, 60))
async def test_no_piece_is_below_the_knee(rows):
    lane = FakeLane()
    await submit(batcher([lane]), 1, [1] * rows)
    pieces = [piece for _, batch in lane.batches for piece in batch]
    assert sum(pieces) == rows
    assert min(pieces) >= min(4, rows)
    assert max(lane.rows) <= 16


async def test_a_small_request_overtakes_the_pieces_of_a_large_one():
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
    done: list[asyncio.Task[Scored]] = []
    for task in tasks:
        task.add_done_callback(done.append)
    await asyncio.gather(*tasks)
    assert [tasks.index(task) for task in done] == [0, 3, 1, 2]


async def test_a_full_queue_refuses():
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


async def test_rows_that_nobody_waits_for_refuse_nobody():
    lane = FakeLane(a_s=1.0)
    subject = batcher([lane], max_queue_rows=10, max_wait_s=0.001)
    running = submit(subject, 1, [1])
    await asyncio.sleep(0.010)
    hurried = submit(subject, 2, [1] * 10, timeout_s=0.050)
    with pytest.raises(DeadlineExceeded):
        await hurried
    assert (await submit(subject, 3, [4])).scores.tolist() == expected(3, [4])
    await running


async def test_an_empty_queue_never_refuses():
    candidates = [1.0] * 30
    scored = await submit(batcher([FakeLane()], max_queue_rows=10), 1, candidates)
    assert scored.scores.tolist() == expected(1, candidates)


async def test_a_request_cancelled_in_the_queue_is_never_computed():
    lane = FakeLane()
    subject = batcher([lane])
    first = submit(subject, 1, [1])
    await asyncio.sleep(0.001)
    leaver, stayer = submit(subject, 2, [1, 2]), submit(subject, 3, [4])
    await asyncio.sleep(0)
    leaver.cancel()
    assert (await stayer).scores.tolist() == expected(3, [4])
    assert lane.rows == [1, 1]
    assert subject.queued_rows == 0
    await first


async def test_a_caller_that_leaves_a_running_batch_does_not_spoil_it():
    lane = FakeLane()
    subject = batcher([lane])
    leaver, stayer = submit(subject, 1, [1]), submit(subject, 2, [5])
    await asyncio.sleep(0.001)
    leaver.cancel()
    assert (await stayer).scores.tolist() == expected(2, [5])
    assert (await submit(subject, 3, [1])).scores.tolist() == expected(3, [1])


async def test_only_the_poisoned_request_of_a_batch_fails():
    lane = FakeLane()
    subject = batcher([lane])
    tasks = [submit(subject, user, [user, POISON if user == 2 else 9]) for user in range(5)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for user, answer in enumerate(answers):
        if user == 2:
            assert isinstance(answer, InferenceFailed)
        else:
            assert isinstance(answer, Scored)
            assert answer.scores.tolist() == expected(user, [user, 9])
    assert subject.queued_rows == 0


async def test_a_healthy_batch_follows_a_failed_one():
    subject = batcher([FakeLane()])
    with pytest.raises(InferenceFailed):
        await submit(subject, 1, [POISON])
    assert (await submit(subject, 1, [2])).scores.tolist() == expected(1, [2])


async def test_a_score_that_is_no_number_fails_its_owner_alone():
    subject = batcher([FakeLane()])
    sick, healthy = submit(subject, 1, [1, NOT_A_NUMBER]), submit(subject, 2, [3])
    with pytest.raises(InferenceFailed):
        await sick
    assert (await healthy).scores.tolist() == expected(2, [3])


async def test_each_waiting_request_gets_an_error_of_its_own():
    subject = batcher([FakeLane()])
    tasks = [submit(subject, user, [POISON]) for user in range(2)]
    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, InferenceFailed)
    assert isinstance(second, InferenceFailed)
    assert first is not second


async def test_a_request_past_its_deadline_is_dropped_and_not_computed():
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


async def test_a_late_answer_is_not_sent_as_a_success():
    with pytest.raises(DeadlineExceeded):
        await submit(batcher([FakeLane(a_s=0.100)]), 1, [1], timeout_s=0.099)


async def test_the_state_can_be_read():
    lane = FakeLane()
    subject = batcher([lane])
    tasks = [submit(subject, 1, [1] * 40)]
    await asyncio.sleep(0.001)
    assert repr(subject) == "<Batcher 24 rows wait {'sums/1': [16:40]}, idle lanes []>"
    assert subject.queued_requests == 1
    await asyncio.gather(*tasks)


request_plans = st.lists(
    st.tuples(
        st.floats(0, 0.05),  # when it arrives (s)
        st.integers(1, 40),  # rows
        st.sampled_from(["good", "good", "good", "poison", "nan", "cancel", "hurry"]),
        st.sampled_from(["a", "b"]),  # model
    ),
    max_size=25,
)


@settings(max_examples=150)
@given(
    plans=request_plans,
    lanes=st.integers(1, 3),
    max_wait_s=st.sampled_from([0.0, 0.004]),
    max_batch_rows=st.integers(4, 24),
)
def test_under_any_schedule_every_request_is_answered_once_with_its_own_rows(
    plans, lanes, max_wait_s, max_batch_rows
):
    async def scenario():
        fakes = [FakeLane(f"lane-{i}", a_s=0.003, b_s=0.0003) for i in range(lanes)]
        subject = batcher(
            fakes, max_wait_s=max_wait_s, max_batch_rows=max_batch_rows, max_queue_rows=150
        )
        answers = await asyncio.gather(
            *(_play(subject, user, plan) for user, plan in enumerate(plans))
        )
        await asyncio.sleep(60)  # whatever still runs for a caller that left
        assert subject.queued_rows == 0
        assert not any(fake.busy for fake in fakes)
        assert max([0, *(rows for fake in fakes for rows in fake.rows)]) <= max_batch_rows
        for fake in fakes:
            assert all(a < b for (a, _), (b, _) in pairwise(fake.batches))
        return answers

    for (_, rows, kind, _), (user, answer) in zip(plans, _run(scenario()), strict=True):
        if isinstance(answer, Scored):
            assert kind not in ("poison", "nan")
            assert answer.scores.tolist() == expected(user, _candidates(user, rows, kind))
        elif isinstance(answer, InferenceFailed):
            assert kind in ("poison", "nan")
        elif isinstance(answer, asyncio.CancelledError):
            assert kind == "cancel"
        elif isinstance(answer, DeadlineExceeded):
            assert kind == "hurry"
        else:
            assert isinstance(answer, Overloaded)


@settings(max_examples=50)
@given(
    plans=st.lists(st.tuples(st.floats(0, 0.05), st.integers(1, 40)), min_size=1, max_size=25),
    max_wait_s=st.sampled_from([0.0, 0.004]),
)
def test_no_lane_is_idle_while_a_row_has_waited_long_enough(plans, max_wait_s):
    async def scenario():
        fakes = [FakeLane(f"lane-{i}", a_s=0.003, b_s=0.0003) for i in range(2)]
        subject = batcher(fakes, max_wait_s=max_wait_s)
        done = asyncio.gather(
            *(_play(subject, user, (*plan, "good", "a")) for user, plan in enumerate(plans))
        )
        while not done.done():
            await asyncio.sleep(0.0005)
            if not all(fake.busy for fake in fakes) and not subject._dispatch_is_due:
                for queue in subject._queues.values():
                    waited_s = asyncio.get_running_loop().time() - queue.oldest_arrival
                    assert waited_s <= max_wait_s + 1e-9
        await done

    _run(scenario())


def _candidates(user, rows, kind):
    candidates = [float(user * 100 + row) for row in range(rows)]
    if kind == "poison":
        candidates[rows // 2] = POISON
    if kind == "nan":
        candidates[rows // 2] = NOT_A_NUMBER
    return candidates


async def _play(subject, user, plan):
    arrival_s, rows, kind, model = plan
    await asyncio.sleep(arrival_s)
    task = submit(
        subject,
        user,
        _candidates(user, rows, kind),
        timeout_s=0.006 if kind == "hurry" else 1000.0,
        model=sums_model(model),
    )
    if kind == "cancel":
        await asyncio.sleep(0.002)
        task.cancel()
    try:
        return user, await task
    except (GatehouseError, asyncio.CancelledError) as error:
        return user, error


def _run(scenario):
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(scenario)
