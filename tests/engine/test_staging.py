"""Batches collated in a lane's own memory equal batches collated in new memory."""

import numpy as np
from hypothesis import given, strategies as st

from app.engine.lanes import Part, collate
from app.engine.staging import Staging

rng = np.random.default_rng(0)


def part(rows, start, stop):
    """A part of a request with a column of each kind: dense, id, id list, and one of no width."""
    return Part(
        user={"u": rng.random((1, 3), np.float32), "id": rng.integers(0, 9, 1)},
        candidate={
            "c": rng.random((rows, 5), np.float32),
            "item": rng.integers(0, 99, rows),
            "list": rng.integers(0, 99, (rows, 4)),
            "none": np.empty((rows, 0), np.float32),
        },
        start=start,
        stop=stop,
    )


@st.composite
def parts(draw):
    rows = draw(st.integers(1, 40))
    start = draw(st.integers(0, rows - 1))
    return part(rows, start, draw(st.integers(start + 1, rows)))


@given(st.lists(st.lists(parts(), min_size=1, max_size=6), min_size=1, max_size=6))
def test_it_equals_the_batch_in_new_memory(batches):
    staging = Staging()
    for batch in batches:
        ours, naive = staging.collate(batch), collate(batch)
        assert ours.row_to_request.tolist() == naive.row_to_request.tolist()
        for side in ("user", "candidate"):
            columns, expected = getattr(ours, side), getattr(naive, side)
            assert columns.keys() == expected.keys()
            for name in expected:
                np.testing.assert_array_equal(columns[name], expected[name], strict=True)


def test_columns_do_not_overlap_and_are_aligned():
    batch = Staging().collate([part(7, 0, 7), part(3, 1, 3)])
    columns = [*batch.user.values(), *batch.candidate.values()]
    for column in columns:
        assert column.size == 0 or column.ctypes.data % 64 == 0
    for i, column in enumerate(columns):
        assert not any(np.shares_memory(column, other) for other in columns[i + 1 :])


def test_memory_is_taken_once():
    staging = Staging()
    first = staging.collate([part(20, 0, 20), part(20, 0, 20)]).candidate["c"]
    again = staging.collate([part(10, 0, 10), part(20, 0, 20)]).candidate["c"]
    assert np.shares_memory(first, again)
