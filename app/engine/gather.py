"""Collate chunks whose features come from tables: rows are gathered straight into the batch.

A request that names rows of a table (`TableRows`) has no copy of them. They are read once, when
its batch is collated, into the memory that the model reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from app.artifacts.columns import Column, Columns, column_dtype, column_shape
from app.artifacts.inputs import Input
from app.artifacts.manifest import Description
from app.engine.batch import Chunk
from app.engine.request import Positions, RowSource, TableRows

Allocate = Callable[[tuple[int, ...], type[np.generic]], Column]
"""Returns memory of a shape and a dtype; its content does not matter."""


def use_tables(chunks: Sequence[Chunk]) -> bool:
    """Whether any of the chunks has features that come from a table."""
    for chunk in chunks:  # noqa: SIM110  (half the time of a generator)
        if chunk.features.tables is not None:
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows `first` to `last` of sent columns; they are rows `start` to `stop` of the batch."""

    columns: Columns
    first: int
    last: int
    start: int
    stop: int


@dataclass(slots=True)
class _Group:
    """Parts that follow each other and have the same features from the same table, or from none."""

    table: RowSource | None
    names: frozenset[str]
    parts: list[_Part] = field(default_factory=list)
    positions: list[Positions] = field(default_factory=list)
    taken: npt.NDArray[np.void] | None = None

    def write(self, name: str, column: Column) -> None:
        """Write this group's rows of a feature into the batch's column."""
        if self.table is None or name not in self.names:
            for part in self.parts:
                column[part.start : part.stop] = part.columns[name][part.first : part.last]
            return
        if self.taken is None:  # a table stores rows: one access brings all features
            one = len(self.positions) == 1
            self.taken = self.table.take(
                self.positions[0] if one else np.concatenate(self.positions)
            )
        column[self.parts[0].start : self.parts[-1].stop] = self.taken[name]


class Rows:
    """Where the rows of one side of a batch come from; read once, by one thread."""

    def __init__(self) -> None:
        """Start without rows."""
        self._groups: list[_Group] = []
        self.count = 0

    def add(self, columns: Columns, first: int, last: int, rows: TableRows | None) -> None:
        """Add rows `first` to `last` of a request."""
        stop = self.count + last - first
        part = _Part(columns, first, last, self.count, stop)
        self.count = stop
        table, names = (None, frozenset[str]()) if rows is None else (rows.table, rows.names)
        group = self._groups[-1] if self._groups else None
        if group is None or group.table is not table or group.names != names:
            group = _Group(table, names)
            self._groups.append(group)
        group.parts.append(part)
        if rows is not None:
            group.positions.append(rows.positions[first:last])

    def write(self, name: str, column: Column) -> None:
        """Write the rows of a feature into a column of the batch."""
        for group in self._groups:
            group.write(name, column)

    def shared(self, name: str) -> Column | None:
        """Return the column of a feature if it is in one piece already, as a view."""
        if len(self._groups) == 1 and len(self._groups[0].parts) == 1:
            group = self._groups[0]
            if name not in group.names:
                (part,) = group.parts
                return part.columns[name][part.first : part.last]
        return None


def sides(chunks: Sequence[Chunk]) -> tuple[Rows, Rows]:
    """Return the rows of a batch: one user row for each chunk, and the candidate rows."""
    users, candidates = Rows(), Rows()
    for chunk in chunks:
        features = chunk.features
        tables = features.tables
        users.add(features.user, 0, 1, None if tables is None else tables.user)
        rows = None if tables is None else tables.candidate
        candidates.add(features.candidate, chunk.start, chunk.stop, rows)
    return users, candidates


def room(description: Description, requests: int, rows: int, alignment: int) -> int:
    """Return how many bytes all columns of a batch take, each one aligned."""
    return sum(
        _bytes(feature, requests if feature.side == "user" else rows) + alignment
        for feature in description.inputs
    )


def _bytes(feature: Input, rows: int) -> int:
    size = np.dtype(column_dtype(feature)).itemsize
    for length in column_shape(feature, rows):
        size *= length
    return size


def gathered_column(feature: Input, rows: Rows, allocate: Allocate) -> Column:
    """Return a column of the batch: a view of a request's own, or gathered into new memory."""
    shared = rows.shared(feature.name)
    if shared is not None and shared.flags.writeable and shared.flags.aligned:
        return shared
    made = allocate(column_shape(feature, rows.count), column_dtype(feature))
    rows.write(feature.name, made)
    return made
