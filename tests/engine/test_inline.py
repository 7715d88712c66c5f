"""Batches that run on the event loop, because handing them to a lane would take longer."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch

from app.artifacts.program import Program
from app.engine.batch import Batch
from app.engine.hardware import start_lanes
from app.engine.inline import INLINE_S, longest_inline_s
from app.engine.lanes import Lane, run
from app.errors import InferenceFailed
from app.telemetry.metrics import Metrics
from tests.support.batching import batcher, submit
from tests.support.clock import VirtualTimeLoop
from tests.support.fakes import POISON, FakeLane, chunk_of, expected, request, sums_model

ROW_S = INLINE_S / 4


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def cheap_lane(name="lane-0"):
    return FakeLane(name, a_s=0.0, b_s=ROW_S, runs_inline=True)


def with_known_cost(*lanes, model=None):
    subject = batcher(lanes)
    subject.learn(model or sums_model(), [(1, ROW_S), (8, 8 * ROW_S)])
    return subject


async def test_small_batch_runs_on_the_event_loop_while_nothing_else_runs():
    lane = cheap_lane()
    subject = with_known_cost(lane)
    scored = await asyncio.gather(submit(subject, 1, [2, 3]), submit(subject, 4, [5]))
    assert [result.scores.tolist() for result in scored] == [expected(1, [2, 3]), expected(4, [5])]
    assert (lane.inline_rows, lane.batches) == ([3], [])


async def test_large_batch_runs_on_a_lane():
    lane = cheap_lane()
    scored = await submit(with_known_cost(lane), 1, [1, 2, 3, 4, 5])
    assert scored.scores.tolist() == expected(1, [1, 2, 3, 4, 5])
    assert (lane.inline_rows, lane.rows) == ([], [5])


async def test_batch_of_unknown_cost_runs_on_a_lane():
    lane = cheap_lane()
    await submit(batcher([lane]), 1, [1])
    assert (lane.inline_rows, lane.rows) == ([], [1])


async def test_model_whose_cost_depends_on_values_runs_on_a_lane():
    lane = cheap_lane()
    model = sums_model()
    program = Program(model.program._module, model.manifest, torch.device("cpu"))
    unsteady = replace(model, program=program)
    subject = with_known_cost(lane, model=unsteady)
    await submit(subject, 1, [1], model=unsteady)
    assert (lane.inline_rows, lane.rows) == ([], [1])


async def test_small_batch_runs_on_the_event_loop_while_a_lane_runs():
    lanes = [cheap_lane("lane-0"), cheap_lane("lane-1")]
    subject = with_known_cost(*lanes)
    large = submit(subject, 1, range(1, 9))
    await asyncio.sleep(0)
    scored = await submit(subject, 2, [1])
    assert scored.scores.tolist() == expected(2, [1])
    assert sorted(lane.inline_rows for lane in lanes) == [[], [1]]
    assert (await large).scores.tolist() == expected(1, range(1, 9))


async def test_batch_that_a_lane_was_slow_with_still_runs_on_the_event_loop():
    """A lane that waits for a core or for the interpreter's lock says nothing of the batch."""
    lane = FakeLane(a_s=0.0, b_s=100 * ROW_S, cpu_share=0.01, runs_inline=True)
    subject = batcher([lane])
    for number in range(3):
        await submit(subject, number, [1])
    assert (lane.rows, lane.inline_rows) == ([1], [1, 1])


def test_limit_grows_with_the_requests_of_a_batch_up_to_a_millisecond():
    assert longest_inline_s(1) == longest_inline_s(5) == INLINE_S
    assert longest_inline_s(6) > INLINE_S
    assert longest_inline_s(12) == 2 * longest_inline_s(6)
    assert longest_inline_s(13) == longest_inline_s(1000) == 1e-3


async def test_batch_of_many_small_requests_runs_on_the_event_loop():
    """Five rows are too long for one request, but not for five and more."""
    lane = cheap_lane()
    subject = with_known_cost(lane)
    await asyncio.gather(*(submit(subject, number, [number]) for number in range(8)))
    assert (lane.inline_rows, lane.rows) == ([], [8])
    lane = FakeLane(a_s=0.0, b_s=ROW_S / 2, runs_inline=True)
    subject = batcher([lane])
    subject.learn(sums_model(), [(1, ROW_S / 2), (8, 4 * ROW_S)])
    await asyncio.gather(*(submit(subject, number, [number]) for number in range(12)))
    assert (lane.inline_rows, lane.rows) == ([12], [])


async def test_lane_that_needs_its_own_thread_never_runs_inline():
    lane = FakeLane(a_s=0.0, b_s=ROW_S)
    await submit(with_known_cost(lane), 1, [1])
    assert (lane.inline_rows, lane.rows) == ([], [1])


async def test_bad_request_in_an_inline_batch_fails_alone():
    lane = cheap_lane()
    subject = with_known_cost(lane)
    good, bad, other = (
        submit(subject, 1, [1]),
        submit(subject, 2, [POISON]),
        submit(subject, 3, [2]),
    )
    with pytest.raises(InferenceFailed):
        await bad
    assert (await good).scores.tolist() == expected(1, [1])
    assert (await other).scores.tolist() == expected(3, [2])
    assert lane.inline_rows[0] == 3


async def test_batch_runs_on_a_lane_while_rows_of_another_model_wait():
    lanes = [cheap_lane("lane-0"), cheap_lane("lane-1")]
    other = sums_model("other")
    subject = with_known_cost(*lanes)
    subject.learn(other, [(1, ROW_S), (8, 8 * ROW_S)])
    await asyncio.gather(submit(subject, 1, [1]), submit(subject, 2, [1], model=other))
    assert sorted((lane.rows, lane.inline_rows) for lane in lanes) == [([], [1]), ([1], [])]


class TestLane:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    async def test_inline_result_equals_that_of_the_thread(self):
        seen = []

        def executor(model, chunks):
            seen.append(threading.current_thread())
            return run(model, chunks)

        lane = Lane("lane-0", asyncio.get_running_loop(), executor=executor, runs_inline=True)
        try:
            batch = Batch.of(
                sums_model(), [chunk_of(request(1, [2, 3])), chunk_of(request(4, [5]))]
            )
            inline, threaded = lane.run_inline(batch), await lane.run(batch)
        finally:
            lane.stop()
        assert seen[0] is threading.current_thread()
        assert seen[1] is not threading.current_thread()
        assert not isinstance(inline.scores, Exception)
        assert not isinstance(threaded.scores, Exception)
        assert inline.scores.tobytes() == threaded.scores.tobytes()
        for here, there in zip(inline.ranked, threaded.ranked, strict=True):
            assert here is not None
            assert there is not None
            assert here.scores.tobytes() == there.scores.tobytes()
            assert here.ranking.tolist() == there.ranking.tolist()

    async def test_cpu_lanes_run_inline(self):
        lanes = start_lanes(
            torch.device("cpu"),
            1,
            processes=1,
            max_batch_rows=8,
            metrics=Metrics(),
            on_lost=lambda: None,
        )
        assert [lane.runs_inline for lane in lanes] == [True]
        assert torch.get_num_threads() == 1
        for lane in lanes:
            lane.stop()
