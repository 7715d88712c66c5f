"""The arena: what `collate` makes of parts, in one buffer, and padding behind it."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from app.artifacts.manifest import DenseInput, IdInput, IdListInput
from app.engine.gpu.arena import Arena, Layout, padding
from app.engine.gpu.buckets import Bucket
from app.engine.lanes import Part, collate
from tests.support.builders import INPUTS, batch, description

BUCKET = Bucket(rows=24, requests=8)
GARBAGE = 0xA5


def parts_of(sizes, cut=0) -> list[Part]:
    """Requests of so many candidates, of each the first `cut` left out."""
    whole = batch(INPUTS, [size + cut for size in sizes]).requests()
    return [Part(each.user, each.candidate, cut, each.rows) for each in whole]


def filled(parts, bucket=BUCKET):
    layout = Layout(description(), bucket)
    inputs = layout.over(torch.full((layout.size,), GARBAGE, dtype=torch.uint8))
    rows = Arena(description(), inputs).fill(parts)
    return inputs, rows


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=8), cut=st.integers(0, 2))
def test_it_holds_what_collate_makes_of_the_parts_and_then_padding(sizes, cut):
    parts = parts_of(sizes, cut)
    expected = collate(parts)
    inputs, rows = filled(parts)
    assert rows == expected.rows == sum(sizes)
    assert inputs.row_to_request.tolist() == [*expected.row_to_request.tolist(), *[0] * (24 - rows)]
    for each in INPUTS:
        ours, theirs, count = (
            (inputs.user, expected.user, len(sizes))
            if each.side == "user"
            else (inputs.candidate, expected.candidate, rows)
        )
        column = ours[each.name].numpy()
        assert np.array_equal(column[:count], theirs[each.name])
        assert (column[count:] == padding(each)).all()
        assert column.dtype == theirs[each.name].dtype


def test_what_a_larger_batch_left_is_overwritten():
    layout = Layout(description(), BUCKET)
    inputs = layout.over(torch.full((layout.size,), GARBAGE, dtype=torch.uint8))
    arena = Arena(description(), inputs)
    arena.fill(parts_of([3] * 8))
    arena.fill(parts_of([1]))
    fresh, _ = filled(parts_of([1]))
    for side in ("user", "candidate"):
        for name, column in getattr(inputs, side).items():
            assert torch.equal(column, getattr(fresh, side)[name])
    assert torch.equal(inputs.row_to_request, fresh.row_to_request)


def test_padding_alone_can_be_written():
    layout = Layout(description(), BUCKET)
    inputs = layout.over(torch.full((layout.size,), GARBAGE, dtype=torch.uint8))
    Arena(description(), inputs).fill_with_padding()
    assert inputs.row_to_request.tolist() == [0] * 24
    for each in INPUTS:
        column = (inputs.user if each.side == "user" else inputs.candidate)[each.name]
        assert (column == padding(each)).all()


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
