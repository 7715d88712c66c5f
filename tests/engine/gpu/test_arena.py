"""The arena holds what `collate` makes of chunks in one buffer, followed by padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.engine.batch import Chunk
from app.engine.gpu.arena import Arena, Layout, padding
from app.engine.gpu.buckets import Bucket
from app.engine.lanes import collate
from app.engine.request import RequestFeatures
from tests.support.builders import INPUTS, batch, description
from tests.support.fakes import chunk_of

BUCKET = Bucket(rows=24, requests=8)
GARBAGE = 0xA5


def chunks_of(sizes, cut=0) -> list[Chunk]:
    """Requests of so many candidates, each without its first `cut`."""
    whole = batch(INPUTS, [size + cut for size in sizes]).requests()
    features = [
        RequestFeatures(request.user, request.candidate, request.rows, {}) for request in whole
    ]
    return [chunk_of(request, cut) for request in features]


def filled(chunks, bucket=BUCKET):
    layout = Layout(description(), bucket)
    inputs = layout.over(torch.full((layout.size,), GARBAGE, dtype=torch.uint8))
    rows = Arena(description(), inputs).fill(chunks)
    return inputs, rows


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=8), cut=st.integers(0, 2))
def test_arena_equals_collated_chunks_followed_by_padding(sizes, cut):
    chunks = chunks_of(sizes, cut)
    expected = collate(chunks)
    inputs, rows = filled(chunks)
    assert rows == expected.rows == sum(sizes)
    assert inputs.row_to_request.tolist() == [*expected.row_to_request.tolist(), *[0] * (24 - rows)]
    for feature in INPUTS:
        own, other, count = (
            (inputs.user, expected.user, len(sizes))
            if feature.side == "user"
            else (inputs.candidate, expected.candidate, rows)
        )
        column = own[feature.name].numpy()
        assert np.array_equal(column[:count], other[feature.name])
        assert (column[count:] == padding(feature)).all()
        assert column.dtype == other[feature.name].dtype


def test_rows_of_a_larger_batch_are_overwritten():
    layout = Layout(description(), BUCKET)
    inputs = layout.over(torch.full((layout.size,), GARBAGE, dtype=torch.uint8))
    arena = Arena(description(), inputs)
    arena.fill(chunks_of([3] * 8))
    arena.fill(chunks_of([1]))
    fresh, _ = filled(chunks_of([1]))
    for side in ("user", "candidate"):
        for name, column in getattr(inputs, side).items():
            assert torch.equal(column, getattr(fresh, side)[name])
    assert torch.equal(inputs.row_to_request, fresh.row_to_request)


def test_padding_alone_can_be_written():
    layout = Layout(description(), BUCKET)
    inputs = layout.over(torch.full((layout.size,), GARBAGE, dtype=torch.uint8))
    Arena(description(), inputs).fill_with_padding()
    assert inputs.row_to_request.tolist() == [0] * 24
    for feature in INPUTS:
        column = (inputs.user if feature.side == "user" else inputs.candidate)[feature.name]
        assert (column == padding(feature)).all()


def test_views_are_aligned_and_do_not_overlap():
    layout = Layout(description(), BUCKET)
    buffer = torch.zeros(layout.size, dtype=torch.uint8)
    inputs = layout.over(buffer)
    columns = [*inputs.user.values(), *inputs.candidate.values(), inputs.row_to_request]
    spans = sorted((c.data_ptr() - buffer.data_ptr(), c.nbytes) for c in columns)
    assert all(start % 256 == 0 for start, _ in spans)
    ends = [start + size for start, size in spans]
    assert all(end <= start for end, (start, _) in zip(ends, spans[1:], strict=False))
    assert ends[-1] <= layout.size


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (DenseInput(name="x", side="user", dim=3), 0.0),
        (IdInput(name="x", side="user", vocabulary_size=9, unknown=4), 4),
        (IdInput(name="x", side="user", vocabulary_size=9, unknown="reject"), 0),
        (IdListInput(name="x", side="user", vocabulary_size=9, max_length=2, padding=8), 8),
    ],
    ids=["number", "id", "id without unknown", "list"],
)
def test_padding_is_what_every_model_accepts(feature, value):
    assert padding(feature) == value
