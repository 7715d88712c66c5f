"""Real lanes on the normal loop."""

import asyncio
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from app.engine.batch import Batch, Chunk
from app.engine.batcher import Batcher
from app.engine.lanes import Lane, Staging, collate
from app.engine.request import RequestFeatures
from app.telemetry.metrics import Metrics
from tests.support.batching import submit
from tests.support.fakes import (
    NOT_A_NUMBER,
    POISON,
    chunk_of,
    expected,
    limits,
    request,
    sums_model,
)


@pytest.fixture
async def lane():
    lane = Lane("lane-0", asyncio.get_running_loop())
    yield lane
    lane.stop()


def chunk(user, candidates, start=0, stop=None) -> Chunk:
    return chunk_of(request(user, candidates), start, stop)


def batch_of(*chunks, model=None) -> Batch:
    return Batch.of(model or sums_model(), chunks)


def test_chunks_are_collated_one_after_the_other():
    batch = collate([chunk(1, [10, 11, 12], 1, 3), chunk(2, [20])])
    assert batch.user["u"].tolist() == [[1], [2]]
    assert batch.candidate["c"].tolist() == [[11], [12], [20]]
    assert batch.row_to_request.tolist() == [0, 0, 1]


def test_single_chunk_is_not_copied():
    only = chunk(1, [10, 11, 12], 1, 3)
    batch = collate([only])
    assert np.shares_memory(batch.candidate["c"], only.features.candidate["c"])
    assert batch.row_to_request.tolist() == [0, 0]


async def test_lane_runs_its_batches_one_at_a_time(lane):
    results = await asyncio.gather(*(lane.run(batch_of(chunk(user, [1, 2]))) for user in range(20)))
    for user, result in enumerate(results):
        assert result.scores.tolist() == expected(user, [1, 2])


async def test_lane_ranks_the_requests_whose_rows_are_all_in_the_batch(lane):
    chunks = [chunk(1, [5, 6, 7], 1, 3), chunk(2, [3, 9]), chunk(3, [4]), chunk(4, [1, 2], 0, 1)]
    result = await lane.run(batch_of(*chunks))
    assert [ranked is None for ranked in result.ranked] == [True, False, False, True]
    assert result.ranked[1].scores.tolist() == expected(2, [3, 9])
    assert result.ranked[1].ranking.tolist() == [1, 0]
    assert result.ranked[2].rank_score.tolist() == [7]
    assert result.timing.rank_s > 0


async def test_single_chunk_is_ranked_if_it_is_a_whole_request(lane):
    whole = await lane.run(batch_of(chunk(2, [3, 9])))
    assert whole.ranked[0].ranking.tolist() == [1, 0]
    part = await lane.run(batch_of(chunk(2, [3, 9], 1)))
    assert list(part.ranked) == [None]


async def test_nothing_is_ranked_if_a_score_is_not_finite(lane):
    result = await lane.run(batch_of(chunk(1, [2]), chunk(2, [NOT_A_NUMBER])))
    assert not result.is_finite
    assert list(result.ranked) == [None, None]


async def test_error_while_ranking_fails_the_batch_and_not_the_lane(lane):
    broken = chunk(1, [2])
    broken.request.ranking = None  # type: ignore[assignment]
    assert isinstance((await lane.run(batch_of(broken))).scores, AttributeError)
    assert (await lane.run(batch_of(chunk(1, [2])))).scores.tolist() == [[3, 2]]


async def test_error_of_a_model_is_a_result_and_the_lane_runs_on(lane):
    failed = await lane.run(batch_of(chunk(1, [POISON])))
    assert isinstance(failed.scores, Exception)
    assert "poison" in str(failed.scores)
    assert (await lane.run(batch_of(chunk(1, [2])))).scores.tolist() == [[3, 2]]


async def test_lane_uses_its_own_number_of_threads():
    torch.get_num_threads()  # a thread's first operator, or this, takes what any thread set last
    torch.set_num_threads(2)
    try:
        other = Lane("lane-1", asyncio.get_running_loop(), threads=1)
        await other.run(batch_of(chunk(1, [2])))
        assert torch.get_num_threads() == 2
        other.stop()
    finally:
        torch.set_num_threads(1)


async def test_stopped_lane_is_not_alive():
    other = Lane("lane-1", asyncio.get_running_loop())
    assert other.is_alive(hang_s=1)
    assert repr(other) == "<Lane lane-1 idle>"
    other.stop()
    assert not other.is_alive(hang_s=1)
    assert repr(other) == "<Lane lane-1 stopped>"


async def test_lane_that_hangs_in_a_batch_is_not_alive(lane):
    release = threading.Event()

    class Hanging:
        manifest = sums_model().manifest

        class program:  # noqa: N801
            @staticmethod
            def run(batch):
                release.wait(30)
                return np.zeros((batch.rows, 2), np.float32)

    running = asyncio.ensure_future(lane.run(batch_of(chunk(1, [1]), model=Hanging())))
    await asyncio.sleep(0)
    assert lane.is_alive(hang_s=1000)
    assert not lane.is_alive(hang_s=-1)  # any time at all is too long
    release.set()
    await running
    assert lane.is_alive(hang_s=-1)


@pytest.mark.no_cover
async def test_threads_return_every_row_to_its_request():
    loop = asyncio.get_running_loop()
    workers = [Lane(f"lane-{i}", loop) for i in range(4)]
    subject = Batcher(workers, metrics=Metrics(), **limits(max_queue_rows=1_000_000))
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 80, 2000)

    async def one(user, size):
        candidates = rng.integers(0, 1000, size).astype(float).tolist()
        scored = await submit(subject, user, candidates, timeout_s=60)
        assert scored.scores.tolist() == expected(user, candidates)

    await asyncio.gather(*(one(user, size) for user, size in enumerate(sizes)))
    assert subject.queues.rows == 0
    for worker in workers:
        worker.stop()


async def test_a_cancelled_wait_for_a_batch_leaves_no_error_behind(lane):
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    waiting = asyncio.create_task(lane.run(batch_of(chunk(1, [1.0]))))
    await asyncio.sleep(0)
    waiting.cancel()
    await lane.run(batch_of(chunk(1, [1.0])))  # reported after the cancelled one
    assert errors == []


def test_columns_of_a_single_chunk_are_shared_if_a_tensor_can_share_them():
    own = np.ones((3, 1), np.float32)
    stored = b"?" + own.tobytes()  # as in a body: read-only and not aligned
    foreign = np.frombuffer(stored, np.float32, offset=1).reshape(3, 1)
    features = RequestFeatures({"u": foreign[:1]}, {"own": own, "foreign": foreign}, 3, {})
    batch = collate([chunk_of(features)])
    assert np.shares_memory(batch.candidate["own"], own)
    for column in (batch.user["u"], batch.candidate["foreign"]):
        assert column.flags.writeable
        assert column.flags.aligned
        assert not np.shares_memory(column, foreign)
    assert batch.candidate["foreign"].tolist() == own.tolist()


rng = np.random.default_rng(0)


def mixed(rows, start, stop) -> Chunk:
    """A chunk with a column of each kind: dense, id, id list, and one of no width."""
    features = RequestFeatures(
        user={"u": rng.random((1, 3), np.float32), "id": rng.integers(0, 9, 1)},
        candidate={
            "c": rng.random((rows, 5), np.float32),
            "item": rng.integers(0, 99, rows),
            "list": rng.integers(0, 99, (rows, 4)),
            "none": np.empty((rows, 0), np.float32),
        },
        rows=rows,
        unknown_ids={},
    )
    return chunk_of(features, start, stop)


@st.composite
def mixed_chunks(draw):
    rows = draw(st.integers(1, 40))
    start = draw(st.integers(0, rows - 1))
    return mixed(rows, start, draw(st.integers(start + 1, rows)))


@given(st.lists(st.lists(mixed_chunks(), min_size=1, max_size=6), min_size=1, max_size=6))
def test_staged_batch_equals_the_batch_in_new_memory(batches):
    staging = Staging()
    for batch in batches:
        staged, naive = staging.collate(batch), collate(batch)
        assert staged.row_to_request.tolist() == naive.row_to_request.tolist()
        for side in ("user", "candidate"):
            columns, expected = getattr(staged, side), getattr(naive, side)
            assert columns.keys() == expected.keys()
            for name in expected:
                np.testing.assert_array_equal(columns[name], expected[name], strict=True)


def test_staged_columns_do_not_overlap_and_are_aligned():
    batch = Staging().collate([mixed(7, 0, 7), mixed(3, 1, 3)])
    columns = [*batch.user.values(), *batch.candidate.values()]
    for column in columns:
        assert column.size == 0 or column.ctypes.data % 64 == 0
    for i, column in enumerate(columns):
        assert not any(np.shares_memory(column, other) for other in columns[i + 1 :])


def test_staging_allocates_its_memory_once():
    staging = Staging()
    first = staging.collate([mixed(20, 0, 20), mixed(20, 0, 20)]).candidate["c"]
    again = staging.collate([mixed(10, 0, 10), mixed(20, 0, 20)]).candidate["c"]
    assert np.shares_memory(first, again)
