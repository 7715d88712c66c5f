"""Real lanes on the normal loop."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from app.engine.batcher import Batcher
from app.engine.lanes import Lane, Part, collate
from app.engine.request import RequestOptions
from app.telemetry.metrics import Metrics
from tests.support.fakes import POISON, expected, limits, request, sums_model


@pytest.fixture
async def lane():
    lane = Lane("lane-0", asyncio.get_running_loop())
    yield lane
    lane.stop()


def part(user, candidates, start=0, stop=None):
    encoded = request(user, candidates)
    return Part(encoded.user, encoded.candidate, start, stop or len(candidates))


def test_parts_are_collated_one_after_the_other():
    batch = collate([part(1, [10, 11, 12], 1, 3), part(2, [20])])
    assert batch.user["u"].tolist() == [[1], [2]]
    assert batch.candidate["c"].tolist() == [[11], [12], [20]]
    assert batch.row_to_request.tolist() == [0, 0, 1]


def test_one_part_is_not_copied():
    only = part(1, [10, 11, 12], 1, 3)
    batch = collate([only])
    assert np.shares_memory(batch.candidate["c"], only.candidate["c"])
    assert batch.row_to_request.tolist() == [0, 0]


async def test_a_lane_runs_its_batches_in_its_own_thread_one_at_a_time(lane):
    outcomes = await asyncio.gather(
        *(lane.run(sums_model(), [part(user, [1, 2])]) for user in range(20))
    )
    for user, outcome in enumerate(outcomes):
        assert outcome.scores.tolist() == expected(user, [1, 2])


async def test_what_a_model_raises_is_an_outcome_and_the_lane_goes_on(lane):
    failed = await lane.run(sums_model(), [part(1, [POISON])])
    assert isinstance(failed.scores, Exception)
    assert "poison" in str(failed.scores)
    assert (await lane.run(sums_model(), [part(1, [2])])).scores.tolist() == [[3, 2]]


async def test_a_lane_uses_its_own_number_of_threads_and_changes_no_other():
    torch.get_num_threads()  # a thread's first operator, or this, takes what any thread set last
    torch.set_num_threads(2)
    try:
        other = Lane("lane-1", asyncio.get_running_loop(), threads=1)
        await other.run(sums_model(), [part(1, [2])])
        assert torch.get_num_threads() == 2
        other.stop()
    finally:
        torch.set_num_threads(1)


async def test_a_stopped_lane_is_not_alive():
    other = Lane("lane-1", asyncio.get_running_loop())
    assert other.is_alive(hang_s=1)
    assert repr(other) == "<Lane lane-1 idle>"
    other.stop()
    assert not other.is_alive(hang_s=1)
    assert repr(other) == "<Lane lane-1 stopped>"


async def test_a_lane_that_hangs_in_a_batch_is_not_alive(lane):
    release = threading.Event()

    class Hanging:
        manifest = sums_model().manifest

        class program:  # noqa: N801
            @staticmethod
            def run(batch):
                release.wait(30)
                return np.zeros((batch.rows, 2), np.float32)

    running = asyncio.ensure_future(lane.run(Hanging(), [part(1, [1])]))
    await asyncio.sleep(0)
    assert lane.is_alive(hang_s=1000)
    assert not lane.is_alive(hang_s=-1)  # any time at all is too long
    release.set()
    await running
    assert lane.is_alive(hang_s=-1)


async def test_threads_return_every_row_to_its_request():
    loop = asyncio.get_running_loop()
    workers = [Lane(f"lane-{i}", loop) for i in range(4)]
    subject = Batcher(workers, metrics=Metrics(), **limits(max_queue_rows=1_000_000))
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 80, 2000)

    async def one(user, size):
        candidates = rng.integers(0, 1000, size).astype(float).tolist()
        scored = await subject.score(
            sums_model(), request(user, candidates), RequestOptions(loop.time() + 60)
        )
        assert scored.scores.tolist() == expected(user, candidates)

    await asyncio.gather(*(one(user, size) for user, size in enumerate(sizes)))
    assert subject.backlog.rows == 0
    for worker in workers:
        worker.stop()


async def test_a_cancelled_wait_for_a_batch_leaves_no_error_behind(lane):
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    waiting = asyncio.create_task(lane.run(sums_model(), [part(1, [1.0])]))
    await asyncio.sleep(0)
    waiting.cancel()
    await lane.run(sums_model(), [part(1, [1.0])])  # reported after the cancelled one
    assert errors == []


def test_a_lonely_requests_columns_are_shared_unless_a_tensor_could_not_share_them():
    own = np.ones((3, 1), np.float32)
    stored = b"?" + own.tobytes()  # as in a request's body: not to be written to, and anywhere
    foreign = np.frombuffer(stored, np.float32, offset=1).reshape(3, 1)
    batch = collate([Part({"u": foreign[:1]}, {"own": own, "foreign": foreign}, 0, 3)])
    assert np.shares_memory(batch.candidate["own"], own)
    for column in (batch.user["u"], batch.candidate["foreign"]):
        assert column.flags.writeable
        assert column.flags.aligned
        assert not np.shares_memory(column, foreign)
    assert batch.candidate["foreign"].tolist() == own.tolist()
