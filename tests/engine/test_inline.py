"""Batches that run on the event loop, because handing them to a lane would take longer."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch

from app.artifacts.program import Program
from app.engine.batch import Batch
from app.engine.batcher import INLINE_S
from app.engine.hardware import start_lanes
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


async def test_small_batch_does_not_hold_up_the_event_loop_while_a_lane_runs():
    lanes = [cheap_lane("lane-0"), cheap_lane("lane-1")]
    subject = with_known_cost(*lanes)
    large = submit(subject, 1, range(1, 9))
    await asyncio.sleep(0)
    small = submit(subject, 2, [1])
    await asyncio.gather(large, small)
    assert [lane.inline_rows for lane in lanes] == [[], []]


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


async def test_rows_of_two_models_run_on_lanes():
    lanes = [cheap_lane("lane-0"), cheap_lane("lane-1")]
    other = sums_model("other")
    subject = with_known_cost(*lanes)
    subject.learn(other, [(1, ROW_S), (8, 8 * ROW_S)])
    await asyncio.gather(submit(subject, 1, [1]), submit(subject, 2, [1], model=other))
    assert [lane.inline_rows for lane in lanes] == [[], []]


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
