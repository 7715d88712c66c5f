"""Collate chunks whose candidates come whole from a folded table: see `app.artifacts.fold`.

The batch then has, in place of the candidates' features, what the first layers make of them. A
batch with any other chunk is collated from features, also the rows that are folded.
"""

from collections.abc import Sequence

import numpy as np

from app.artifacts.tables.segment import Folded
from app.engine.batch import Chunk
from app.engine.gather import Allocate


def is_folded(chunks: Sequence[Chunk]) -> bool:
    """Whether all candidates of a batch are rows that are folded for the program that runs it."""
    for chunk in chunks:
        tables = chunk.features.tables
        rows = None if tables is None else tables.candidate
        if rows is None or rows.folded_for is None:
            return False
        if rows.folded_for is not chunk.request.model.program:
            return False
    return True


def folded_bytes(chunks: Sequence[Chunk], rows: int) -> int:
    """Return how many bytes the folded rows of a batch take."""
    return 4 * chunks[0].request.model.program.padded(rows) * _width(chunks)


def gather_folded(chunks: Sequence[Chunk], rows: int, allocate: Allocate) -> Folded:
    """Return the folded rows of a batch, `[B, H]`, in memory of `allocate`.

    The last one is repeated up to the size that the program pads the batch to.
    """
    padded = chunks[0].request.model.program.padded(rows)
    made: Folded = allocate((padded, _width(chunks)), np.float32)
    start = 0
    for chunk in chunks:
        assert chunk.features.tables is not None
        source = chunk.features.tables.candidate
        assert source is not None
        stop = start + chunk.stop - chunk.start
        source.table.take_folded(source.positions[chunk.start : chunk.stop], made[start:stop])
        start = stop
    made[rows:] = made[rows - 1]
    return made


def _width(chunks: Sequence[Chunk]) -> int:
    width = chunks[0].request.model.manifest.folded_width
    assert width is not None
    return width
