"""The arena: every input of a batch in one aligned buffer, so that one copy moves all of them.

A layout gives the place of each feature's rows for a bucket. It is used twice: over page-locked
host memory, where chunks are collated, and over device memory, which the model reads.

If the device has the table of all candidates, a batch copies their rows' numbers instead of their
features. Both are next to what every batch copies, so that it is one copy either way.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.artifacts.columns import Column, column_dtype, column_shape
from app.artifacts.inputs import DenseInput, IdInput, Input
from app.artifacts.manifest import Description
from app.engine.batch import Chunk
from app.engine.gather import sides, use_tables
from app.engine.gpu.buckets import Bucket
from app.engine.request import Positions

_ALIGNMENT = 256  # bytes; what cudaMalloc itself gives, so no kernel loses its wide loads
_TORCH = {np.float32: torch.float32, np.int64: torch.int64}


@dataclass(frozen=True, slots=True)
class _Slot:
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: type[np.float32] | type[np.int64]

    @property
    def end(self) -> int:
        return self.offset + prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class DeviceInputs:
    """The inputs of a model as views of one buffer: `R` user rows, `B` candidate rows.

    Attributes:
        user: columns with R rows.
        candidate: columns with B rows.
        row_to_request: int64 `[B]`.
        rows: int64 `[B]`, the row of each candidate in a table on the device.
        changes: int64 `[2, B]`: first the candidates whose rows are among the changed ones of the
            table, then the numbers of these rows.
    """

    user: dict[str, Tensor]
    candidate: dict[str, Tensor]
    row_to_request: Tensor
    rows: Tensor
    changes: Tensor


class Layout:
    """Where the inputs of a batch of one bucket lie in a buffer.

    Attributes:
        size: bytes that the buffer must have.
        features: the part of the buffer to copy if the features of all candidates are in it.
        rows: the part to copy if the candidates' rows are in a table on the device.
        changed_rows: the same, and which of them are among the changed rows.
    """

    def __init__(self, description: Description, bucket: Bucket) -> None:
        """Lay out the inputs that `description` names, one after the other."""
        self.size = 0
        self._changes = self._add((2, bucket.rows), np.int64)
        self._rows = self._add((bucket.rows,), np.int64)
        users = self.size
        self._user = {
            feature.name: self._add(column_shape(feature, bucket.requests), column_dtype(feature))
            for feature in description.user_inputs
        }
        self._row_to_request = self._add((bucket.rows,), np.int64)
        candidates = self.size
        self._candidate = {
            feature.name: self._add(column_shape(feature, bucket.rows), column_dtype(feature))
            for feature in description.candidate_inputs
        }
        self.features = slice(users, self.size)
        self.rows = slice(self._rows.offset, candidates)
        self.changed_rows = slice(0, candidates)

    def _add(self, shape: tuple[int, ...], dtype: type[np.float32] | type[np.int64]) -> _Slot:
        slot = _Slot(self.size, shape, dtype)
        self.size = -(-slot.end // _ALIGNMENT) * _ALIGNMENT
        return slot

    def over(self, buffer: Tensor) -> DeviceInputs:
        """Return the inputs as views of `buffer`, uint8 with at least `size` bytes."""

        def view(slot: _Slot) -> Tensor:
            return buffer[slot.offset : slot.end].view(_TORCH[slot.dtype]).view(slot.shape)

        return DeviceInputs(
            user={name: view(slot) for name, slot in self._user.items()},
            candidate={name: view(slot) for name, slot in self._candidate.items()},
            row_to_request=view(self._row_to_request),
            rows=view(self._rows),
            changes=view(self._changes),
        )


class Arena:
    """A bucket's inputs in host memory, where chunks are collated."""

    def __init__(self, description: Description, inputs: DeviceInputs) -> None:
        """Write into `inputs`, which are in host memory."""
        self._padding = {feature.name: padding(feature) for feature in description.inputs}
        self._user = {name: tensor.numpy() for name, tensor in inputs.user.items()}
        self._candidate = {name: tensor.numpy() for name, tensor in inputs.candidate.items()}
        self._row_to_request: npt.NDArray[np.int64] = inputs.row_to_request.numpy()
        self._rows: npt.NDArray[np.int64] = inputs.rows.numpy()
        self._changes: npt.NDArray[np.int64] = inputs.changes.numpy()

    def fill(self, chunks: Sequence[Chunk]) -> int:
        """Collate chunks that fit the bucket, pad the rest, and return how many rows they have.

        A padding row is a candidate of the first request whose ids are unknown and whose numbers
        are zero, which is harmless for any model.
        """
        rows = self._number(chunks)
        if use_tables(chunks):
            self._gather(chunks)
        else:
            self._join(chunks, rows)
        return rows

    def fill_rows(self, chunks: Sequence[Chunk], names: Collection[str], padding: int) -> int:
        """Collate chunks whose candidates are rows of one table that the device has.

        A position `p` becomes row `p + 1`: row 0 has the defaults, and rows after that of padding
        are changed ones.

        Args:
            chunks: they fit the bucket.
            names: of the features that come from the table; they are left out.
            padding: the row of padding.

        Returns:
            How many candidates have changed rows.
        """
        count = self._number(chunks)
        users, candidates = sides(chunks)
        for sent, columns in ((users, self._user), (candidates, self._candidate)):
            for name, column in columns.items():
                if sent is users or name not in names:
                    sent.write(name, column)
                    column[sent.count :] = self._padding[name]
        rows = self._rows
        np.concatenate([_positions(chunk) for chunk in chunks], out=rows[:count])
        rows[:count] += 1
        rows[count:] = padding
        changed = np.flatnonzero(rows > padding)
        self._changes[0, : len(changed)] = changed
        self._changes[1, : len(changed)] = rows[changed] - (padding + 1)
        rows[changed] = 0
        return len(changed)

    def _number(self, chunks: Sequence[Chunk]) -> int:
        """Write the request of each row, and return how many rows there are."""
        counts = [chunk.stop - chunk.start for chunk in chunks]
        rows = sum(counts)
        self._row_to_request[:rows] = np.repeat(np.arange(len(chunks)), counts)
        self._row_to_request[rows:] = 0
        return rows

    def _join(self, chunks: Sequence[Chunk], rows: int) -> None:
        for name, column in self._user.items():
            users = [chunk.features.user[name] for chunk in chunks]
            self._write(name, column, users, len(chunks))
        for name, column in self._candidate.items():
            parts = [chunk.features.candidate[name][chunk.start : chunk.stop] for chunk in chunks]
            self._write(name, column, parts, rows)

    def _gather(self, chunks: Sequence[Chunk]) -> None:
        """Collate chunks of which some have features that come from tables."""
        for columns, rows in zip((self._user, self._candidate), sides(chunks), strict=True):
            for name, column in columns.items():
                rows.write(name, column)
                column[rows.count :] = self._padding[name]

    def fill_with_padding(self) -> None:
        """Write padding everywhere."""
        for name, column in (*self._user.items(), *self._candidate.items()):
            column[:] = self._padding[name]
        self._row_to_request[:] = 0

    def _write(self, name: str, column: Column, parts: Sequence[Column], rows: int) -> None:
        np.concatenate(parts, out=column[:rows])
        column[rows:] = self._padding[name]


def _positions(chunk: Chunk) -> Positions:
    """Return where a table has the rows of a chunk's candidates."""
    tables = chunk.features.tables
    assert tables is not None
    assert tables.candidate is not None
    return tables.candidate.positions[chunk.start : chunk.stop]


def padding(feature: Input) -> float:
    """Return a feature's value in padding rows; every model accepts it."""
    if isinstance(feature, DenseInput):
        return 0.0
    if isinstance(feature, IdInput):
        return 0 if feature.unknown == "reject" else feature.unknown
    return feature.padding
