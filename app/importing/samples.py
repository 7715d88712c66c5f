"""Random requests for a module from elsewhere, with ids within their vocabularies."""

from collections.abc import Sequence

import numpy as np

from app.artifacts.columns import Column, ModelInputs, column_shape
from app.artifacts.inputs import DenseInput, IdListInput, Input
from app.importing.description import ForeignModel


def generate(model: ForeignModel, sizes: Sequence[int]) -> ModelInputs:
    """Return random requests, the same ones every time.

    Of two rows or more, the first has the smallest id and an empty list, and the last has the
    largest id and a full list. A padding that is reserved is in no list.

    Args:
        model: its inputs are generated.
        sizes: the number of candidates of each request.
    """
    random = np.random.default_rng(len(sizes))
    sides: dict[str, dict[str, Column]] = {"user": {}, "candidate": {}}
    for feature in model.inputs:
        rows = len(sizes) if feature.side == "user" else sum(sizes)
        interval = model.ranges.get(feature.name)
        sides[feature.side][feature.name] = _values(random, feature, rows, interval)
    return ModelInputs(sides["user"], sides["candidate"], np.repeat(np.arange(len(sizes)), sizes))


def _values(
    random: np.random.Generator, feature: Input, rows: int, interval: tuple[float, float] | None
) -> Column:
    shape = column_shape(feature, rows)
    if isinstance(feature, DenseInput):
        drawn = random.uniform(*interval, shape) if interval else random.normal(size=shape)
        return drawn.astype(np.float32)
    ids = random.integers(0, feature.vocabulary_size, shape)
    if rows > 1:
        ids[0], ids[-1] = 0, feature.vocabulary_size - 1
    if isinstance(feature, IdListInput):
        width = feature.max_length
        length = random.integers(0, width + 1, (rows, 1))
        if rows > 1:
            length[0], length[-1] = 0, width
        position = np.arange(width) if feature.padding_side == "right" else np.arange(width)[::-1]
        if feature.reserves_padding and feature.vocabulary_size > 1:
            other = feature.padding - 1 if feature.padding else 1
            ids[ids == feature.padding] = other
        ids[position >= length] = feature.padding
    return ids


def one_row(batch: ModelInputs, row: int) -> ModelInputs:
    """Return one candidate of a batch, with its user, as a batch of its own."""
    request = batch.row_to_request[row]
    return ModelInputs(
        {name: column[request : request + 1] for name, column in batch.user.items()},
        {name: column[row : row + 1] for name, column in batch.candidate.items()},
        np.zeros(1, np.int64),
    )
