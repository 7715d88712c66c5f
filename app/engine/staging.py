"""A lane's own memory for batches, used again for each: no batch waits for pages to be mapped.

Ten requests of 50 rows and 100 numbers are brought together in a quarter of the time.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from app.artifacts.columns import Column, ModelInputs
from app.engine.lanes import Part, collate

_ALIGNMENT = 64  # bytes; a cache line, and as much as torch's own allocator gives


class Staging:
    """One buffer that batches are collated in, one at a time; it grows to the largest of them.

    A batch is valid until the next one. Owned by its lane's thread.
    """

    def __init__(self) -> None:
        """Start with no memory."""
        self._buffer: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used = 0

    def collate(self, parts: Sequence[Part]) -> ModelInputs:
        """Bring parts together as `app.engine.lanes.collate` does; one alone is not copied."""
        if len(parts) == 1:
            return collate(parts)
        user = {name: [part.user[name] for part in parts] for name in parts[0].user}
        candidate = {
            name: [part.candidate[name][part.start : part.stop] for part in parts]
            for name in parts[0].candidate
        }
        self._make_room(sum(map(_room, [*user.values(), *candidate.values()])))
        return ModelInputs(
            user={name: self._joined(columns) for name, columns in user.items()},
            candidate={name: self._joined(columns) for name, columns in candidate.items()},
            row_to_request=np.repeat(np.arange(len(parts)), [p.stop - p.start for p in parts]),
        )

    def _make_room(self, size: int) -> None:
        if size > len(self._buffer):
            self._buffer = np.empty(2 * size, np.uint8)
        self._used = -self._buffer.ctypes.data % _ALIGNMENT

    def _joined(self, columns: Sequence[Column]) -> Column:
        first = columns[0]
        rows = sum(map(len, columns))
        size = rows * first[:1].nbytes
        joined = self._buffer[self._used : self._used + size].view(first.dtype)
        joined = joined.reshape(rows, *first.shape[1:])
        self._used += size + -size % _ALIGNMENT
        return np.concatenate(columns, out=joined)


def _room(columns: Sequence[Column]) -> int:
    return sum(column.nbytes for column in columns) + 2 * _ALIGNMENT
